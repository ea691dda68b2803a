"""The neck of a hierarchical model is in reach before anything is explored, and nothing else is."""

import math

import pytest
import torch
from test_coordinates import check_map, normal
from torch import Tensor

from vgs_rl import Energy, FunctionEnergy
from vgs_rl.agents.automatic.survey import survey
from vgs_rl.envs import (
    DW4,
    GMM9,
    GMM40,
    BreastCancer,
    EightSchools,
    FortyModes,
    Gaussian,
    ManyWell32,
    MixtureMeans,
    StudentT,
)
from vgs_rl.exploration import (
    Clock,
    Coordinates,
    SplineLocationScale,
    given_one,
    load_coordinates,
    modes,
)
from vgs_rl.samplers.mcmc.kernels import FiniteEnergy


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def regression(x: Tensor) -> Tensor:
    """Eight coefficients and the logarithm of the noise, of sixty data."""
    design = torch.randn(60, 8, generator=source(1), dtype=torch.float64)
    design[:, 1] += 2 * design[:, 0]
    data = design.sum(-1) + 0.7 * torch.randn(60, generator=source(2), dtype=torch.float64)
    log_noise, slopes = x[:, 0].double(), x[:, 1:].double()
    squares = (data - slopes @ design.T).square().sum(-1)
    prior = 0.02 * slopes.square().sum(-1) + 0.125 * log_noise.square()
    return 0.5 * squares * torch.exp(-2 * log_noise) + 60 * log_noise + prior


def banana(x: Tensor) -> Tensor:
    return x[:, 0].square() / 8 + 50 * (x[:, 1] - 0.5 * x[:, 0].square()).square()


def intercepts(x: Tensor) -> Tensor:
    """Ten logistic regressions that share the mean and the scale of their intercepts."""
    chance = torch.sigmoid(0.5 * torch.randn(10, 1, generator=source(3), dtype=torch.float64))
    successes = (torch.rand(10, 6, generator=source(4), dtype=torch.float64) < chance).sum(-1)
    mean, log_scale, effects = x[:, :1].double(), x[:, 1].double(), x[:, 2:].double()
    softplus = torch.nn.functional.softplus
    fit = (successes * effects - 6 * softplus(effects)).sum(-1)
    spread = 0.5 * (effects - mean).square().sum(-1) * torch.exp(-2 * log_scale) + 10 * log_scale
    prior = mean.square().sum(-1) / 18 + softplus(2 * log_scale) - log_scale
    return spread + prior - fit


def left(energy: Energy, z: Tensor, coordinates: Coordinates) -> Tensor:
    """E of z beyond |z|²/2 in all but the first, less the same where these are 0."""
    plain = torch.nn.functional.pad(z[:, :1], (0, z.shape[1] - 1))
    levels = []
    for each in (z, plain):
        x, log_det = coordinates.with_log_det(each)
        levels.append(energy(x) - log_det)
    return levels[0] - levels[1] - 0.5 * z[:, 1:].square().sum(-1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "energy", [EightSchools(), FunctionEnergy(regression, 9), FunctionEnergy(banana, 2)]
)
def test_what_is_gaussian_given_one_coordinate_is_normal_there(energy: Energy, seed: int) -> None:
    found = given_one(FiniteEnergy(energy, dtype=torch.float64), energy.dim, source(seed))
    assert found is not None
    assert float(left(energy, normal(200, energy.dim), found).abs().quantile(0.9)) < 0.02


@pytest.mark.parametrize("seed", range(3))
def test_what_is_nearly_gaussian_is_nearly_normal_and_its_neck_is_exact(seed: int) -> None:
    energy = FunctionEnergy(intercepts, 12)
    found = given_one(FiniteEnergy(energy, dtype=torch.float64), 12, source(seed))
    assert found is not None
    z = normal(200, 12)
    assert float(left(energy, z, found).abs().median()) < 0.5
    z[:, 0] = -5.0  # where the scale is small, each effect is what all share
    assert float(left(energy, z, found).abs().median()) < 0.5
    assert float(found.to_x(z)[:, 2:].std(1).max()) < 0.1


