"""Starts pi_0(x | c) of conditional energies: densities of x whose numbers depend on c."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vgs_rl.chain import Chain
from vgs_rl.conditional.conditions import Conditions
from vgs_rl.conditional.energy import JointEnergy
from vgs_rl.energy import Energy
from vgs_rl.geometry import Geometry
from vgs_rl.starts.base import GaussianStart, Start, StartConfig
from vgs_rl.starts.make import NoisedStart, start_of


class ConditionalStart(Start):
    """A density of x for every c; its samples are rows (x, c), with c as training draws it.

    There is one start of x for each knot of the parameters' range (:class:`Conditions`).

    Args:
        energy: of the rows.
        conditions: the parameters.
        starts: one for each knot.
    """

    def __init__(self, energy: JointEnergy, conditions: Conditions, starts: list[Start]) -> None:
        super().__init__(energy.geometry)
        self.conditions, self.moving = conditions, energy.geometry.moving
        self.starts = nn.ModuleList(starts)
        self.of_target = starts[0].of_target
        self.register_buffer("anchor", torch.zeros(()), persistent=False)  # device and dtype

    anchor: Tensor

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, D) and values of the parameters (B, C) of rows (B, D + C)."""
        return x[:, : self.moving], x[:, self.moving :]

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :meth:`Start.sample`; the parameters' values are drawn first."""
        return self.sample_at(self.conditions.draw(n, generator, self.anchor.dtype), generator)

    @abstractmethod
    def sample_at(self, c: Tensor, generator: torch.Generator) -> Tensor:
        """One row (x, c) for each value c (B, C): shape (B, D + C), detached."""

    def widen(self, factor: float) -> None:
        """See :meth:`Start.widen`."""
        for start in self._starts():
            start.widen(factor)

    def _starts(self) -> list[Start]:
        return [start for start in self.starts if isinstance(start, Start)]


