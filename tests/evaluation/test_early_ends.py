"""Samples that end where the target goes on are told; samples of the target are not."""

import math

import pytest
import torch

from vgs_rl import Energy, FunctionEnergy
from vgs_rl.envs import GMM9, EightSchools, Funnel10, ManyWell32, StudentT
from vgs_rl.evaluation.verdict import early_ends


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "energy",
    [GMM9(), EightSchools(), Funnel10(), ManyWell32(), StudentT(10, 2.0)],
    ids=lambda energy: type(energy).__name__,
)
def test_exact_samples_end_where_the_target_ends(energy: Energy, seed: int) -> None:
    x = energy.sample(10_000, source(seed)).double()
    assert early_ends(x, torch.zeros(len(x)), energy, 1.0) == []


def bowl(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x.square().sum(-1)


@pytest.mark.parametrize(("sign", "side"), [(1.0, "lower"), (-1.0, "upper")])
def test_a_tail_that_no_sample_reached_is_told(sign: float, side: str) -> None:
    x = torch.randn(20_000, 3, generator=source(), dtype=torch.float64)
    x = x[sign * x[:, 1] > -1.5]
    found = early_ends(x, torch.zeros(len(x)), FunctionEnergy(bowl, 3), 1.0)
    assert len(found) == 1 and f"too early in the {side} tail of coordinate 1" in found[0]


def test_weights_and_the_temperature_count() -> None:
    x = 1.5 * torch.randn(20_000, 2, generator=source(), dtype=torch.float64)
    log_weight = -0.25 * x.square().sum(-1) + 0.5 * x.square().sum(-1) / 2.25
    energy = FunctionEnergy(bowl, 2)
    assert early_ends(x, log_weight, energy, 2.0) == []
    assert early_ends(x, log_weight, energy, 1.0) != []


def test_a_wall_is_an_end_of_the_target() -> None:
    def walled(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[:, 0] > -1.0, bowl(x), math.inf)

    x = torch.randn(20_000, 2, generator=source(), dtype=torch.float64)
    x = x[x[:, 0] > -1.0]
    assert early_ends(x, torch.zeros(len(x)), FunctionEnergy(walled, 2), 1.0) == []


def test_a_round_wall_is_an_end_of_the_target() -> None:
    def disc(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x.square().sum(-1) < 4.0, 0.0 * x[:, 0], math.inf)

    x = 4.0 * torch.rand(30_000, 2, generator=source(), dtype=torch.float64) - 2.0
    x = x[x.square().sum(-1) < 4.0]
    assert early_ends(x, torch.zeros(len(x)), FunctionEnergy(disc, 2), 1.0) == []


def test_no_samples_say_nothing() -> None:
    x = torch.zeros(5, 2, dtype=torch.float64)
    assert early_ends(x, torch.full((5,), -math.inf), FunctionEnergy(bowl, 2), 1.0) == []
