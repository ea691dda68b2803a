"""Torch functions that take one state, or bring their own gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vgs_rl.foreign.rows import FunctionError, Gradient, Misfit, name_of, pair_of, short, text_of


class TorchFunction:
    """A torch function of any form as one of states (B, D).

    Args:
        function: E of a batch (B, D), or of one state (D,); or E and ∇E.
        batched: whether it takes a batch.
        gradient: ∇E of the same; True where `function` returns it; None leaves it to autograd.
    """

    def __init__(
        self, function: Callable[[Any], Any], *, batched: bool, gradient: Gradient
    ) -> None:
        self.batched, self.gradient = batched, gradient
        self.name = name_of(function)
        self.gives_gradient = gradient is not None
        self.function = function if batched else OneByOne(function)
        self.slope = gradient if batched or not callable(gradient) else OneByOne(gradient)

    def energy(self, x: Tensor) -> Tensor:
        """E(x), shape (B,); autograd sees through it where it sees through the function."""
        if len(x) == 0 and not self.batched:
            return x.sum(-1)
        result = self.function(x)
        energy: Tensor = pair_of(result, self.name)[0] if self.gradient is True else result
        return energy

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E(x), shape (B,), and ∇E(x), shape (B, D)."""
        if len(x) == 0 and not self.batched:
            return x.sum(-1), x
        if callable(self.slope):
            return self.function(x.clone()), self.slope(x)
        return pair_of(self.function(x), self.name)


class OneByOne:
    """A function of one state (D,) as one of a batch: it returns tensors, or pairs of them.

    Args:
        function: what is called.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function, self.name = function, name_of(function)

    def __call__(self, x: Tensor) -> Any:
        """The results for states x of shape (B, D), stacked."""
        results = [self._of_one(row, len(x), state) for row, state in enumerate(x.unbind())]
        if isinstance(results[0], tuple):
            return tuple(torch.stack(each) for each in zip(*results, strict=True))
        return torch.stack(results)

    def _of_one(self, row: int, count: int, x: Tensor) -> Any:
        try:
            result = self.function(x)
        except Exception as error:
            raise FunctionError(
                f"{self.name} failed on state {row} of {count}, "
                f"x = {short(x.detach().double().cpu().numpy())}: {text_of(error)}"
            ) from error
        parts = result if isinstance(result, tuple | list) else (result,)
        for part in parts:
            if not isinstance(part, Tensor):
                raise Misfit(f"{self.name} must return tensors, got {type(part).__name__}")
        return tuple(parts) if isinstance(result, tuple | list) else result
