"""What is chosen for a target fits its particles."""

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from vgs_rl.agents.automatic.design import Design, choose_design, design_of_components
from vgs_rl.agents.automatic.trials import Trial, Trials
from vgs_rl.agents.value_gradient.objectives import GradientMatching
from vgs_rl.envs import GMM9, ManyWell, StudentMixture, StudentT, TwoModes
from vgs_rl.exploration import AffineMap, Clock
from vgs_rl.starts import Mixture, ProductMixture


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def log_density(design: Design, x: Tensor) -> Tensor:
    """Of the design's mixture, in the coordinates of the target."""
    z = design.coordinates.to_z(x)
    return design.mixture.log_prob(z) - design.coordinates.with_log_det(z)[1]


def turned(x: Tensor) -> Tensor:
    """By a random rotation, scaled by up to 1e4 and shifted."""
    axes, _ = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=source(5)).double())
    return (x @ axes) * torch.logspace(-2, 2, x.shape[1], dtype=torch.float64) + 1e3


def test_a_product_is_found_along_any_axes() -> None:
    target = ManyWell(16)
    x = target.sample(6_000, source()).double()
    straight, _ = choose_design(x, source())
    assert isinstance(straight.mixture, ProductMixture)
    assert target.log_z is not None
    truth = float((-target(x) - target.log_z).mean())
    assert float(log_density(straight, x).mean()) == pytest.approx(truth, abs=0.15)
    skewed, _ = choose_design(turned(x), source())
    assert isinstance(skewed.mixture, ProductMixture)
    # The map's log-determinant: that of the scales, whose product is 1.
    assert float(log_density(skewed, turned(x)).mean()) == pytest.approx(truth, abs=0.4)


@pytest.mark.parametrize("target", [GMM9(), TwoModes(20)], ids=["nine", "two"])
def test_both_designs_have_the_same_mixture_in_other_units(target: GMM9 | TwoModes) -> None:
    x = target.sample(6_000, source()).double()
    local, whole = choose_design(x, source())
    assert (local.unit, whole.unit) == ("component", "target")
    torch.testing.assert_close(log_density(local, x), log_density(whole, x), atol=1e-5, rtol=1e-6)
    truth = float(-target(x).mean())
    assert float(log_density(local, x).mean()) == pytest.approx(truth, abs=0.1)
    torch.testing.assert_close(
        whole.coordinates.to_z(x).var(0), torch.ones(target.dim).double(), atol=0.05, rtol=0
    )


def test_heavy_tails_are_taken_away() -> None:
    target = StudentT(3)
    x = target.sample(6_000, source()).double()
    design, _ = choose_design(x, source(), tails=True)
    assert design.tails == "radial"
    gap = float((-target(x) - log_density(design, x)).mean())  # a KL divergence
    assert abs(gap) < 0.05
    assert design.summary()["tails"] == "radial"
    assert math.isfinite(design.mdp().num_steps) and design.agent().prior_std == 1.0
    chain = design.mdp()
    design.check(chain)
    chain.start.components += 1
    with pytest.raises(ValueError, match="mdp.start.components must be .*, as explored, got"):
        design.check(chain)


def test_tails_of_components_are_taken_away() -> None:
    target = StudentMixture(10, degrees=2.0, components=4)
    x = target.sample(6_000, source()).double()
    design = design_of_components(x, source())
    assert design is not None and design.tails == "components" and not design.guided
    z = design.coordinates.to_z(x, source())
    torch.testing.assert_close(z.std(0), torch.ones(10).double(), atol=0.1, rtol=0)
    own = design.mixture.log_prob(z) - design.coordinates.with_log_det(z)[1]
    assert abs(float((-target(x) - own).mean())) < 0.05  # a KL divergence
    objective = design.agent().objective
    assert isinstance(objective, GradientMatching) and objective.targets == "denoising"


def test_a_gap_below_0_is_as_bad_as_one_above(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward paths below forward ones say that the known states are not the target's."""
    mixture = Mixture(weights=torch.ones(1), means=torch.zeros(1, 2), covariances=torch.ones(1, 2))
    plain = AffineMap(torch.zeros(2), torch.ones(2))
    design = Design(coordinates=plain, mixture=mixture, unit="target")
    gaps = {"local": 0.5, "unguided": -1.6, "more steps": -90.0}

    def attempt(self: Trials, design: Design, name: str) -> Trial:
        return Trial(design=design, agent=cast(Any, None), energy=cast(Any, None), gap=gaps[name])

    monkeypatch.setattr(Trials, "designs", lambda self, tails: (design, design))
    monkeypatch.setattr(Trials, "attempt", attempt)
    trials = object.__new__(Trials)
    trials.target_ess, trials.guided, trials.clock = 0.9, True, Clock()
    trials.began, trials.seconds = 0.0, math.inf
    assert trials.choose().gap == 0.5
    gaps["unguided"] = -0.1
    assert trials.choose().gap == -0.1
