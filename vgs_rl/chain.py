"""The chain's constants: noise schedules and all that follows from them (docs/theory.md#chain).

Noising kernel   q~(x_t | x_{t+1}) = N(x_{t+1} / a_t, s_t² I)
Sampling kernel  pi(x_{t+1} | x_t) = N(a_t x_t + sigma_t u_t, (rho_t sigma_t)² I), sigma_t = a_t s_t
Noised marginal  x_t | x_T ~ N(x_T / A_t, S_t I), A_t = Π_{k≥t} a_k, S_t = s_t² + S_{t+1} / a_t²
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vgs_rl.checks import seed_of
from vgs_rl.conditional.conditions import ConditionLike, Conditions
from vgs_rl.fields import settle
from vgs_rl.geometry import Geometry
from vgs_rl.training import parallel
from vgs_rl.transitions import Policy

ChainKind = Literal["vp", "ve"]
ScheduleKind = Literal["constant", "linear", "quadratic", "sigmoid", "geometric", "auto"]

# Exponent of the automatic ve schedule: S_t falls as (1 - t/T)^3, close to the spacing that EDM
# (arXiv:2206.00364) found good for many data sets; no scale of the target is needed.
AUTO_POWER = 3.0


@dataclass(kw_only=True)
class ScheduleConfig:
    """How much noise each step undoes.

    Args:
        kind: shape of s_t² from t = 0 to T - 1. `linear`, `sigmoid` and `geometric` (exponential)
            interpolate s_t² from `first` to `last`, `quadratic` interpolates s_t, `constant`
            keeps `first`; `auto` needs `total_noise` alone.
        first: s_0², the variance of the first step.
        last: s_{T-1}², the variance of the last step.
        total_noise: S_0, the noise variance of x_0 given x_T, for `auto`: in (0, 1) for vp, where
            it defaults to 0.95; any positive number for ve, where it has no default.
    """

    kind: ScheduleKind = "auto"
    first: float | None = None
    last: float | None = None
    total_noise: float | None = None

    def __post_init__(self) -> None:
        """Refuses options that contradict each other, by name."""
        settle(self, "schedule")
        if self.kind == "auto":
            _require_none("auto", first=self.first, last=self.last)
            if self.total_noise is not None:
                _require_positive("auto", total_noise=self.total_noise)
            return
        _require_none(self.kind, total_noise=self.total_noise)
        _require_positive(self.kind, first=self.first)
        if self.kind == "constant":
            _require_none("constant", last=self.last)
        else:
            _require_positive(self.kind, last=self.last)


def _require_none(kind: str, **fields: float | None) -> None:
    for name, value in fields.items():
        if value is not None:
            raise ValueError(f"schedule.{name} must be left out for kind '{kind}', got {value}")


def _require_positive(kind: str, **fields: float | None) -> None:
    for name, value in fields.items():
        if value is None or not (math.isfinite(value) and value > 0):
            raise ValueError(
                f"schedule.{name} must be a positive number for kind '{kind}', got {value}"
            )


def step_variances(schedule: ScheduleConfig, kind: ChainKind, num_steps: int) -> Tensor:
    """The variances s_t², float64, shape (T,)."""
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if schedule.kind == "auto":
        total_noise = schedule.total_noise
        if total_noise is None:
            if kind == "ve":
                raise ValueError("schedule.total_noise is required for kind 'auto' in a ve chain")
            total_noise = 0.95
        return _auto_variances(total_noise, kind, num_steps)
    assert schedule.first is not None
    first, last = schedule.first, schedule.last or schedule.first
    ramp = torch.linspace(0.0, 1.0, num_steps, dtype=torch.float64)
    if schedule.kind == "quadratic":
        return (math.sqrt(first) + (math.sqrt(last) - math.sqrt(first)) * ramp) ** 2
    if schedule.kind == "geometric":
        return first * (last / first) ** ramp
    if schedule.kind == "sigmoid":
        curve = torch.sigmoid(12.0 * (ramp - 0.5))
        ramp = (curve - curve[0]) / (curve[-1] - curve[0]).clamp_min(1e-12)
    return first + (last - first) * ramp


def _auto_variances(total_noise: float, kind: ChainKind, num_steps: int) -> Tensor:
    """vp: every step shrinks by the same factor. ve: S_t = S_0 (1 - t/T)^3."""
    if kind == "vp":
        if total_noise >= 1.0:
            raise ValueError(
                f"schedule.total_noise must be below 1 for the vp chain, got {total_noise}"
            )
        s2 = 1.0 - (1.0 - total_noise) ** (1.0 / num_steps)
        return torch.full((num_steps,), s2, dtype=torch.float64)
    remaining = 1.0 - torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    noise = total_noise * remaining**AUTO_POWER  # S_t
    return noise[:-1] - noise[1:]


class Chain:
    """The constants of a T-step chain, tensors of one dtype and device.

    Attributes:
        kind: `vp` (a_t = 1/sqrt(1 - s_t²)) or `ve` (a_t = 1).
        num_steps: T.
        s, a, sigma, log_a: shape (T,).
        A: products of a_k from t on, shape (T + 1,), A_T = 1.
        S: noise variance of x_t given x_T, shape (T + 1,), S_T = 0.
    """

    def __init__(self, s2: Tensor, kind: ChainKind) -> None:
        s2 = s2.detach().to("cpu", torch.float64)
        if s2.ndim != 1 or len(s2) < 1:
            raise ValueError(f"s2 must have shape (T,), got {tuple(s2.shape)}")
        if not bool((torch.isfinite(s2) & (s2 > 0)).all()):
            raise ValueError(f"every s_t² must be positive and finite, got {s2.tolist()}")
        if kind == "vp" and bool((s2 >= 1).any()):
            t = int((s2 >= 1).nonzero()[0])
            raise ValueError(
                f"s_t must be below 1 in a vp chain, got s_{t}² = {float(s2[t]):g}; "
                "use a smaller schedule or the ve chain"
            )
        self.kind: ChainKind = kind
        self.num_steps = len(s2)
        self.s = s2.sqrt()
        self.a = (1.0 - s2).rsqrt() if kind == "vp" else torch.ones_like(s2)
        self.sigma = self.a * self.s
        self.log_a = self.a.log()
        self.A = torch.ones(self.num_steps + 1, dtype=torch.float64)
        self.S = torch.zeros(self.num_steps + 1, dtype=torch.float64)
        for t in reversed(range(self.num_steps)):
            self.A[t] = self.a[t] * self.A[t + 1]
            self.S[t] = self.S[t + 1] / self.a[t] ** 2 + s2[t]

    @classmethod
    def build(cls, schedule: ScheduleConfig, kind: ChainKind, num_steps: int) -> Chain:
        """The chain of a schedule. Raises ValueError on impossible values."""
        return cls(step_variances(schedule, kind, num_steps), kind)

    def to(self, device: torch.device, dtype: torch.dtype) -> Chain:
        """A copy whose tensors have this device and dtype."""
        other = object.__new__(Chain)
        for name, value in vars(self).items():
            moved = value.to(device, dtype) if isinstance(value, Tensor) else value
            setattr(other, name, moved)
        return other


class Noising:
    """The noising kernel q~ on a space, on one device and dtype: an MDP's way backwards."""

    chain: Chain
    geometry: Geometry
    conditions: Conditions | None
    dim: int
    device: torch.device
    dtype: torch.dtype

    def generator(self, seed: int) -> torch.Generator:
        """A new generator on this MDP's device."""
        return torch.Generator(self.device).manual_seed(seed_of(seed))

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Standard normal noise on a linear space, shape (n, D)."""
        self.geometry.require_linear("noise that belongs to no state")
        z = torch.randn(n, self.dim, generator=generator, device=self.device, dtype=self.dtype)
        return self.geometry.tangent(z, z)  # a linear space has the same directions everywhere

    def noise_at(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Standard normal noise in the directions that the space has at x, both (B, D)."""
        if self.geometry.linear:
            return self.noise(len(x), generator)
        z = torch.randn(x.shape, generator=generator, device=self.device, dtype=self.dtype)
        return self.geometry.tangent(z, x)

    def with_conditions(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Rows (B, D + C) of states x, whose parameters are drawn; x itself where there are none.

        Args:
            x: rows whose parameters are anything.
            generator: source of the parameters' values.
        """
        if self.conditions is None:
            return x
        c = self.conditions.draw(len(x), generator, x.dtype)
        return torch.cat([x[:, : self.geometry.moving], c], -1)

    def named(self, condition: ConditionLike) -> dict[str, float]:
        """A value of the parameters, by name; empty where there are none."""
        if self.conditions is None:
            return {}
        numbers = self.conditions.tensor(condition).tolist()
        return dict(zip(self.conditions.names, numbers, strict=True))

    def levelled(self, x: Tensor, log_weight: Tensor) -> Tensor:
        """Log-weights (B,) of rows, less an estimate of log Z(c): see :class:`Conditions`."""
        if self.conditions is None:
            return log_weight
        return self.conditions.levelled(x[:, self.geometry.moving :], log_weight)

    def _step_back(self, x: Tensor, t: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One noising step: x_t, and the push u + rho eps at x_t that leads back to x_{t+1} = x."""
        a, s, sigma = self.chain.a[t], self.chain.s[t], self.chain.sigma[t]
        if self.geometry.linear:
            before = self.geometry.shrunk(x, a) + s * self.noise(len(x), generator)
            return before, (x - self.geometry.scaled(before, a)) / sigma
        before, arriving = self.geometry.geodesic(x, self.noise_at(x, generator), s)
        return before, -arriving

    def noised(self, x: Tensor, t: int | Tensor, generator: torch.Generator) -> Tensor:
        """States x_t, shape (B, D), given terminal states x, shape (B, D).

        On a linear space one draw of the marginal; elsewhere the T - t steps are simulated.

        Args:
            x: terminal states x_T.
            t: one step, or one per row, shape (B,).
            generator: source of the noise.
        """
        if self.geometry.linear:
            return self.noised_marginal(x, t, generator)[0]
        return noise_on(self.geometry, self.chain, x, t, generator)

    def noised_marginal(
        self, x: Tensor, t: int | Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """States x_t given terminal states, without simulating the chain; linear spaces only.

        Args:
            x: terminal states x_T, shape (B, D).
            t: one step, or one per row, shape (B,).
            generator: source of the noise.

        Returns:
            x_t = x_T / A_t + √S_t z, and the noise z, both of shape (B, D).
        """
        scale, spread = self.chain.A[t], self.chain.S[t].sqrt()
        if isinstance(t, Tensor):
            scale, spread = scale.unsqueeze(-1), spread.unsqueeze(-1)
        z = self.noise(len(x), generator)
        return self.geometry.shrunk(x, scale) + spread * z, z


class NoiseScales(Noising):
    """The noise scales rho_t of the sampling kernel, and what fits them.

    With parameters they are rho_t(c), interpolated between the knots of their range.
    """

    rho: Tensor

    # Below, a step of the chain cannot end: what is narrower in every direction needs another one.
    LEAST_RHO = 1e-4

    @abstractmethod
    def control(self, policy: Policy, x: Tensor, t: int) -> Tensor:
        """u_t(x), shape (B, D)."""

    def rho_at(self, x: Tensor, t: int | Tensor, rho: Tensor | None = None) -> Tensor:
        """Rho_t, one for all rows of x (B, D), or one each, shape (B,).

        Args:
            x: states, with the parameters' values where there are some.
            t: one step, or one per row, shape (B,).
            rho: all noise scales, in place of the own ones.
        """
        scales = (self.rho if rho is None else rho)[t]
        if self.conditions is None:
            return scales
        return (self.conditions.hats(x[:, self.geometry.moving :]) * scales).sum(-1)

    def _mean(self, x: Tensor, values: Tensor) -> Tensor:
        """The mean of values (B,), a scalar; with parameters at their knots, shape (K,)."""
        if self.conditions is None:
            return values.mean()
        return self.conditions.fit(x[:, self.geometry.moving :], values)

    def noise_scale_of_gaussian(self, std: float) -> None:
        """Sets rho_t to those of the exact sampler of N(0, std² I); linear spaces only.

        The reversed kernel's variance is s_t² B_{t+1} / B_t with B_t = S_t + std²/A_t², so that
        rho_t² = B_{t+1} / (a_t² B_t).
        """
        chain = self.chain
        variance = chain.S + std**2 / chain.A.square()
        rho = (variance[1:] / variance[:-1]).sqrt() / chain.a
        self.rho.copy_(rho if self.rho.ndim == 1 else rho.unsqueeze(-1))

    @torch.no_grad()
    def fit_noise_scale(
        self,
        policy: Policy,
        x: Tensor,
        generator: torch.Generator,
        *,
        rate: float = 1.0,
    ) -> None:
        """Fits rho_t to the spread of x_{t+1} around the policy's mean on bridge pairs.

        The Gaussian of that spread minimises the EUBO's gap to log Z, the divergence from paths
        drawn backwards from the target; the ELBO's gap may be least at another one. rho_t is kept
        within [LEAST_RHO, 1].

        Args:
            policy: the control whose means are used.
            x: terminal states distributed as the target (or the best estimate), shape (B, D).
            generator: source of the bridge noise.
            rate: weight of the new estimate, 1 replaces the old one.
        """
        estimates = []
        dim = self.geometry.effective_dim
        for t in range(self.chain.num_steps):
            if not self.geometry.linear:
                x_t, push = self._step_back(self.noised(x, t + 1, generator), t, generator)
                gap = push - self.control(policy, x_t, t)
                estimates.append(gap.square().sum(-1).mean() / dim)
                continue
            x_next, _ = self.noised_marginal(x, t + 1, generator)
            z = self.noise(len(x), generator)
            x_t = self.geometry.shrunk(x_next, self.chain.a[t]) + self.chain.s[t] * z
            control = self.control(policy, x_t, t)
            # x_{t+1} lies -sigma_t (z + u) from the mean, and E ‖z‖² is known: what of ‖z + u‖²
            # varies along with ‖z‖² is taken out, all but nothing where the target is narrow.
            squares, known = ((z + control).square().sum(-1), z.square().sum(-1))
            along = known - known.mean()
            slope = (along * squares).sum() / along.square().sum()
            mean = self._mean(x, squares) - slope * (self._mean(x, known) - dim)
            estimates.append(mean / dim)
        variance = parallel.mean(torch.stack(estimates), len(x))
        fitted = variance.clamp_min(0.0).sqrt().clamp(self.LEAST_RHO, 1.0)
        self.rho.lerp_(fitted.nan_to_num(1.0), rate)


def noise_on(
    geometry: Geometry,
    chain: Chain,
    x: Tensor,
    t: int | Tensor,
    generator: torch.Generator,
    *,
    factor: Tensor | float = 1.0,
) -> Tensor:
    """Noises terminal states x (B, D) down to step t of a chain with a = 1, step by step.

    Args:
        geometry: the space, of any kind.
        chain: supplies s_t.
        x: states on the space.
        t: one step, or one per row, shape (B,).
        generator: source of the noise.
        factor: on every standard deviation.
    """
    first = t if isinstance(t, int) else 0
    for k in reversed(range(first, chain.num_steps)):
        z = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        scale = factor * chain.s[k]
        if isinstance(t, Tensor):
            scale = (scale * (t <= k)).unsqueeze(-1)  # rows that are there stay
        x = geometry.move(x, geometry.tangent(z, x), scale)
    return x
