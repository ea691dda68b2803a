"""JAX functions, compiled, with the gradients that JAX takes of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from vgs_rl.checks import require_module
from vgs_rl.foreign.rows import FunctionError, Gradient, Misfit, name_of, pair_of, text_of


class JaxFunction:
    """A JAX function as one of tensors, shape (B, D).

    It is compiled for float32 and for float64 where states of that type come; 64 bits are switched
    on for the call alone, by ``jax.enable_x64``. JAX compiles anew for each shape, so batches are
    filled up to at most a quarter more states, with copies of the last one: there are then four
    shapes for each doubling of B. Others cross by DLPack without a copy.

    Args:
        function: E of a batch (B, D), or of one state (D,); or E and ∇E.
        dim: D.
        batched: whether it takes a batch.
        gradient: ∇E of the same; True where `function` returns it; None where JAX derives it.
        dtype: floating type of the states, or None for any.

    Raises:
        ImportError: if JAX is not installed, or older than 0.8.
        FunctionError: if JAX cannot trace the function.
        ValueError: if it returns other shapes, or no floating type.
    """

    gives_gradient = True

    def __init__(
        self,
        function: Callable[[Any], Any],
        dim: int,
        *,
        batched: bool,
        gradient: Gradient,
        dtype: torch.dtype | None,
    ) -> None:
        require_module("framework='jax'", "jax", "jax")
        _require_local_digits()
        self.function, self.batched, self.gradient = function, batched, gradient
        self.name = name_of(function)
        self._compile()
        self._check(dim, dtype)

    def _compile(self) -> None:
        import jax

        self._jitted = jax.jit(self._energy), jax.jit(self._energy_and_gradient)

    def __getstate__(self) -> dict[str, Any]:
        """Without the compiled functions, which belong to this process."""
        return {name: value for name, value in vars(self).items() if name != "_jitted"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._compile()

    def energy(self, x: Tensor) -> Tensor:
        """E(x), shape (B,)."""
        (energy,) = self._call(0, x)
        return energy

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E(x), shape (B,), and ∇E(x), shape (B, D)."""
        energy, gradient = self._call(1, x)
        return energy, gradient

    # --- in JAX -------------------------------------------------------------------------------

    def _energy(self, x: Any) -> tuple[Any]:
        import jax

        function = self._first if self.gradient is True else self.function
        return (function(x) if self.batched else jax.vmap(function)(x),)

    def _energy_and_gradient(self, x: Any) -> tuple[Any, Any]:
        import jax

        if self.gradient is True:
            function = self._pair
        elif callable(self.gradient):
            function = self._beside
        elif self.batched:  # rows are independent: the gradient of the sum has one in each row
            energy, pull_back = jax.vjp(self.function, x)
            return energy, pull_back(jax.numpy.ones_like(energy))[0]
        else:
            function = jax.value_and_grad(self.function)
        energy, gradient = function(x) if self.batched else jax.vmap(function)(x)
        return energy, gradient

    def _pair(self, x: Any) -> tuple[Any, Any]:
        return pair_of(self.function(x), self.name)

    def _first(self, x: Any) -> Any:
        return self._pair(x)[0]

    def _beside(self, x: Any) -> tuple[Any, Any]:
        assert callable(self.gradient)
        return self.function(x), self.gradient(x)

    # --- the border ---------------------------------------------------------------------------

    def _check(self, dim: int, dtype: torch.dtype | None) -> None:
        """Traces the function, without a call of it, and looks at the shapes that come out."""
        import jax

        wide = jax.config.jax_enable_x64 if dtype is None else dtype == torch.float64
        rows = dim + 1
        with _digits(wide):
            x = jax.ShapeDtypeStruct((rows, dim), "float64" if wide else "float32")
            try:
                energy = jax.eval_shape(self._energy, x)[0]
                if getattr(energy, "shape", None) == (rows,):
                    _, gradient = jax.eval_shape(self._energy_and_gradient, x)
                else:
                    gradient = x
            except Misfit:
                raise
            except Exception as error:
                takes = "" if self.batched else ", one at a time"
                raise FunctionError(
                    f"{self.name} failed where JAX traced it, on states of shape "
                    f"{(rows, dim)}{takes}: {text_of(error)}"
                ) from error
        for what, got, shape in (("E", energy, (rows,)), ("∇E", gradient, (rows, dim))):
            if getattr(got, "shape", None) != shape or got.dtype.kind != "f":
                given = f"shape {got.shape} of {got.dtype}" if hasattr(got, "shape") else f"{got}"
                expected = shape if self.batched else shape[1:]
                found = given if self.batched else f"{given} over {rows} states"
                raise Misfit(
                    f"{self.name} must give {what} of shape {expected} and a floating type for "
                    f"{'states' if self.batched else 'one state'} of shape "
                    f"{(rows, dim) if self.batched else (dim,)}, got {found}"
                    + ("; set batched=False if it takes one state" if self.batched else "")
                )

    def _call(self, which: int, x: Tensor) -> tuple[Tensor, ...]:
        import jax

        x = x.detach()
        n = len(x)
        if n == 0:
            return (x.new_empty(0), x.new_empty(x.shape))[: which + 1]
        if filling := filled(n) - n:
            x = torch.cat([x, x[-1:].expand(filling, -1)])
        if x.device.type != "cpu" and jax.default_backend() == "cpu":
            x = x.cpu()
        with _digits(x.dtype == torch.float64):
            try:
                given = jax.dlpack.from_dlpack(x.contiguous())
                results = jax.block_until_ready(self._jitted[which](given))
            except Misfit:
                raise
            except Exception as error:
                raise FunctionError(
                    f"{self.name} failed on states of shape {(n, x.shape[1])} in {x.dtype}: "
                    f"{text_of(error)}"
                ) from error
        return tuple(from_dlpack(result)[:n] for result in results)


def filled(n: int) -> int:
    """The least number from n on of three leading binary digits and zeros: 9 gives 10."""
    step = 1 << max(0, (n - 1).bit_length() - 3)
    return -(-n // step) * step


def _require_local_digits() -> None:
    import jax

    if not hasattr(jax, "enable_x64"):  # for one call; before 0.8 it was experimental
        raise ImportError(f"framework='jax' needs jax 0.8 or newer, got {jax.__version__}")


def _digits(wide: bool) -> AbstractContextManager[Any]:
    """64 bits within, where they are wanted; else what the user has set."""
    if not wide:
        return nullcontext()
    import jax

    return jax.enable_x64(True)  # type: ignore[no-any-return]
