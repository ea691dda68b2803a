"""A value network for particle systems: invariant, so that its gradient is equivariant."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vgs_rl.chain import Chain
from vgs_rl.checks import exporting
from vgs_rl.conditional.conditions import Conditions
from vgs_rl.conditional.energy import TEMPERATURE
from vgs_rl.energy import Energy
from vgs_rl.networks.base import FEATURES, condition_features, silu_pair
from vgs_rl.networks.cluster_features import (
    Descriptors,
    Places,
    differentiable_pull_back,
    noise_of,
)
from vgs_rl.networks.pairs import hat_functions


class At(NamedTuple):
    """Where coefficients are taken.

    Attributes:
        t: steps, one or (B,).
        basis: products of the splines at t and the features of c, shape (B, knots · F); None where
            there are no parameters.
        inverse_temperature: 1 / c where c is a temperature, shape (B,); else None.
    """

    t: int | Tensor
    basis: Tensor | None
    inverse_temperature: Tensor | None


class ClusterValue(Descriptors):
    """V(x, t) of n particles, from the noised pair potential and what surrounds each particle.

    With y = A_t x_t (the terminal state under noise of variance A_t² S_t) and r_ij its distances,

        V = β_t Σ_{i<j} U_t(r_ij) + ½ κ_t ‖y‖² + Σ_i [ w_t · ρ_i + o_t · h_i ] + o'_t · MLP'_t(h̄)
        h_i = MLP_t(P ρ_i, ‖Q v_i‖²),  h̄ = Σ_i h_i / n

    - U_t is the pair potential noised by itself (:class:`NoisedPairPotential`), κ_t starts at the
      trap's exact k / (1 + k A_t² S_t), β_t at 1 and all the rest at 0: so V_t → E as t → T,
      before any training.
    - ρ_i = Σ_j b(r_ij / l_t) are sums over neighbours of Gaussian radial functions b, and v_i =
      Σ_j b(r_ij / l_t) r_ij/|r_ij| the same as vectors; both are standardised per step
      (:meth:`calibrate`). l_t² = 1 + A_t² S_t / prior_std²: what noise blurs is not resolved.
      The vectors matter most: V has to follow ∂_S V = ½(ΔV - ‖∇V‖²), and ‖∇E‖² is a sum of
      squared vectors of that form.
    - With `relax` > 0 both are taken at y and, `stages` times over, at where y moves by
      -relax A_t² S_t ∇_y Σ U_t: the posterior mean of the terminal state is a relaxed y, and
      differences between forces there and here are what the expansion of V in S holds next,
      coupling neighbours of neighbours.
    - MLP' sees the whole configuration: where the target has modes of which each is an arrangement
      of all particles, V is a logarithm of their sum, and no sum over particles.
    - Every coefficient that depends on t is a linear spline over `knots` values of log S_t.

    Of rows (x, c) with parameters c, V is a function of x for every c: every coefficient that
    depends on t depends on features of c, too. Where c is a temperature, pair potential and trap
    are divided by it. The gradient along c is 0.

    Invariant to translation, rotation, reflection and permutation, by construction. The gradient
    is analytic: descriptors, then the MLP's own gradient, then the descriptors' transposed
    Jacobian, whose own backward pass is the Jacobian. Differences over pairs, and sums of pairs
    over particles, are products with a constant matrix of zeros and ones: few, large operations.

    Args:
        chain: supplies T, A_t and S_t.
        energy: the target; a particle system with a `pair_potential(r)` and a `trap`.
        prior_std: rough standard deviation per coordinate, for the initial mixture of targets.
        near: smallest distance that the radial functions resolve, at l_t = 1.
        reach: largest one.
        radial: number of radial functions.
        scalars: number of density channels (rows of P).
        vectors: number of vector channels (rows of Q).
        width: units of the MLP's two layers.
        pooled: units of the two layers of MLP'; 0 leaves it out.
        knots: spline knots in log S.
        relax: length of a relaxation, 0 for none; about 0.3 is stable among twelve neighbours.
        stages: number of relaxations, one after the other.
        temperature: tau.
        conditions: the parameters, the last coordinates of a state; None where there are none.
        generator: initialises the weights.

    Raises:
        ValueError: if the energy is no particle system, or a size is not positive.
    """

    PART = 200_000  # numbers per descriptor array of one part of a batch

    basis: Tensor
    levels: Tensor
    scale: Tensor
    density_mean: Tensor
    density_std: Tensor
    vector_std: Tensor
    trap: Tensor

    def __init__(
        self,
        chain: Chain,
        energy: Energy,
        *,
        prior_std: float,
        near: float = 0.0,
        reach: float,
        radial: int = 16,
        scalars: int = 16,
        vectors: int = 8,
        width: int = 48,
        pooled: int = 0,
        knots: int = 10,
        relax: float = 0.0,
        stages: int = 1,
        temperature: float = 1.0,
        conditions: Conditions | None = None,
        generator: torch.Generator,
    ) -> None:
        super().__init__(
            noise_of(chain),
            energy,
            prior_std=prior_std,
            near=near,
            reach=reach,
            radial=radial,
            relax=relax,
            stages=stages,
        )
        noise = noise_of(chain)
        self.temperature = temperature
        self.register_buffer("basis", hat_functions(noise.log(), knots).float(), False)
        self.register_buffer("levels", noise.log().float(), False)
        self.register_buffer("scale", chain.A[:-1].cpu().float(), False)
        steps = chain.num_steps
        channels = (1 + self.stages) * radial
        self.register_buffer("density_mean", torch.zeros(steps, channels))
        self.register_buffer("density_std", torch.ones(steps, channels))
        self.register_buffer("vector_std", torch.ones(steps, channels))
        trap = float(getattr(energy, "trap", 0.0))
        self.register_buffer("trap", (trap / (1 + trap * noise)).float(), False)

        def uniform(rows: int, columns: int, gain: float = 1.0) -> nn.Parameter:
            return uniform_weight(rows, columns, gain, generator)

        self.density_mix = uniform(scalars, channels, 2.0)
        self.vector_mix = uniform(vectors, channels, 2.0)
        self.first = uniform(width, scalars + vectors, 2.0)
        self.second = uniform(width, width)
        self.shift = nn.Parameter(torch.randn(knots, 2 * width, generator=generator))
        self.readout = nn.Parameter(torch.zeros(knots, width))
        self.linear = nn.Parameter(torch.zeros(knots, channels))
        self.pooled = pooled
        if pooled:
            self.pooled_first = uniform(pooled, width, 2.0)
            self.pooled_second = uniform(pooled, pooled)
            shift = torch.randn(knots, 2 * pooled, generator=generator)
            self.pooled_shift = nn.Parameter(shift)
            self.pooled_readout = nn.Parameter(torch.zeros(knots, pooled))
        self.strength = nn.Parameter(torch.zeros(knots, 2))  # β - 1, and κ relative to its unit
        self.conditions, self.tilts = conditions, nn.ParameterDict()
        if conditions is not None:
            self._add_tilts(conditions, generator)
        self.offset = nn.Parameter(torch.zeros(steps))
        odds = (prior_std**2 / noise).float()
        self.mixture_bias = nn.Parameter(odds.log().unsqueeze(-1))
        self.to(chain.S.device, chain.S.dtype)

    def _add_tilts(self, conditions: Conditions, generator: torch.Generator) -> None:
        """For each table (knots, C) one of (knots · F, C) that the features of c multiply."""
        features = FEATURES * conditions.size
        tables = ("shift", "readout", "linear", "strength")
        for name in (*tables, *(("pooled_shift", "pooled_readout") if self.pooled else ())):
            knots, of = getattr(self, name).shape
            tilt = torch.zeros(knots * features, of)
            if name.endswith("shift"):
                tilt = torch.randn(tilt.shape, generator=generator) / math.sqrt(features)
            self.tilts[name] = nn.Parameter(tilt)

    def _at(self, x: Tensor, t: int | Tensor) -> At:
        """Steps, and of rows with parameters what the coefficients need of these."""
        if self.conditions is None:
            return At(t, None, None)
        c = x[:, self.n * self.d :]
        basis = self.basis[t].unsqueeze(-1) * condition_features(self.conditions, c).unsqueeze(-2)
        tempered = self.conditions.names == (TEMPERATURE,)
        return At(t, basis.flatten(1), 1 / c[:, 0] if tempered else None)

    def _coefficients(self, name: str, at: At) -> Tensor:
        """A table (knots, C) of spline coefficients at steps: (C, B), or (C, 1) for one step."""
        table: Tensor = getattr(self, name)
        coefficients = columns(self.basis @ table, at.t)
        return coefficients if at.basis is None else coefficients + (at.basis @ self.tilts[name]).T

    def _positions(self, x: Tensor, t: int | Tensor) -> Tensor:
        """Centred positions of y = A_t x, shape (d, n, B)."""
        y = positions_first(x[:, : self.n * self.d], self.n) * self.scale[t]
        return y - y.mean(1, keepdim=True)

    def _environment(self, places: Places, at: At) -> tuple[Tensor, Tensor, Tensor]:
        """The learned part: its value (B,), and its gradients by ρ and v."""
        t = at.t
        density, vector = self.descriptors(places)
        radial, n, batch = density.shape
        inverse = 1 / columns(self.density_std, t).unsqueeze(1)  # (K, 1, B)
        density = (density - columns(self.density_mean, t).unsqueeze(1)) * inverse
        inverse_vector = (1 / columns(self.vector_std, t)).view(radial, 1, 1, -1)
        vector = vector * inverse_vector
        scalars = self.density_mix @ density.view(radial, -1)  # (C, n B)
        channels = (self.vector_mix @ vector.view(radial, -1)).view(-1, self.d, n * batch)
        squares = channels.square().sum(1)
        shift = self._coefficients("shift", at).unsqueeze(1)  # (2 width, 1, B)
        width = len(self.second)

        def layer(z: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
            return silu_pair((z.view(width, n, batch) + shift).view(width, -1))

        first, first_slope = layer(self.first @ torch.cat([scalars, squares]), shift[:width])
        second, second_slope = layer(self.second @ first, shift[width:])
        readout = self._coefficients("readout", at).unsqueeze(1)  # (width, 1, B)
        linear = self._coefficients("linear", at).unsqueeze(1)  # (K, 1, B)
        value = (readout * second.view(width, n, batch)).sum((0, 1))
        value = value + (linear * density).sum((0, 1))
        if self.pooled:
            whole, by_mean = self._whole(second.view(width, n, batch).mean(1), at)
            value, readout = value + whole, readout + by_mean.unsqueeze(1) / n
        flow = (readout * second_slope.view(width, n, batch)).view(width, -1)
        flow = (self.second.T @ flow) * first_slope
        flow = self.first.T @ flow
        by_scalar, by_square = flow[: len(scalars)], flow[len(scalars) :]
        by_density = (self.density_mix.T @ by_scalar).view(radial, n, batch) + linear
        by_channel = 2 * channels * by_square.unsqueeze(1)
        by_vector = self.vector_mix.T @ by_channel.view(len(by_square), -1)
        by_vector = by_vector.view(radial, self.d, n, batch)
        return value, by_density * inverse, by_vector * inverse_vector

    def _whole(self, mean: Tensor, at: At) -> tuple[Tensor, Tensor]:
        """The part of the whole configuration (B,), and its gradient by h̄, both (width, B)."""
        shift = self._coefficients("pooled_shift", at)
        readout = self._coefficients("pooled_readout", at)
        first, first_slope = silu_pair(self.pooled_first @ mean + shift[: self.pooled])
        second, second_slope = silu_pair(self.pooled_second @ first + shift[self.pooled :])
        by_first = (self.pooled_second.T @ (readout * second_slope)) * first_slope
        return (readout * second).sum(0), self.pooled_first.T @ by_first

    def _split(self, x: Tensor, t: int | Tensor) -> Iterator[tuple[Tensor, Any]]:
        """States and steps in parts that fit the cache, or a GPU's memory."""
        if exporting():
            return iter([(x, t)])
        part = self.PART if x.device.type == "cpu" else 250 * self.PART
        size = max(64, part // (self.sums.count * self.radial))
        return zip(x.split(size), split_steps(t, x.shape[0], size), strict=True)

    def _sweep(self, x: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """V, shape (B,), and ∇V, shape (B, D); in parts that fit the cache."""
        parts = [self._sweep_part(*part) for part in self._split(x, t)]
        if len(parts) == 1:
            return parts[0]
        return torch.cat([value for value, _ in parts]), torch.cat([slope for _, slope in parts])

    def _sweep_part(self, x: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        at, y = self._at(x, t), self._positions(x, t)
        places = self.places(y, t)
        learned, by_density, by_vector = self._environment(places, at)
        strength = self._coefficients("strength", at)
        pairs, trap = 1 + strength[0], self.trap[t] + strength[1]
        if at.inverse_temperature is not None:
            pairs, trap = pairs * at.inverse_temperature, trap * at.inverse_temperature
        pull_back = differentiable_pull_back if torch.is_grad_enabled() else Descriptors.pull_back
        back = pull_back(self, places, by_density, by_vector)
        gradient = states_first((back + pairs * places.force + trap * y) * self.scale[t])
        value = pairs * places.energy + 0.5 * trap * y.square().sum((0, 1)) + learned
        if self.conditions is not None:
            gradient = F.pad(gradient, (0, self.conditions.size))
        return self.temperature * (value + self.offset[t]), self.temperature * gradient

    def value(self, x: Tensor, t: int | Tensor) -> Tensor:
        """V_t(x), shape (B,); 0 ≤ t < T, one step or one per row."""
        return self._sweep(x, t)[0]

    def gradient(self, x: Tensor, t: int | Tensor) -> Tensor:
        """∇V_t(x), shape (B, D), on the centre-of-mass-free space; analytic."""
        return self._sweep(x, t)[1]

    def gradient_part(self, x: Tensor, t: int | Tensor) -> Tensor:
        """:meth:`gradient`, all at once."""
        return self._sweep_part(x, t)[1]

    def gradient_and_mixture(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """∇V_t(x), shape (B, D), and the mixture coefficient of its targets, shape (B, 1)."""
        return self.gradient(x, t), torch.sigmoid(self.mixture_bias[t])

    @torch.no_grad()
    def calibrate(self, x: Tensor, t: Tensor) -> None:
        """Sets each step's standardisation from states x (B, D) at steps t (B,), all steps in t."""
        moments = []
        for part, steps in self._split(x, t):
            density, vector = self.descriptors(self.places(self._positions(part, steps), steps))
            squares = density.square().mean(1), vector.square().sum(1).mean(1)
            moments.append(torch.cat([density.mean(1), *squares]).T)
        averages = step_averages(torch.cat(moments), t, self.levels)
        mean, square, vector_square = averages.chunk(3, dim=1)
        # A radial function that sees nothing keeps its natural scale.
        self.density_mean.copy_(mean)
        self.density_std.copy_((square - mean.square()).clamp_min(0.0).sqrt().clamp_min(0.05))
        self.vector_std.copy_(vector_square.sqrt().clamp_min(0.05))

    @torch.no_grad()
    def fit_mixture(self, apart: Tensor, error: Tensor, t: Tensor) -> None:
        """Sets the mixture coefficients to those whose targets vary least.

        Far from there the loss is mostly that of the coefficients, and training waits until they
        have moved.

        Args:
            apart: target scores less denoising targets, shape (B, D).
            error: gradient less denoising targets, likewise; the gradient may be untrained.
            t: steps, shape (B,), all of them in it.
        """
        products = torch.stack([(apart * error).sum(-1), apart.square().sum(-1)], dim=-1)
        product, square = step_averages(products, t, self.levels).chunk(2, dim=1)
        self.mixture_bias.copy_((product / square).clamp(1e-4, 1 - 1e-4).logit())


def step_averages(values: Tensor, t: Tensor, levels: Tensor) -> Tensor:
    """Averages of values (B, C) over the states of each step and of those of about its noise.

    A step's own few states would leave it with errors of its own, which no coefficient that is
    smooth in t can undo.

    Args:
        values: one row per state.
        t: their steps, shape (B,), all of them in it.
        levels: log noise of the steps, shape (T,).

    Returns:
        Averages, shape (T, C), in double precision.
    """
    total = values.new_zeros(len(levels), values.shape[1], dtype=torch.float64)
    total.index_add_(0, t, values.double())
    count = torch.bincount(t, minlength=len(levels)).double().unsqueeze(-1)
    near = (levels.double().unsqueeze(-1) - levels.double()) / 0.2
    kernel = torch.exp(-0.5 * near.square())
    return (kernel @ total) / (kernel @ count)


def uniform_weight(
    rows: int, columns: int, gain: float, generator: torch.Generator
) -> nn.Parameter:
    """A matrix (rows, columns), uniform in ±gain/√columns."""
    weight = torch.rand(rows, columns, generator=generator) * 2 - 1
    return nn.Parameter(weight * gain / math.sqrt(columns))


def split_steps(t: int | Tensor, count: int, size: int) -> Sequence[int | Tensor]:
    """Steps of the parts, at most `size` rows each, of a batch of `count` rows."""
    return t.split(size) if isinstance(t, Tensor) else [t] * -(-count // size)


def columns(table: Tensor, t: int | Tensor) -> Tensor:
    """Rows t of a table (T, C) as columns: (C, B), or (C, 1) for one step."""
    if isinstance(t, int):
        return table[t].unsqueeze(-1)
    # embedding(): its backward pass is several times faster than that of plain indexing.
    return F.embedding(t, table).T.contiguous()


def positions_first(x: Tensor, n: int) -> Tensor:
    """States (B, n d) as positions of n particles, the batch last: (d, n, B)."""
    return x.T.reshape(n, x.shape[1] // n, x.shape[0]).transpose(0, 1).contiguous()


def states_first(y: Tensor) -> Tensor:
    """Positions (d, n, B) as states (B, n d)."""
    return y.transpose(0, 1).flatten(0, 1).T
