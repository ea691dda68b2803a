"""Functions of a batch that compute in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vgs_rl.foreign.rows import Array, FunctionError, Gradient, Misfit, name_of, pair_of, text_of


class NumpyFunction:
    """A function of a NumPy array of shape (B, D) as one of tensors.

    Args:
        function: returns E, shape (B,), or E and ∇E, shape (B, D).
        gradient: ∇E of the same; True where `function` returns it; None where nobody knows it.
    """

    def __init__(self, function: Callable[[Any], Any], gradient: Gradient) -> None:
        self.function, self.gradient = function, gradient
        self.name = name_of(function)
        self.gives_gradient = gradient is not None

    def energy(self, x: Tensor) -> Tensor:
        """E(x), shape (B,)."""
        states = x.detach().cpu().numpy()
        energy = self._call(self.function, states)
        if self.gradient is True:
            energy, _ = pair_of(energy, self.name)
        return self._tensor(energy, states, states.shape[:1])

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E(x), shape (B,), and ∇E(x), shape (B, D)."""
        states = x.detach().cpu().numpy()
        if callable(self.gradient):
            energy = self._call(self.function, states.copy())
            slope = self._call(self.gradient, states)
        else:
            energy, slope = pair_of(self._call(self.function, states), self.name)
        shape = states.shape
        return self._tensor(energy, states, shape[:1]), self._tensor(slope, states, shape)

    def _call(self, function: Callable[[Any], Any], states: Array) -> Any:
        try:
            return function(states)
        except Exception as error:
            raise FunctionError(
                f"{name_of(function)} failed on states of shape {states.shape} in {states.dtype}: "
                f"{text_of(error)}"
            ) from error

    def _tensor(self, values: Any, states: Array, shape: tuple[int, ...]) -> Tensor:
        """What was returned, once it is real and of the right shape."""
        array = np.asarray(values)
        if array.shape != shape or array.dtype.kind not in "fiu":
            what = "energies" if len(shape) == 1 else "gradients"
            raise Misfit(
                f"{self.name} must return real {what} of shape {shape} for states of shape "
                f"{states.shape}, got shape {array.shape} of {array.dtype}"
                + ("; set batched=False if it takes one state" if array.ndim < len(shape) else "")
            )
        if array.dtype.kind != "f" or array.dtype.itemsize > 8:
            array = array.astype(np.float64)
        return torch.from_numpy(np.ascontiguousarray(array))
