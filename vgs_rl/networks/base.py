"""Value networks V(x, t): scalar functions with analytic input gradients."""

from __future__ import annotations

import itertools
import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vgs_rl.chain import Chain
from vgs_rl.conditional.conditions import Conditions
from vgs_rl.energy import Energy


class ValueFunction(Protocol):
    """What a value-gradient policy needs: V_t(x) of shape (B,) and ∇V_t(x) of shape (B, D)."""

    def value(self, x: Tensor, t: int | Tensor) -> Tensor:
        """V_t(x) for t < T; t is one step for all rows, or one per row, shape (B,)."""

    def gradient(self, x: Tensor, t: int | Tensor) -> Tensor:
        """∇V_t(x)."""


class SiluPair(torch.autograd.Function):
    """silu(z) and its derivative, with their joint backward pass in closed form.

    Autograd through the derivative's formula keeps and revisits six tensors per layer; this keeps
    one.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, z: Tensor) -> tuple[Tensor, Tensor]:
        """Activation and slope."""
        gate = torch.sigmoid(z)
        activation = z * gate
        slope = torch.lerp(activation, activation.new_ones(()), gate)  # gate + z gate (1 - gate)
        ctx.save_for_backward(activation, gate, slope)
        return activation, slope

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        """See the class."""
        activation, gate, slope = ctx.saved_tensors  # type: ignore[attr-defined]
        grad_activation, grad_slope = grads
        # silu''(z) = gate (1 - gate) (2 + z (1 - 2 gate)), in terms of what is at hand
        curvature = (1 - gate) * torch.addcmul(gate + slope, activation, gate, value=-1)
        return torch.addcmul(grad_activation * slope, grad_slope, curvature)


def silu_pair(z: Tensor) -> tuple[Tensor, Tensor]:
    """silu(z) and its derivative; without gradients it overwrites z, which costs less memory."""
    if torch.is_grad_enabled():
        pair: tuple[Tensor, Tensor] = SiluPair.apply(z)  # type: ignore[no-untyped-call]
        return pair
    gate = torch.sigmoid(z)
    activation = z.mul_(gate)
    return activation, torch.lerp(activation, activation.new_ones(()), gate, out=gate)


class TimeConditionedMLP(nn.Module):
    """V(x, t) = -log N(x; 0, B_t I) tau + D · MLP(x / √B_t, t), the MLP starting at zero.

    The first term is the exact value of a Gaussian target of variance `prior_std`², noised to
    step t: B_t = S_t + prior_std² / A_t². The MLP has SiLU layers, each with a learned embedding
    per step (initialised with Fourier features of t/T); the embedding makes it one function per
    step with shared features.

    Two further parts, off by default, fit targets whose coordinates differ in kind:
    `radii` adds inputs ½ log((S_t + Σ_i w_ki² x_i²) / B_t), k = 1 … radii, each over
    some of the coordinates at first: log-scale features for densities whose width spans orders of
    magnitude. `splines` adds Σ_i g_ti(x_i) to V, each g_ti a cubic spline on ±3.5 √B_t, linear
    beyond: what a density has of independent coordinates is learned one coordinate at a time.

    Of rows (x, c) with parameters c, V is a function of x for every c. Features of c shift every
    layer, as the embedding of the step does, and tilt the last one's weights. The gradient along c
    is 0.

    Args:
        chain: supplies T, A_t and S_t.
        dim: D, without parameters.
        prior_std: standard deviation per coordinate that the target may have, roughly.
        width: units per layer.
        depth: hidden layers.
        input_scale: factor on the first layer's initial weights: larger means sharper features.
        radii: number of log-radius inputs.
        splines: number of coefficients of each spline.
        temperature: tau.
        conditions: the parameters, the last coordinates of a state; None where there are none.
        generator: initialises the weights.
    """

    base_variance: Tensor
    tail_variance: Tensor
    noise: Tensor
    shrink: Tensor

    # Adam moves every parameter at the same rate; splines have to grow to the size of barriers.
    SPLINE_SCALE = 16.0
    SPLINE_REACH = 3.5

    def __init__(
        self,
        chain: Chain,
        dim: int,
        *,
        prior_std: float,
        tail_std: float | None = None,
        width: int = 128,
        depth: int = 3,
        input_scale: float = 2.6,
        radii: int = 0,
        splines: int = 0,
        temperature: float = 1.0,
        conditions: Conditions | None = None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        for name, count in (("width", width), ("depth", depth)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if radii < 0:
            raise ValueError(f"radii must be at least 0, got {radii}")
        if splines and splines < 4:
            raise ValueError(f"splines must be 0 or at least 4, got {splines}")
        if not (math.isfinite(prior_std) and prior_std > 0):
            raise ValueError(f"prior_std must be a positive number, got {prior_std}")
        self.dim, self.width, self.depth, self.temperature = dim, width, depth, temperature
        self.register_buffer("base_variance", torch.zeros(chain.num_steps + 1))
        self.register_buffer("tail_variance", torch.zeros(chain.num_steps + 1))
        self.register_buffer("noise", chain.S.clone(), persistent=False)
        self.register_buffer("shrink", chain.A.clone(), persistent=False)
        sizes = [dim + radii] + [width] * depth
        self.weights = nn.ParameterList()
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            bound = (input_scale if i == 0 else 1.0) / math.sqrt(fan_in)
            weight = torch.rand(fan_out, fan_in, generator=generator) * 2 - 1
            self.weights.append(nn.Parameter(weight * bound))
        self.embedding = nn.Parameter(self._fourier(chain.num_steps, depth, width, generator))
        self.readout = nn.Parameter(torch.zeros(width))
        self.offset = nn.Parameter(torch.zeros(chain.num_steps))
        self.mixture_bias = nn.Parameter(torch.zeros(chain.num_steps, dim))
        self.mixture_weight = nn.Parameter(torch.zeros(dim, width))
        self.radii, self.splines, self.conditions = radii, splines, conditions
        if conditions is not None:
            features = FEATURES * conditions.size
            shifts = torch.randn(features, depth * width, generator=generator)
            self.condition_shift = nn.Parameter(shifts / math.sqrt(features))
            self.condition_tilt = nn.Parameter(torch.zeros(features, width))
        if radii:
            # All coordinates but one, in turn; then random halves.
            subset = torch.rand(radii, dim, generator=generator).argsort(-1) < (dim + 1) // 2
            subset[:dim] = ~torch.eye(dim, dtype=torch.bool)[:radii]
            self.radius = nn.Parameter(subset / subset.sum(-1, keepdim=True).sqrt())
        if splines:
            self.heights = nn.Parameter(torch.zeros(chain.num_steps * dim * splines, 1))
        self.to(chain.S.device, chain.S.dtype)
        self.restart(prior_std, tail_std)

    @property
    def prior_std(self) -> float:
        """Standard deviation of the Gaussian that the first term is the value of."""
        return float(self.base_variance[-1].sqrt())

    @torch.no_grad()
    def restart(self, prior_std: float, tail_std: float | None = None) -> None:
        """Becomes the exact value of N(0, prior_std² I), of `tail_std` if given, once more.

        Hidden layers stay as they are.
        """
        for buffer, std in (
            (self.base_variance, prior_std),
            (self.tail_variance, tail_std or prior_std),
        ):
            buffer.copy_(self.noise + std**2 / self.shrink.square())
        # The best mixture of score targets for that Gaussian.
        odds = prior_std**2 / (self.shrink.square() * self.noise)[:-1]
        self.mixture_bias.copy_(odds.log().unsqueeze(-1).expand_as(self.mixture_bias))
        for learned in (self.readout, self.offset, self.mixture_weight):
            learned.zero_()
        if self.conditions is not None:
            self.condition_tilt.zero_()
        if self.splines:
            self.heights.zero_()

    @staticmethod
    def _fourier(steps: int, depth: int, width: int, generator: torch.Generator) -> Tensor:
        """Random smooth functions of t/T, one for each unit: shape (T, depth · width)."""
        time = torch.arange(steps).unsqueeze(-1) / steps
        frequency = torch.randn(depth * width, generator=generator) * 2.0
        phase = torch.rand(depth * width, generator=generator) * 2 * math.pi
        return torch.cos(2 * math.pi * time * frequency + phase)

    def _layers(self, x: Tensor, t: int | Tensor) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
        """Last activation (B, width), each layer's slope, √B_t and the squared radii (B, K)."""
        variance, noise = self.base_variance[t], self.noise[t]
        if isinstance(t, Tensor):
            variance, noise = variance.unsqueeze(-1), noise.unsqueeze(-1)
        spread = variance.sqrt()
        shift = _rows(self.embedding, t)
        if self.conditions is not None:
            shift = shift + self._features(x) @ self.condition_shift
            x = x[:, : self.dim]
        shifts = torch.split(shift, self.width, dim=-1)
        hidden, slopes, radii = x / spread, [], x
        if self.radii:
            radii = noise + x.square() @ self.radius.square().T
            hidden = torch.cat([hidden, 0.5 * (radii / variance).log()], dim=-1)
        for weight, shift in zip(self.weights, shifts, strict=True):
            hidden, slope = silu_pair(torch.addmm(shift, hidden, weight.T))
            slopes.append(slope)
        return hidden, slopes, spread, radii

    def _features(self, x: Tensor) -> Tensor:
        """Smooth functions of the parameters of rows (B, D + C), of size about 1: (B, F)."""
        assert self.conditions is not None
        return condition_features(self.conditions, x[:, self.dim :])

    def _weights_of(self, x: Tensor) -> Tensor:
        """The last layer's weights: one set, or one for each row."""
        if self.conditions is None:
            return self.readout
        return self.readout + self._features(x) @ self.condition_tilt

    def _spline(self, x: Tensor, t: int | Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_i g_ti(x_i), shape (B,), and its gradient, shape (B, D)."""
        cells = self.splines - 3
        scale = cells / (2 * self.SPLINE_REACH)
        u = (x / spread + self.SPLINE_REACH) * scale
        inside = u.clamp(0.0, cells)
        cell = inside.detach().long().clamp_max(cells - 1)
        f = inside - cell
        coordinate = torch.arange(self.dim, device=x.device)
        row = (t.unsqueeze(-1) if isinstance(t, Tensor) else t) * self.dim + coordinate
        index = (row * self.splines + cell).unsqueeze(-1) + torch.arange(4, device=x.device)
        heights = self.SPLINE_SCALE * F.embedding(index, self.heights).squeeze(-1)  # (B, D, 4)
        g = 1 - f
        basis = torch.stack([g**3, 3 * f**3 - 6 * f**2 + 4, 3 * g**3 - 6 * g**2 + 4, f**3], dim=-1)
        slope = torch.stack([-(g**2), 3 * f**2 - 4 * f, 4 * g - 3 * g**2, f**2], dim=-1)
        slopes = 0.5 * (heights * slope).sum(-1)
        values = (heights * basis).sum(-1) / 6 + slopes * (u - inside)
        return values.sum(-1), slopes * (scale / spread)

    def value(self, x: Tensor, t: int | Tensor) -> Tensor:
        """V_t(x), shape (B,); 0 ≤ t < T, one step or one per row."""
        hidden, _, spread, _ = self._layers(x, t)
        if self.conditions is None:
            read = hidden @ self.readout
        else:
            read = (hidden * self._weights_of(x)).sum(-1)
        value = self._prior(x, t) + self.dim * (read + self.offset[t])
        if self.splines:
            value = value + self._spline(x[:, : self.dim], t, spread)[0]
        return value

    def _prior(self, x: Tensor, t: int | Tensor) -> Tensor:
        """What V_t is without the MLP, shape (B,)."""
        variance = self.tail_variance[t]
        squares = x[:, : self.dim].square().sum(-1) / variance
        return 0.5 * self.temperature * (squares + self.dim * (2 * math.pi * variance).log())

    def _prior_gradient(self, x: Tensor, t: int | Tensor) -> Tensor:
        """Its gradient, shape (B, D)."""
        variance = self.tail_variance[t]
        x = self._padded(x[:, : self.dim])
        return self.temperature * x / (variance.unsqueeze(-1) if variance.ndim else variance)

    def _padded(self, v: Tensor) -> Tensor:
        """Numbers along x (B, D) as those of rows, 0 along the parameters."""
        return v if self.conditions is None else F.pad(v, (0, self.conditions.size))

    def gradient(self, x: Tensor, t: int | Tensor) -> Tensor:
        """∇V_t(x), shape (B, D), by one analytic backward sweep that autograd can follow."""
        return self._sweep(x, t)[0]

    def gradient_and_mixture(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """∇V_t(x) and the mixture coefficients c_t(x) in (0, 1) of its targets, both (B, D).

        The coefficients see the hidden layer but do not shape it.
        """
        gradient, hidden = self._sweep(x, t)
        odds = hidden.detach() @ self.mixture_weight.T + _rows(self.mixture_bias, t)
        return gradient, torch.sigmoid(self._padded(odds))

    def _sweep(self, x: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """∇V_t(x) and the last activation."""
        learned, hidden = self._learned(x, t)
        return self._prior_gradient(x, t) + learned, hidden

    def _learned(self, x: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """What of ∇V_t(x) is learned, and the last activation."""
        hidden, slopes, spread, radii = self._layers(x, t)
        flow = self._weights_of(x) * slopes[-1]
        for weight, slope in zip(reversed(self.weights[1:]), reversed(slopes[:-1]), strict=True):
            flow = (flow @ weight) * slope
        flow = flow @ self.weights[0]
        learned = flow[:, : self.dim] / spread
        x = x[:, : self.dim]
        if self.radii:
            learned = learned + x * ((flow[:, self.dim :] / radii) @ self.radius.square())
        gradient: Tensor = self.dim * learned
        if self.splines:
            gradient = gradient + self._spline(x, t, spread)[1]
        return self._padded(gradient), hidden


FEATURES = 5  # of each parameter


def condition_features(conditions: Conditions, c: Tensor) -> Tensor:
    """Smooth functions of parameters c (B, C), of size about 1, shape (B, F)."""
    u = conditions.unit(c)
    angle = 0.5 * math.pi * u
    waves = [wave(k * angle) for k in (1, 2) for wave in (torch.sin, torch.cos)]
    return torch.cat([u, *waves], -1)


def _rows(table: Tensor, t: int | Tensor) -> Tensor:
    """Row t of a table, or one row for each t."""
    # embedding(): its backward pass is several times faster than that of plain indexing.
    return table[t] if isinstance(t, int) else F.embedding(t, table)


class ExactValue:
    """An energy's exact values as a :class:`ValueFunction`: the oracle (tau = 1)."""

    def __init__(self, energy: Energy, chain: Chain) -> None:
        if not energy.has_value:
            raise ValueError(f"{type(energy).__name__} has no exact values")
        self.energy, self.chain = energy, chain

    def value(self, x: Tensor, t: int | Tensor) -> Tensor:
        """V_t(x), shape (B,); integer t only."""
        return self.energy.hand_over(self.energy.value, x, int(t), self.chain).to(x)

    def gradient(self, x: Tensor, t: int | Tensor) -> Tensor:
        """∇V_t(x), shape (B, D), detached; integer t only."""
        return self.energy.hand_over(self.energy.value_gradient, x, int(t), self.chain).to(x)
