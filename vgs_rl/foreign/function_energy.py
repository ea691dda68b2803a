"""Functions as energies, whatever library they compute with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, get_args

import torch
from torch import Tensor

from vgs_rl.checks import count_of
from vgs_rl.energy import Energy, Framework
from vgs_rl.foreign.jax_function import JaxFunction
from vgs_rl.foreign.numpy_function import NumpyFunction
from vgs_rl.foreign.rows import FunctionOfOne, Gradient, Rows
from vgs_rl.foreign.torch_function import TorchFunction

NUMPY_TYPES = (torch.float16, torch.float32, torch.float64)


class FunctionEnergy(Energy):
    """A plain function as an energy.

    Args:
        function: E(x) for states x of shape (B, D); returns shape (B,).
        dim: D.
        with_gradient: E(x), shape (B,), and ∇E(x), shape (B, D); None leaves ∇E to autograd or,
            where it sees nothing, to central differences.
        dtype: floating type that the function computes in, or None where it accepts any.

    Raises:
        TypeError: if it cannot be called.
        ValueError: if `dim` is no whole number from 1.

    Example:
        >>> ring = FunctionEnergy(lambda x: 5.0 * (x.norm(dim=-1) - 3.0) ** 2, dim=2)
        >>> ring(torch.tensor([[3.0, 0.0]]))
        tensor([0.])
    """

    _ADVICE = "compute in torch, or give the gradient to Energy.from_function"

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        dim: int,
        *,
        with_gradient: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not callable(function):
            raise TypeError(f"function must be callable, got {function!r}")
        self.function, self.dim = function, count_of("dim", dim)
        self.with_own_gradient, self.dtype = with_gradient, dtype

    def energy(self, x: Tensor) -> Tensor:
        """E(x), shape (B,)."""
        return self.function(x)

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Energy.energy_and_gradient`."""
        if self.with_own_gradient is None:
            return super().energy_and_gradient(x)
        return self.with_own_gradient(x)

    @property
    def _gives_gradient(self) -> bool:
        return self.with_own_gradient is not None


class Adapter(Protocol):
    """A function of any library as functions of tensors.

    Attributes:
        gives_gradient: whether it has a gradient to give.
    """

    gives_gradient: bool

    def energy(self, x: Tensor) -> Tensor:
        """E(x), shape (B,)."""

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E(x), shape (B,), and ∇E(x), shape (B, D)."""


def energy_from_function(
    function: Callable[[Any], Any],
    dim: int,
    *,
    framework: Framework = "torch",
    batched: bool = True,
    gradient: Gradient = None,
    processes: int = 0,
    dtype: torch.dtype | None = None,
) -> FunctionEnergy:
    """See :meth:`vgs_rl.Energy.from_function`."""
    dim, processes = count_of("dim", dim), count_of("processes", processes, least=0)
    _check_form(function, framework, batched, gradient, processes, dtype)
    adapter: Adapter
    if framework == "jax":
        adapter = JaxFunction(function, dim, batched=batched, gradient=gradient, dtype=dtype)
    elif framework == "numpy":
        dtype = dtype or torch.float64
        if batched:
            adapter = NumpyFunction(function, gradient)
        else:
            adapter = Rows(FunctionOfOne(function, gradient, tensors=False), processes)
    elif processes:
        adapter = Rows(FunctionOfOne(function, gradient, tensors=True), processes)
    elif batched and gradient is None:
        return FunctionEnergy(function, dim, dtype=dtype)
    else:
        adapter = TorchFunction(function, batched=batched, gradient=gradient)
    own = adapter.energy_and_gradient if adapter.gives_gradient else None
    return FunctionEnergy(adapter.energy, dim, with_gradient=own, dtype=dtype)


def _check_form(
    function: Any, framework: Any, batched: Any, gradient: Any, processes: int, dtype: Any
) -> None:
    """Raises an error that names the first argument that is wrong, or does not fit another."""
    if not callable(function):
        raise TypeError(f"function must be callable, got {function!r}")
    if framework not in get_args(Framework):
        known = ", ".join(get_args(Framework))
        raise ValueError(f"framework must be one of {known}, got {framework!r}")
    if not isinstance(batched, bool):
        raise ValueError(f"batched must be True or False, got {batched!r}")
    if not (gradient is None or gradient is True or callable(gradient)):
        raise ValueError(
            "gradient must be None, True (the function returns it, too) or a function, "
            f"got {gradient!r}"
        )
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype must be a floating torch.dtype or None, got {dtype!r}")
    if framework == "numpy" and dtype not in (None, *NUMPY_TYPES):
        raise ValueError(f"dtype must be one that NumPy has, got {dtype}")
    if processes and framework == "jax":
        raise ValueError(
            f"processes must be 0 for framework='jax', which is compiled, got {processes}"
        )
    if processes and batched:
        raise ValueError(
            f"processes must be 0 for a function of a batch, got {processes}; set batched=False if "
            "it takes one state"
        )