def test_exact_samples_are_normal_there() -> None:
    energy = EightSchools()
    found = given_one(FiniteEnergy(energy, dtype=torch.float64), 10, source())
    assert found is not None
    z = found.to_z(energy.sample(20_000, source()))
    covariance = torch.cov(z.T)
    torch.testing.assert_close(z.mean(0), torch.zeros(10).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(covariance, torch.eye(10).double(), atol=0.06, rtol=0)


@pytest.mark.parametrize(
    "energy",
    [
        GMM9(),
        GMM40(),
        ManyWell32(),
        FortyModes(),
        Gaussian(torch.zeros(6), torch.arange(1.0, 7.0).diag()),
        StudentT(10, 2.0),
        DW4(),
        BreastCancer(),
        MixtureMeans(),
    ],
)
def test_other_targets_stay_as_they_are(energy: Energy) -> None:
    for seed in range(3):
        finite = FiniteEnergy(energy, dtype=torch.float64)
        assert given_one(finite, energy.dim, source(seed)) is None


def test_an_exploration_enters_the_neck() -> None:
    energy = EightSchools()
    found = survey(energy, source(), clock=Clock(), seconds=20, tell=lambda _: None)
    weight = found.exploration.log_weight.double().softmax(0)
    assert found.unit is not None and found.cautions == ()
    log_tau = found.unit.to_x(found.exploration.x)[:, 1]
    true = energy.sample(50_000, source())[:, 1].double()
    assert float(weight @ log_tau - true.mean()) == pytest.approx(0, abs=0.12)
    neck = float(weight @ (log_tau < -1).double())
    assert neck == pytest.approx(float((true < -1).double().mean()), rel=0.35)


def tables() -> SplineLocationScale:
    knots = torch.tensor([-2.0, -0.5, 0.3, 1.0, 2.5])
    m, s = torch.randn(2, 5, 3, generator=source(), dtype=torch.float64)
    return SplineLocationScale(knots, m, 0.2 * s)


def test_splines_are_a_map_within_their_knots_and_beyond() -> None:
    z = normal(40, 4)
    z[:, 0] *= 2
    check_map(tables(), z)


def test_beyond_the_knots_a_spline_is_a_line() -> None:
    v = torch.tensor([2.5, 3.5, 4.5]).double()
    z = torch.nn.functional.pad(v.unsqueeze(1), (0, 3))
    x, log_det = tables().with_log_det(z)
    torch.testing.assert_close(x[2] - x[1], x[1] - x[0])
    assert float(log_det.diff().diff()) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("knots", torch.tensor([0.0, 1.0, 1.0, 2.0, 3.0]), "knots must rise"),
        ("knots", torch.tensor([0.0, 1.0]), r"knots must have shape \(K,\), K >= 4, got \(2,\)"),
        ("location", torch.zeros(4, 3), r"location must have shape \(5, D - 1\), got \(4, 3\)"),
        ("log_scale", torch.full((5, 3), math.nan), "must be finite"),
    ],
)
def test_tables_that_are_none_are_refused(name: str, value: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_coordinates({**tables().state_dict(), name: value})


def test_a_matrix_too_hard_for_lapack_is_its_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    solve = torch.linalg.eigh

    def fails(matrix: Tensor) -> tuple[Tensor, Tensor]:
        if bool((matrix > 1e200).any()):
            raise torch.linalg.LinAlgError("did not converge")
        return solve(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    easy = torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double()
    hard = torch.tensor([[1e250, 1.0], [1.0, 1.0]], dtype=torch.float64)
    width, axes = modes.eigen(torch.stack([easy, hard]))
    torch.testing.assert_close(width[0], torch.tensor([1.0, 3.0]).double())
    assert width[1].tolist() == [1e250, 1.0]
    torch.testing.assert_close(axes[1], torch.eye(2).double())
