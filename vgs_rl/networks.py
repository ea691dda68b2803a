"""Value networks V(x, t): scalar functions with analytic input gradients."""

from __future__ import annotations

import itertools
import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vgs_rl.chain import Chain
from vgs_rl.energy import Energy


class ValueFunction(Protocol):
    """What a value-gradient policy needs: V_t(x) of shape (B,) and ∇V_t(x) of shape (B, D)."""

    def value(self, x: Tensor, t: int | Tensor) -> Tensor:
        """V_t(x) for t < T; t is one step for all rows, or one per row, shape (B,)."""

    def gradient(self, x: Tensor, t: int | Tensor) -> Tensor:
        """∇V_t(x)."""


class _SiluPair(torch.autograd.Function):
    """silu(z) and its derivative, with their joint backward pass in closed form.

    Autograd through the derivative's formula keeps and revisits six tensors per layer; this keeps
    one.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, z: Tensor) -> tuple[Tensor, Tensor]:
        gate = torch.sigmoid(z)
        activation = z * gate
        slope = torch.addcmul(gate, activation, 1 - gate)
        ctx.save_for_backward(activation, gate, slope)
        return activation, slope

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        activation, gate, slope = ctx.saved_tensors  # type: ignore[attr-defined]
        grad_activation, grad_slope = grads
        # silu''(z) = gate (1 - gate) (2 + z (1 - 2 gate)), in terms of what is at hand
        curvature = (1 - gate) * torch.addcmul(gate + slope, activation, gate, value=-1)
        return torch.addcmul(grad_activation * slope, grad_slope, curvature)


class TimeConditionedMLP(nn.Module):
    """V(x, t) = -log N(x; 0, B_t I) tau + D · MLP(x / √B_t, t), the MLP starting at zero.

    The first term is the exact value of a Gaussian target of variance `prior_std`², noised to
    step t: B_t = S_t + prior_std² / A_t². The MLP has SiLU layers, each with a learned embedding
    per step (initialised with Fourier features of t/T); the embedding makes it one function per
    step with shared features.

    Args:
        chain: supplies T, A_t and S_t.
        dim: D.
        prior_std: standard deviation per coordinate that the target may have, roughly.
        width: units per layer.
        depth: hidden layers.
        input_scale: factor on the first layer's initial weights: larger means sharper features.
        temperature: tau.
        generator: initialises the weights.
    """

    base_variance: Tensor

    def __init__(
        self,
        chain: Chain,
        dim: int,
        *,
        prior_std: float,
        width: int = 128,
        depth: int = 3,
        input_scale: float = 2.6,
        temperature: float = 1.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        for name, count in (("width", width), ("depth", depth)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if not (math.isfinite(prior_std) and prior_std > 0):
            raise ValueError(f"prior_std must be a positive number, got {prior_std}")
        self.dim, self.width, self.depth, self.temperature = dim, width, depth, temperature
        base = (chain.S + prior_std**2 / chain.A**2).cpu()
        self.register_buffer("base_variance", base, persistent=False)
        sizes = [dim] + [width] * depth
        self.weights = nn.ParameterList()
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            bound = (input_scale if i == 0 else 1.0) / math.sqrt(fan_in)
            weight = torch.rand(fan_out, fan_in, generator=generator) * 2 - 1
            self.weights.append(nn.Parameter(weight * bound))
        self.embedding = nn.Parameter(self._fourier(chain.num_steps, depth, width, generator))
        self.readout = nn.Parameter(torch.zeros(width))
        self.offset = nn.Parameter(torch.zeros(chain.num_steps))
        self.to(chain.S.device, chain.S.dtype)

    @staticmethod
    def _fourier(steps: int, depth: int, width: int, generator: torch.Generator) -> Tensor:
        """Random smooth functions of t/T, one for each unit: shape (T, depth · width)."""
        time = torch.arange(steps).unsqueeze(-1) / steps
        frequency = torch.randn(depth * width, generator=generator) * 2.0
        phase = torch.rand(depth * width, generator=generator) * 2 * math.pi
        return torch.cos(2 * math.pi * time * frequency + phase)

    def _layers(self, x: Tensor, t: int | Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Last activation (B, width), each layer's slope, and √B_t."""
        spread = self.base_variance[t].sqrt()
        if isinstance(t, Tensor):
            spread = spread.unsqueeze(-1)
        # embedding(): its backward pass is several times faster than that of plain indexing.
        rows = self.embedding[t] if isinstance(t, int) else F.embedding(t, self.embedding)
        shifts = torch.split(rows, self.width, dim=-1)
        hidden, slopes = x / spread, []
        for weight, shift in zip(self.weights, shifts, strict=True):
            hidden, slope = _SiluPair.apply(hidden @ weight.T + shift)  # type: ignore[no-untyped-call]
            slopes.append(slope)
        return hidden, slopes, spread

    def value(self, x: Tensor, t: int | Tensor) -> Tensor:
        """V_t(x), shape (B,); 0 ≤ t < T, one step or one per row."""
        hidden, _, _ = self._layers(x, t)
        variance = self.base_variance[t]
        prior = 0.5 * (x.square().sum(-1) / variance + self.dim * (2 * math.pi * variance).log())
        return self.temperature * prior + self.dim * (hidden @ self.readout + self.offset[t])

    def gradient(self, x: Tensor, t: int | Tensor) -> Tensor:
        """∇V_t(x), shape (B, D), by one analytic backward sweep that autograd can follow."""
        _, slopes, spread = self._layers(x, t)
        flow: Tensor = self.readout * slopes[-1]
        for weight, slope in zip(reversed(self.weights[1:]), reversed(slopes[:-1]), strict=True):
            flow = (flow @ weight) * slope
        learned: Tensor = (flow @ self.weights[0]) / spread
        return self.temperature * x / spread.square() + self.dim * learned


class ExactValue:
    """An energy's exact values as a :class:`ValueFunction`: the oracle (tau = 1)."""

    def __init__(self, energy: Energy, chain: Chain) -> None:
        if not energy.has_value:
            raise ValueError(f"{type(energy).__name__} has no exact values")
        self.energy, self.chain = energy, chain

    def value(self, x: Tensor, t: int | Tensor) -> Tensor:
        """V_t(x), shape (B,); integer t only."""
        return self.energy.value(x, int(t), self.chain)

    def gradient(self, x: Tensor, t: int | Tensor) -> Tensor:
        """∇V_t(x), shape (B, D), detached; integer t only."""
        return self.energy.value_gradient(x, int(t), self.chain)
