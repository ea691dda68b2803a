"""Functions of one state: called one state at a time, in this process or in others."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vgs_rl.foreign.processes import ProcessEnded, ProcessPool

Array = NDArray[Any]
Gradient = Callable[[Any], Any] | bool | None  # True: the function returns (energy, gradient)
PARTS = 4  # of a batch, for each process


class FunctionError(RuntimeError):
    """A user's function raised; the message says where, and `__cause__` is what it raised."""


class RowFunction(Protocol):
    """The energy of one state.

    Attributes:
        name: for messages.
        gives_gradient: whether it has a gradient to give.
    """

    name: str
    gives_gradient: bool

    def __call__(self, x: Array, gradient: bool) -> tuple[Any, Any]:
        """E, and ∇E where it is asked for, at one state x of shape (D,); each as it came."""


@dataclass(frozen=True)
class Failure:
    """What went wrong at a state.

    Attributes:
        row: index of the state.
        error: what was raised.
        misfit: whether the function returned what it must not, rather than raised.
    """

    row: int
    error: Exception
    misfit: bool


@dataclass(frozen=True)
class Answer:
    """Energies (B,), gradients (B, D) or None, and the first failure, which ends the work."""

    energies: Array
    gradients: Array | None
    failure: Failure | None = None


class FunctionOfOne:
    """A function of a NumPy array of shape (D,), or of a tensor of that shape.

    Args:
        function: E, or (E, ∇E), of one state.
        gradient: ∇E of one state; True where `function` returns it; None where nobody knows it.
        tensors: whether they take tensors; autograd then stands in for a missing gradient.
    """

    def __init__(self, function: Callable[[Any], Any], gradient: Gradient, tensors: bool) -> None:
        self.function, self.gradient, self.tensors = function, gradient, tensors
        self.name = name_of(function)
        self.gives_gradient = tensors or gradient is not None

    def __call__(self, x: Array, gradient: bool) -> tuple[Any, Any]:
        """See :class:`RowFunction`."""
        if self.gradient is True:
            return pair_of(self.function(self._given(x)), self.name)
        if callable(self.gradient):
            energy = self.function(self._given(x))
            return energy, self.gradient(self._given(x)) if gradient else None
        if gradient and self.tensors:
            return self._by_autograd(x)
        return self.function(self._given(x)), None

    def _given(self, x: Array) -> Any:
        """A copy, which the function may change or keep."""
        return torch.from_numpy(x.copy()) if self.tensors else x.copy()

    def _by_autograd(self, x: Array) -> tuple[Any, Any]:
        leaf = torch.from_numpy(x).requires_grad_(True)
        with torch.enable_grad():
            energy = self.function(leaf.clone())
        if not (isinstance(energy, Tensor) and energy.requires_grad):
            raise Misfit(
                f"{self.name} hides its gradient from autograd: give gradient=, or set "
                "framework='numpy'"
            )
        (slope,) = torch.autograd.grad(energy.sum(), leaf)
        return energy, slope


class Misfit(ValueError):
    """A function returned what it must not."""


def name_of(function: Any) -> str:
    """A function's name for people: without the functions that it was defined in."""
    inner = getattr(function, "func", function)  # of a partial function
    name = getattr(inner, "__qualname__", None) or type(inner).__name__
    return str(name).rpartition("<locals>.")[2]


def pair_of(result: Any, name: str) -> tuple[Any, Any]:
    """The pair (energy, gradient) that a function with gradient=True returned."""
    if not (isinstance(result, tuple | list) and len(result) == 2):
        raise Misfit(
            f"{name} must return (energy, gradient) where gradient=True, "
            f"got {type(result).__name__}"
        )
    return result[0], result[1]


def evaluate_rows(function: RowFunction, x: Array, gradient: bool) -> Answer:
    """The function at each of the states x, shape (B, D), up to the first failure."""
    energies: list[Any] = []
    slopes = np.empty(x.shape) if gradient else None
    failure = None
    for row, state in enumerate(x):
        try:
            energy, slope = function(state, gradient)
            energies.append(_number(energy, function.name))
            if slopes is not None:
                slopes[row] = _vector(slope, state.shape, function.name)
        except Exception as error:  # of a user's code
            failure = Failure(row, error, isinstance(error, Misfit))
            break
    return Answer(np.array(energies), slopes, failure)