class ScaledStart(ConditionalStart):
    """N(0, s_0(c)² I), log s_0 interpolated between the knots."""

    def _log_scale(self, c: Tensor) -> Tensor:
        """Log s_0 at values c (B, C): shape (B,)."""
        scales: list[Tensor] = [
            start.log_scale for start in self.starts if isinstance(start, GaussianStart)
        ]
        return self.conditions.hats(c) @ torch.stack(scales)

    def sample_at(self, c: Tensor, generator: torch.Generator) -> Tensor:
        """See :meth:`ConditionalStart.sample_at`."""
        z = torch.randn(
            len(c), self.geometry.dim, generator=generator, device=c.device, dtype=c.dtype
        )
        z = self.geometry.tangent(z, z)[:, : self.moving]
        return torch.cat([z * self._log_scale(c).detach().exp().unsqueeze(-1), c], -1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log pi_0(x | c) at rows (B, D + C); (B,)."""
        x, c = self.parts(x)
        log_scale = self._log_scale(c)
        log_norm = self.geometry.effective_dim * (log_scale + 0.5 * math.log(2 * math.pi))
        return -0.5 * x.square().sum(-1) * (-2 * log_scale).exp() - log_norm

    @torch.no_grad()
    def fit(self, x: Tensor, generator: torch.Generator, *, rate: float = 1.0) -> None:
        """Moves s_0² at each knot towards E‖x‖²/D there."""
        x, c = self.parts(x)
        squares = x.square().sum(-1) / self.geometry.effective_dim
        variances = self.conditions.fit(c, squares).clamp_min(1e-3 * squares.mean())
        for start, variance in zip(self.starts, variances, strict=True):
            assert isinstance(start, GaussianStart)
            mixed = torch.lerp((2 * start.log_scale).exp(), variance.to(start.log_scale), rate)
            start.log_scale.copy_(0.5 * mixed.log())


class MixedStart(ConditionalStart):
    """Σ_k h_k(c) pi_k(x): near a knot its start, between knots a mixture of theirs.

    The hat functions h_k sum to 1, so that it is a density of x at every c.
    """

    def sample_at(self, c: Tensor, generator: torch.Generator) -> Tensor:
        """See :meth:`ConditionalStart.sample_at`."""
        hats = self.conditions.hats(c)
        uniform = torch.rand(len(c), 1, generator=generator, device=c.device, dtype=c.dtype)
        k = (uniform * hats.sum(-1, keepdim=True) > hats.cumsum(-1)[:, :-1]).sum(-1)
        # Rows of all starts, of which each takes one: starts are cheap, and a batch has few shapes.
        x = torch.stack([start.sample(len(c), generator) for start in self._starts()])
        return torch.cat([x[k, torch.arange(len(c), device=c.device)], c], -1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log pi_0(x | c) at rows (B, D + C); (B,)."""
        x, c = self.parts(x)
        parts = torch.stack([start.log_prob(x) for start in self._starts()], -1)
        return torch.logsumexp(parts + self.conditions.hats(c).log(), -1)

    def fit(self, x: Tensor, generator: torch.Generator, *, rate: float = 1.0) -> None:
        """Fits each knot's start to rows that are drawn with probability h_k(c)."""
        x, c = self.parts(x)
        for start, hats in zip(self._starts(), self.conditions.hats(c).T, strict=True):
            uniform = torch.rand(len(x), generator=generator, device=x.device, dtype=x.dtype)
            near = x[uniform < hats]
            if len(near) >= self.LEAST_ROWS:
                start.fit(near, generator, rate=rate)

    LEAST_ROWS = 100  # fewer say nothing of a mixture


class NoisedMixedStart(MixedStart):
    """The same of starts that are known at every step (:class:`NoisedMixtureStart`).

    Noising leaves c, so V_t(x, c) = -log Σ_k h_k(c) exp(-V_kt(x)) is the value of that mixture.
    """

    scale: Tensor
    noise: Tensor

    def __init__(
        self, energy: JointEnergy, conditions: Conditions, starts: Sequence[NoisedStart]
    ) -> None:
        super().__init__(energy, conditions, list(starts))
        for name in ("scale", "noise"):
            self.register_buffer(name, getattr(starts[0], name).clone(), persistent=False)

    @property
    def width(self) -> Tensor:
        """Mean variance of the target within components, over the knots; a scalar."""
        return torch.stack([start.width for start in self._noised()]).mean()

    def _noised(self) -> list[NoisedStart]:
        return [start for start in self.starts if isinstance(start, NoisedStart)]

    def _parts(self, x: Tensor, c: Tensor, t: int | Tensor) -> Tensor:
        values = torch.stack([start.value(x, t) for start in self._noised()], -1)
        return self.conditions.hats(c).log() - values

    def value(self, x: Tensor, t: int | Tensor) -> Tensor:
        """V_t at rows (B, D + C); (B,)."""
        return -torch.logsumexp(self._parts(*self.parts(x), t), -1)

    def value_gradient(self, x: Tensor, t: int | Tensor) -> Tensor:
        """Its gradient (B, D + C), 0 along the parameters, in closed form."""
        x, c = self.parts(x)
        share = torch.softmax(self._parts(x, c, t), -1)
        slopes = torch.stack([start.value_gradient(x, t) for start in self._noised()], -1)
        slope = (slopes * share.unsqueeze(1)).sum(-1)
        return nn.functional.pad(slope, (0, c.shape[1]))


class FixedConditions(Start):
    """The start at one value of the parameters: rows (x, c) with that c.

    Args:
        of: the start of all values.
        condition: c, shape (C,).
    """

    def __init__(self, of: ConditionalStart, condition: Tensor) -> None:
        super().__init__(of.geometry)
        self.of_target = of.of_target
        self.of = of
        self.condition = condition

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :meth:`Start.sample`."""
        return self.of.sample_at(self.condition.to(self.of.anchor).expand(n, -1), generator)

    def log_prob(self, x: Tensor) -> Tensor:
        """See :meth:`Start.log_prob`."""
        return self.of.log_prob(x)

    def widen(self, factor: float) -> None:
        """See :meth:`Start.widen`."""
        self.of.widen(factor)

    def fit(self, x: Tensor, generator: torch.Generator, *, rate: float = 1.0) -> None:
        """See :meth:`Start.fit`."""
        self.of.fit(x, generator, rate=rate)


class WithoutParameters:
    """The coordinates x of rows (x, c) whose c is one value.

    Args:
        geometry: of the rows.
        condition: c, shape (C,).
    """

    def __init__(self, geometry: Geometry, condition: Tensor) -> None:
        self.moving, self.condition = geometry.moving, condition

    def to_x(self, z: Tensor) -> Tensor:
        """States (B, D) of rows (B, D + C)."""
        return z[:, : self.moving]

    def to_z(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Rows of states."""
        return torch.cat([x, self.condition.to(x).expand(len(x), -1)], -1)


def conditional_start_of(
    config: StartConfig,
    energy: Energy,
    chain: Chain,
    *,
    prior_std: float = 1.0,
    dtype: torch.dtype | None = None,
) -> Start:
    """The start of a chain for a conditional energy; arguments are those of :func:`start_of`.

    Raises:
        ValueError: if the kind does not fit the space, or is `data`.
    """
    assert isinstance(energy, JointEnergy)
    conditions = energy.conditions
    if config.kind == "data":
        raise ValueError("start.kind 'data' has no density, and a conditional energy needs one")
    of_x = energy.of_x
    starts = [
        start_of(config, of_x, chain, prior_std=prior_std, dtype=dtype)
        for _ in range(conditions.count)
    ]
    if config.kind in ("noised", "noised_product"):
        noised = [start for start in starts if isinstance(start, NoisedStart)]
        return NoisedMixedStart(energy, conditions, noised)
    made = ScaledStart if config.kind == "gaussian" else MixedStart
    return made(energy, conditions, starts)
