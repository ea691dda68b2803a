"""Gradients of energies that autograd does not see: given with the values, or by differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@torch.no_grad()
def central_differences(energy: Callable[[Tensor], Tensor], x: Tensor, values: Tensor) -> Tensor:
    """∇E by central differences, at 2 D evaluations per state, in the type that E returns.

    Args:
        energy: E(x) for states of shape (B, D); returns shape (B,).
        x: states, shape (B, D).
        values: E at x, shape (B,); its type says how many digits E has.

    Returns:
        Gradients, shape (B, D).

    Raises:
        ValueError: if the values are no tensor.
    """
    if not isinstance(values, Tensor):
        raise ValueError(
            f"energy must return a tensor, got {type(values).__name__}: give a function of NumPy "
            'to Energy.from_function(..., framework="numpy")'
        )
    # Cancellation grows as the step falls, curvature as it rises.
    digits = torch.finfo(x.dtype).eps * torch.finfo(values.dtype).eps
    step = digits ** (1 / 6) * x.abs().clamp_min(1.0)
    gradient = torch.empty(x.shape, dtype=values.dtype, device=values.device)
    for i in range(x.shape[-1]):
        high, low = x.clone(), x.clone()
        high[:, i] += step[:, i]
        low[:, i] -= step[:, i]
        rise = energy(high.clone()) - energy(low.clone())
        gradient[:, i] = rise / (high[:, i] - low[:, i]).to(rise)
    return gradient


def given_gradient(x: Tensor, evaluate: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """E(x), shape (B,), whose derivative by x (B, D) is the gradient that `evaluate` gives."""
    energy: Tensor = _GivenGradient.apply(x, evaluate)  # type: ignore[no-untyped-call]
    return energy


class _GivenGradient(torch.autograd.Function):
    """E as a function whose gradient was computed with it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, evaluate: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        energy, gradient = evaluate(x)
        ctx.save_for_backward(gradient)
        return energy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return slope.unsqueeze(-1) * gradient, None
