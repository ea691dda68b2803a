"""The samplers that the package ships."""

import math

import pytest
import torch

import vgs_rl
from vgs_rl.experiments.pretrained import FOLDER, shipped_report, shipped_samplers


def test_every_particle_system_ships_a_sampler() -> None:
    assert shipped_samplers() == ["DW4", "LJ13", "LJ55"]
    assert sum((FOLDER / f"{name}.pt").stat().st_size for name in shipped_samplers()) < 3e6


SIZES = [("DW4", 64), ("LJ13", 8)]
LARGE = [("DW4", 2000), ("LJ13", 200), ("LJ55", 12)]


@pytest.mark.parametrize(
    ("name", "n"), [*SIZES, *(pytest.param(*each, marks=pytest.mark.slow) for each in LARGE)]
)
def test_a_shipped_sampler_reaches_the_elbo_of_its_report(name: str, n: int) -> None:
    log_weight = vgs_rl.load_sampler(name, device="cpu").sample(n, 1).log_weight
    report = shipped_report(name)
    assert log_weight is not None and bool(torch.isfinite(log_weight).all())
    # Rare bad paths weigh on the ELBO of many samples: few may lie above it, not above log Z.
    mean, margin = float(log_weight.mean()), 5 * float(log_weight.std()) / math.sqrt(n)
    assert report.metrics["elbo"].value - margin < mean < report.metrics["log_z"].value + margin
