"""A guide, added to a value's gradient: towards the mode of the posterior of the terminal state."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vgs_rl.chain import Chain
from vgs_rl.checks import exporting
from vgs_rl.energy import Energy
from vgs_rl.networks.base import silu_pair
from vgs_rl.networks.clusters import (
    ClusterValue,
    columns,
    positions_first,
    split_steps,
    states_first,
    step_averages,
    uniform_weight,
)
from vgs_rl.networks.pairs import NoisedPairPotential, PairSums, hat_functions


class ModeGuide(nn.Module):
    """Fields that point from noised particles to where they came from, weighed for each particle.

    Given y = A_t x_t, under noise of variance ν = A_t² S_t, the posterior of x_T has its modes
    where Σ U(r_ij) + ½ k ‖m‖² + ‖m - y‖²/(2ν) is least. From m = y the guide descends, while the
    noise of U falls from ν to `SHARPEST` ν: sharp from the start, overlapping particles would
    fling each other apart; blunt to the end, the potential does not tell where particles belong.
    On the way it takes 10 fields: m - y and ν∇U(m) at four stages, ν∇U_ν before and after; y and
    the value's own gradient join. Their sum, weighed by

        c_t + o_t · MLP_t(g_k·g_l)

    for each particle, is added to the value's gradient: where the mode is in doubt, the MLP sees
    it from the products of that particle's fields.

    Invariant weights times vectors: equivariant to rotation, reflection and permutation, and it
    moves no centre of mass. But no gradient of anything: that of V at m, drawn back through the
    descent, is many times noisier than m itself, which the descent does not magnify.

    Args:
        chain: supplies T, A_t and S_t.
        energy: the target; a particle system with a `pair_potential(r)` and a `trap`.
        steps: of the descent, at least 4.
        width: units of the MLP's two layers.
        knots: spline knots in log S of every coefficient that depends on t.
        temperature: tau.
        generator: initialises the weights.

    Raises:
        ValueError: if there are fewer than 4 steps.
    """

    FIELDS = 12
    SHARPEST = 1 / 32
    MOMENTUM = 0.6
    LONGEST_STEP = 0.3  # of a particle, in standard deviations of its noise
    LONGEST = 6.0  # of a field, likewise: noise is never longer
    LEVELS = 160  # of noise, in the table of pair potentials

    basis: Tensor
    scale: Tensor
    noise: Tensor
    level: Tensor
    rate: Tensor
    row: Tensor
    column: Tensor
    field_scale: Tensor

    def __init__(
        self,
        chain: Chain,
        energy: Energy,
        *,
        steps: int,
        width: int = 64,
        knots: int = 10,
        temperature: float = 1.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        assert energy.symmetry is not None
        if steps < 4:
            raise ValueError(f"a guide needs at least 4 steps, got {steps}")
        self.n, self.d = energy.symmetry
        self.temperature, self.trap = temperature, float(getattr(energy, "trap", 0.0))
        self.marks = {steps * quarter // 4 for quarter in (1, 2, 3)}
        noise = (chain.A.double().square() * chain.S.double())[:-1].cpu()
        # Row k, column t: the noise of U at step k of the descent; its last row is for its end.
        sharper = self.SHARPEST ** torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        levels = sharper.unsqueeze(-1) * noise
        low, high = math.log(levels.min()), math.log(levels.max())
        table = torch.linspace(low, high, self.LEVELS, dtype=torch.float64).exp()
        self.pairs = NoisedPairPotential(energy, table)
        level = ((levels.log() - low) / (high - low) * (self.LEVELS - 1)).round().long()
        self.register_buffer("level", level, False)
        neighbours = min(self.n - 1, 12)
        cage = neighbours / self.d * self._stiffness()[level[:-1]]
        self.register_buffer("rate", (0.6 / (1 + noise * cage)).float(), False)
        self.register_buffer("noise", noise.float(), False)
        self.register_buffer("scale", chain.A[:-1].cpu().float(), False)
        self.sums = PairSums(self.n)
        self.register_buffer("basis", hat_functions(noise.log(), knots).float(), False)
        row, column = torch.triu_indices(self.FIELDS, self.FIELDS)
        self.register_buffer("row", row, False)
        self.register_buffer("column", column, False)
        self.register_buffer("field_scale", torch.ones(chain.num_steps, self.FIELDS))

        self.first = uniform_weight(width, len(self.row), 2.0, generator)
        self.second = uniform_weight(width, width, 1.0, generator)
        self.shift = nn.Parameter(torch.randn(knots, 2 * width, generator=generator))
        self.readout = nn.Parameter(torch.zeros(knots, self.FIELDS * width))
        self.linear = nn.Parameter(torch.zeros(knots, self.FIELDS))
        self.to(chain.S.device, chain.S.dtype)

    def _stiffness(self) -> Tensor:
        """U'' at the minimum of U, for each level of the table: shape (LEVELS,)."""
        r = torch.linspace(0.0, self.pairs.REACH, 2000).unsqueeze(-1)
        at = torch.arange(self.LEVELS)
        u, _, curvature = self.pairs(r.expand(-1, self.LEVELS), at)
        stiffness: Tensor = curvature[u.argmin(0), at].clamp_min(0.0).double()
        return stiffness

    def _forces(self, m: Tensor, level: Tensor) -> Tensor:
        """Gradient of Σ U at m (d, n, B), noised to a level, one or (B,)."""
        difference = self.sums.difference(m)
        r = difference.square().sum(0).clamp_min(1e-8).sqrt()
        strength = self.pairs.slope(r, level) / r
        forces: Tensor = self.sums.forces(strength * along for along in difference)
        return forces

    @torch.no_grad()
    def fields(self, y: Tensor, t: int | Tensor) -> Tensor:
        """All fields but the value's gradient at y (d, n, B), in units of √ν: (F - 1, d, n, B)."""
        noise = self.noise[t]
        unit = noise.sqrt()
        m, velocity = y, torch.zeros_like(y)
        fields = []
        for k in range(len(self.rate)):
            force = self._forces(m, self.level[k, t])
            if k == 0:
                fields.append(unit * force)
            elif k in self.marks:
                fields += [(m - y) / unit, unit * force]
            step = self.rate[k, t] * (noise * (force + self.trap * m) + (m - y))
            step = _shortened(step, self.LONGEST_STEP * unit)
            velocity = self.MOMENTUM * velocity - step
            m = m + velocity
        fields += [(m - y) / unit, unit * self._forces(m, self.level[-1, t])]
        fields += [unit * self._forces(m, self.level[0, t]), y]
        return _shortened(torch.stack(fields), self.LONGEST)

    def _all_fields(self, x: Tensor, t: int | Tensor, slope: Tensor) -> Tensor:
        """Every field at x (B, D), where the value's gradient is `slope`: (F, d, n, B)."""
        scale = self.scale[t]
        y = positions_first(x, self.n) * scale
        y = y - y.mean(1, keepdim=True)
        own = positions_first(slope, self.n) * (self.noise[t].sqrt() / (scale * self.temperature))
        return torch.cat([self.fields(y, t), _shortened(own, self.LONGEST).unsqueeze(0)])

    def forward(self, x: Tensor, t: int | Tensor, slope: Tensor) -> Tensor:
        """What to add to ∇V_t(x) = `slope`; all (B, D), t one step or one per row."""
        parts = self._split(x, t, slope)
        return torch.cat([self.part(*part) for part in parts])

    def _split(self, x: Tensor, t: int | Tensor, slope: Tensor) -> Iterator[tuple[Any, ...]]:
        """States, steps and slopes in parts that fit the cache, or a GPU's memory."""
        if exporting():
            return iter([(x, t, slope)])
        part = ClusterValue.PART if x.device.type == "cpu" else 50 * ClusterValue.PART
        size = max(64, part // (2 * self.sums.count))
        steps = split_steps(t, x.shape[0], size)
        return zip(x.split(size), steps, slope.split(size), strict=True)

    def part(self, x: Tensor, t: int | Tensor, slope: Tensor) -> Tensor:
        """:meth:`forward`, all at once."""
        fields = self._all_fields(x, t, slope)
        fields = fields / columns(self.field_scale, t)[:, None, None]
        count, _, n, batch = fields.shape
        products = (fields[self.row] * fields[self.column]).sum(1)
        products = products * (1 + products.abs()).rsqrt()  # they have long tails
        shift = columns(self.basis @ self.shift, t).unsqueeze(1)  # (2 width, 1, B)
        width = len(self.second)

        def layer(z: Tensor, shift: Tensor) -> Tensor:
            return silu_pair((z.view(width, n, batch) + shift).view(width, -1))[0]

        first = layer(self.first @ products.flatten(1), shift[:width])
        second = layer(self.second @ first, shift[width:]).view(width, n, batch)
        readout = columns(self.basis @ self.readout, t).view(count, width, -1)
        linear = columns(self.basis @ self.linear, t).unsqueeze(1)
        weight = linear + (readout.unsqueeze(2) * second).sum(1)
        total = (weight.unsqueeze(1) * fields).sum(0)
        total = total - total.mean(1, keepdim=True)
        total = total * (self.temperature * self.scale[t] / self.noise[t].sqrt())
        return states_first(total)

    @torch.no_grad()
    def calibrate(self, x: Tensor, t: Tensor, slope: Tensor) -> None:
        """Sets the fields' scale at each step from states x and slopes (B, D), all steps in t."""
        parts = self._split(x, t, slope)
        squares = [self._all_fields(*part).square().sum(1).mean(1).T for part in parts]
        averages = step_averages(torch.cat(squares), t, self.noise.log())
        self.field_scale.copy_(averages.sqrt().clamp_min(1e-3))


class GuidedValue(nn.Module):
    """A cluster's value, with a guide added to its gradient.

    `gradient` is the sum, which a policy follows and gradient matching fits; `value` is V alone,
    so that objectives which learn V through its values cannot use it.

    Args:
        network: V.
        guide: what is added to ∇V.
    """

    def __init__(self, network: ClusterValue, guide: ModeGuide) -> None:
        super().__init__()
        self.network, self.guide = network, guide

    def value(self, x: Tensor, t: int | Tensor) -> Tensor:
        """V_t(x), shape (B,), without the guide."""
        return self.network.value(x, t)

    def gradient(self, x: Tensor, t: int | Tensor) -> Tensor:
        """∇V_t(x) and the guide, shape (B, D)."""
        slope = self.network.gradient(x, t)
        total: Tensor = slope + self.guide(x, t, slope)
        return total

    def gradient_part(self, x: Tensor, t: int | Tensor) -> Tensor:
        """:meth:`gradient`, all at once."""
        slope = self.network.gradient_part(x, t)
        return slope + self.guide.part(x, t, slope)

    def gradient_and_mixture(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`gradient`, and the mixture coefficient of its targets, shape (B, 1)."""
        slope, mixture = self.network.gradient_and_mixture(x, t)
        return slope + self.guide(x, t, slope), mixture

    @torch.no_grad()
    def calibrate(self, x: Tensor, t: Tensor) -> None:
        """Sets what states x (B, D) at steps t (B,) tell without training; all steps in t."""
        self.network.calibrate(x, t)
        self.guide.calibrate(x, t, self.network.gradient(x, t))

    def fit_mixture(self, apart: Tensor, error: Tensor, t: Tensor) -> None:
        """See :meth:`ClusterValue.fit_mixture`."""
        self.network.fit_mixture(apart, error, t)


def _shortened(vectors: Tensor, longest: Tensor | float) -> Tensor:
    """Vectors (..., d, n, B), those longer than `longest` as long as that."""
    length = vectors.square().sum(-3, keepdim=True).clamp_min(1e-20).sqrt()
    shortened: Tensor = vectors * (longest / length).clamp_max(1.0)
    return shortened
