"""What is said of an energy before anything is learned."""

import pytest
import torch
from torch import Tensor

from vgs_rl.agents.automatic import survey as module
from vgs_rl.agents.automatic.survey import ILL_CONDITIONED, condition_number, survey
from vgs_rl.envs import Funnel10
from vgs_rl.exploration import AffineMap, Clock, Composed, LocationScale
from vgs_rl.foreign.function_energy import FunctionEnergy


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def turned(dim: int, longest: float) -> Tensor:
    """A matrix whose axes are 1 to `longest`, turned."""
    axes = torch.linalg.qr(torch.randn(dim, dim, generator=generator(), dtype=torch.float64))[0]
    return (
        axes * torch.linspace(0, 1, dim, dtype=torch.float64).mul(torch.tensor(longest).log()).exp()
    )


def test_a_funnel_is_well_conditioned_and_its_affine_copy_is_not() -> None:
    x = Funnel10().sample(1_000, generator(1)).double()
    even = torch.zeros(len(x))
    assert condition_number(x, even) < 0.3 * ILL_CONDITIONED
    assert condition_number(1e3 * x + 5.0, even) == pytest.approx(condition_number(x, even))
    assert condition_number(x @ turned(10, 1e4).T, even) > 3 * ILL_CONDITIONED


@pytest.mark.parametrize(("longest", "doubted"), [(1.5, False), (1e4, True)])
def test_a_bend_that_is_found_in_correlated_coordinates_is_doubted(
    longest: float, doubted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inverse = torch.linalg.inv(turned(3, longest))
    energy = FunctionEnergy(lambda x: 0.5 * (x.double() @ inverse.T).square().sum(-1).to(x), 3)
    bends = [AffineMap(torch.zeros(3).double(), torch.ones(3).double())]
    monkeypatch.setattr(module, "preconditioner", lambda *_: None)
    monkeypatch.setattr(module, "fit_location_scale", lambda *_: bends.pop() if bends else None)
    found = survey(energy, generator(), clock=Clock(3.0), seconds=1.5, tell=lambda _: None)
    assert found.bends == 1
    assert bool(found.doubts) == doubted
    assert not doubted or "its neck may be narrower" in found.doubts[0]


@pytest.mark.parametrize(("slope", "careful"), [(0.0, False), (0.5, True)])
def test_a_funnel_that_particles_have_shown_is_a_caution(
    slope: float, careful: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents, zeros = torch.tensor([-1, 0]), torch.zeros(2, 3).double()
    scales = zeros.clone()
    scales[1, 1] = slope
    plain = AffineMap(zeros[0, :2], zeros[0, :2] + 1)
    bends = [Composed(plain, LocationScale(parents, zeros, scales))]
    monkeypatch.setattr(module, "fit_location_scale", lambda *_: bends.pop() if bends else None)
    energy = FunctionEnergy(lambda x: 0.5 * x.square().sum(-1), 2)
    found = survey(energy, generator(), clock=Clock(3.0), seconds=1.5, tell=lambda _: None)
    assert bool(found.cautions) == careful
    assert not careful or "a funnel was undone as far as particles knew it" in found.cautions[0]