def text_of(error: BaseException) -> str:
    """An error's type and first line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _number(energy: Any, name: str) -> Any:
    """One real number, in its own floating type."""
    array = _plain(energy)
    if array.size != 1 or array.dtype.kind not in "fiu":
        raise Misfit(
            f"{name} must return one real number for one state, got shape {array.shape} "
            f"of {array.dtype}" + ("" if array.dtype.kind in "fiuc" else f": {energy!r:.60}")
        )
    number = array.reshape(())
    return number[()] if array.dtype.kind == "f" else float(number)


def _vector(slope: Any, shape: tuple[int, ...], name: str) -> Array:
    array = _plain(slope)
    if array.shape != shape or array.dtype.kind not in "fiu":
        raise Misfit(
            f"the gradient of {name} at one state must be real of shape {shape}, "
            f"got shape {array.shape} of {array.dtype}"
        )
    return array


def _plain(value: Any) -> Array:
    return np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)


class Rows:
    """A function of one state as a function of tensors, shape (B, D).

    Args:
        function: the energy of one state.
        processes: how many processes share the states; 0 is this one.

    Raises:
        ValueError: if the function cannot be sent to another process.
    """

    def __init__(self, function: RowFunction, processes: int) -> None:
        self.function = function
        self.gives_gradient = function.gives_gradient
        self.processes = processes
        self.pool = (
            ProcessPool(InProcess(function), processes, function.name) if processes else None
        )

    def energy(self, x: Tensor) -> Tensor:
        """E(x), shape (B,)."""
        return torch.from_numpy(self._answer(x, gradient=False).energies)

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E(x), shape (B,), and ∇E(x), shape (B, D)."""
        answer = self._answer(x, gradient=True)
        return torch.from_numpy(answer.energies), torch.from_numpy(answer.gradients)

    def _answer(self, x: Tensor, gradient: bool) -> Answer:
        states = x.detach().cpu().numpy()
        if self.pool is None:
            answer = evaluate_rows(self.function, states, gradient)
        else:
            answer = self._shared(self.pool, states, gradient)
        failure = answer.failure
        if failure is None:
            return answer
        if failure.misfit:
            raise failure.error
        raise FunctionError(
            f"{self.function.name} failed on state {failure.row} of {len(states)}, "
            f"x = {short(states[failure.row])}: {text_of(failure.error)}"
        ) from failure.error

    def _shared(self, pool: ProcessPool, states: Array, gradient: bool) -> Answer:
        """The states in parts, several for each process, since some take longer than others."""
        size = max(1, -(-len(states) // (PARTS * self.processes)))
        starts = range(0, len(states), size)
        parts = [(states[start : start + size], gradient) for start in starts]
        try:
            answers = pool.map(parts, lambda answer: answer.failure is not None)
        except ProcessEnded as error:
            first = starts[error.part]
            last = first + len(parts[error.part][0]) - 1
            raise FunctionError(
                f"a process ended ({error}) while it called {self.function.name} on states "
                f"{first} to {last} of {len(states)}, the first x = {short(states[first])}"
            ) from error
        energies = [answer.energies for answer in answers] or [np.empty(0)]
        slopes = [answer.gradients for answer in answers if answer.gradients is not None]
        failure = answers[-1].failure if answers else None
        if failure is not None:
            failure = replace(failure, row=failure.row + starts[len(answers) - 1])
        nothing = np.empty(states.shape) if gradient else None
        joined = np.concatenate(slopes) if slopes else nothing
        return Answer(np.concatenate(energies), joined, failure)


class InProcess:
    """Evaluates states in another process; what it returns can be sent back.

    Args:
        function: the energy of one state.
    """

    def __init__(self, function: RowFunction) -> None:
        self.function = function

    def __call__(self, part: tuple[Array, bool]) -> Answer:
        """The answer for states (B, D), with gradients or without."""
        answer = evaluate_rows(self.function, *part)
        failure = answer.failure
        if failure is None:
            return answer
        frames = "".join(traceback.format_tb(failure.error.__traceback__))
        try:
            error = pickle.loads(pickle.dumps(failure.error))
        except Exception:  # it cannot be sent
            error = RuntimeError(text_of(failure.error))
        error.add_note(f"in a process of the pool:\n{frames}")
        return replace(answer, failure=replace(failure, error=error))


def short(x: Array) -> str:
    """A state in one line."""
    return " ".join(np.array2string(x, precision=4, threshold=8, edgeitems=3).split())
