"""Sets of one law agree but for what chance makes of them, and sets of two laws do not."""

import math

import torch
from torch import Tensor

from vgs_rl.envs import TwoModes
from vgs_rl.exploration import GaussianReference, energy_drift, share_gap
from vgs_rl.samplers.mcmc.kernels import FiniteEnergy


def source(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def modes(n: int, share: float, seed: int) -> Tensor:
    """States around 0 and, a share of them, around 8."""
    generator = source(seed)
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    far = torch.rand(n, 1, generator=generator, dtype=torch.float64) < share
    return x + 8 * far


def test_shares_of_one_law_are_called_different_once_in_a_thousand() -> None:
    called = 0
    for seed in range(60):
        gap, allowed = share_gap(modes(400, 0.3, seed), modes(500, 0.3, 1_000 + seed))
        called += gap > allowed
    assert called <= 1


def test_weights_count() -> None:
    """States of half and half, by weights those of three and seven in ten."""
    x, particles = modes(5_000, 0.5, 0), modes(4_000, 0.7, 1)
    log_weight = torch.where(x[:, 0] > 4, math.log(0.7), math.log(0.3)).double()
    gap, allowed = share_gap(x, particles)
    assert gap > max(allowed, 0.15)
    gap, allowed = share_gap(x, particles, log_weight)
    assert gap < allowed < 0.08
    gap, fewer = share_gap(x, particles, log_weight, correlated=16.0)
    assert gap < allowed < fewer
    x[0], log_weight[0] = torch.inf, -torch.inf  # a path that left the target
    assert share_gap(x, particles, log_weight)[0] < allowed


def test_moves_keep_the_mean_energy_of_samples_alone() -> None:
    target = TwoModes(10)
    energy, wide = FiniteEnergy(target), GaussianReference(torch.zeros(10), torch.ones(10))
    far = 0
    for seed in range(20):
        x = target.sample(2_000, source(seed)).double()
        drift, allowed = energy_drift(energy, wide, x, x.new_zeros(2_000), source(seed))
        far += abs(drift) > allowed
    assert far == 0 and allowed < 0.6
    for factor in (0.8, 1.25):  # samples that are too narrow, and too wide
        centre = 20.0 * (x > 10).double() * torch.eye(10, dtype=torch.float64)[0]
        off = centre + factor * (x - centre)
        drift, allowed = energy_drift(energy, wide, off, x.new_zeros(2_000), source(1))
        assert abs(drift) > allowed and (drift > 0) == (factor < 1)


def test_weighted_samples_are_moved_by_their_weights() -> None:
    target = FiniteEnergy(TwoModes(2))
    x = 3 * torch.randn(4_000, 2, generator=source(0), dtype=torch.float64)
    far = torch.tensor([20.0, 0.0], dtype=torch.float64)
    x[::2] += far
    base = torch.logaddexp(*(-((x - at) / 3).square().sum(-1) / 2 for at in (0.0 * far, far)))
    wide = GaussianReference(torch.zeros(2), torch.ones(2))
    drift, allowed = energy_drift(target, wide, x, -target(x)[0] - base, source(1))
    assert abs(drift) < allowed < 0.5
    drift, allowed = energy_drift(target, wide, x, torch.zeros(4_000), source(1))
    assert drift < -allowed


def test_moves_of_the_target_itself_do_not_ask_the_reference_for_its_density() -> None:
    """It may be 0 there, and its logarithm no number: far out in heavy tails."""

    class Nowhere(GaussianReference):
        def level(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return torch.full_like(x[:, 0], torch.inf), torch.full_like(x, torch.nan)

    target = TwoModes(2)
    x = target.sample(1_000, source(0)).double()
    nowhere = Nowhere(torch.zeros(2), torch.ones(2))
    drift, allowed = energy_drift(FiniteEnergy(target), nowhere, x, x.new_zeros(1_000), source(1))
    assert abs(drift) < allowed < 0.5
