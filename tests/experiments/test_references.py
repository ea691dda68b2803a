"""References by tempered SMC: log Z by bridge sampling, files that say how they were made."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import load

from vgs_rl.envs import BrownianMotion, LogisticRegression, Phi4, StudentT, TwoModes
from vgs_rl.experiments.bridge import GaussianFit, bridge_log_z
from vgs_rl.experiments.tempered_reference import laplace_approximation
from vgs_rl.exploration.coordinates.affine import AffineMap


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(dim: int) -> AffineMap:
    zeros = torch.zeros(dim, dtype=torch.float64)
    return AffineMap(zeros, zeros + 1)


@pytest.mark.parametrize(("dim", "std"), [(2, 1.0), (5, 0.8), (5, 1.5)])
def test_bridge_sampling_finds_log_z_between_densities_that_overlap(dim: int, std: float) -> None:
    energy = StudentT(dim, 4.0)
    fit = GaussianFit(AffineMap(unit(dim).shift, std * unit(dim).factor))
    found = [
        bridge_log_z(energy, fit, energy.sample(2_000, generator(i)).double(), generator(100 + i))
        for i in range(8)
    ]
    error = float(np.std(found, ddof=1)) / math.sqrt(8)
    assert error < 0.02 and abs(np.mean(found)) < 5 * error


def test_bridge_sampling_with_the_target_itself_is_exact() -> None:
    energy = TwoModes(3, distance=1e-9)
    x = energy.sample(500, generator())
    assert bridge_log_z(energy, GaussianFit(unit(3)), x, generator(1)) == pytest.approx(0, abs=1e-6)


def test_a_mirrored_fit_is_normalised_and_has_two_equal_halves() -> None:
    map_ = AffineMap(torch.tensor([2.0]).double(), torch.tensor([0.5]).double())
    fit = GaussianFit(map_, mirrored=True)
    grid = torch.linspace(-8, 8, 4_001, dtype=torch.float64).unsqueeze(-1)
    assert float(fit.log_prob(grid).exp().sum()) * 16 / 4_000 == pytest.approx(1.0)
    x = fit.sample(4_000, generator())
    assert float((x > 0).double().mean()) == pytest.approx(0.5, abs=0.01)
    assert abs(float(x.square().mean()) - 4.25) < 0.2


def test_the_fit_of_a_field_has_the_covariance_of_free_fields() -> None:
    """Without φ⁴ the field is Gaussian, with precision 2 (1 - 2 κ (cos p + cos q)) at wave p, q."""
    energy = Phi4(4, kappa=0.15, lam=1e-12)
    precision = torch.autograd.functional.hessian(
        lambda x: energy.energy(x[None])[0], torch.zeros(16, dtype=torch.float64)
    )
    factor = torch.linalg.cholesky(torch.linalg.inv(precision))
    z = torch.randn(40_000, 16, generator=generator(), dtype=torch.float64)
    fit = GaussianFit.of_field(energy, z @ factor.T)
    found = fit.coordinates.factor @ fit.coordinates.factor.T
    torch.testing.assert_close(found @ precision, torch.eye(16).double(), atol=0.05, rtol=0)
    waves = 2 * torch.pi * torch.arange(4).double() / 4
    modes = 2 * (1 - 2 * 0.15 * (waves.cos()[:, None] + waves.cos()))
    log_z = 8 * math.log(2 * math.pi) - 0.5 * float(modes.log().sum())
    got = bridge_log_z(energy, fit, z @ factor.T, generator(1), draws=1)
    assert got == pytest.approx(log_z, abs=0.01)


def test_laplaces_approximation_is_the_mode_and_the_hessian() -> None:
    z = torch.randn(60, 3, generator=generator(), dtype=torch.float64)
    energy = LogisticRegression(z, (z[:, 0] > 0).double())
    found = laplace_approximation(energy)
    mode = found.shift.unsqueeze(0)
    assert float(energy.with_gradient(mode)[1].norm()) < 1e-6
    hessian = torch.autograd.functional.hessian(lambda x: energy.energy(x[None])[0], mode[0])
    product = found.factor @ found.factor.T @ hessian
    torch.testing.assert_close(product, torch.eye(4).double())


def test_make_reference_writes_samples_log_z_and_notes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "phi4.npz"
    sizes = ["--runs=3", "--validation_runs=1", "--particles=64", "--validation=20", "--test=40"]
    main = load("commands.make_reference").main
    assert main(["--target=Phi4L8", f"--out={out}", "--seed=3", *sizes]) == 0
    assert "log_z_smc" in capsys.readouterr().out
    with np.load(out, allow_pickle=False) as file:
        assert file["validation"].shape == (20, 64) and file["test"].shape == (40, 64)
        assert file["test"].dtype == np.float32
        diagnostics = json.loads(str(file["diagnostics"]))
        provenance = json.loads(str(file["provenance"]))
    assert provenance["recipe"]["particles"] == 64 and provenance["seed"] == 3
    assert len(diagnostics["log_z"]["of_runs"]) == len(diagnostics["log_z_smc"]["of_runs"]) == 3
    assert abs(diagnostics["log_z"]["mean"] - 40.05) < 0.5


@pytest.mark.parametrize(
    ("target", "option", "own"),
    [("Phi4L8", "--thin=3", "--runs, --validation_runs"), ("DW4", "--particles=3", "--validation")],
)
def test_options_of_the_other_kind_of_target_are_refused(
    target: str, option: str, own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = load("commands.make_reference").main
    assert main([f"--target={target}", f"--out={tmp_path / 'x.npz'}", option]) == 2
    error = capsys.readouterr().err
    assert f"{option.partition('=')[0]}: {target} takes {own}" in error


def test_an_energy_without_a_file_says_so() -> None:
    assert not hasattr(BrownianMotion(), "reference_name")
    with pytest.raises(NotImplementedError, match="BrownianMotion ships no reference samples"):
        BrownianMotion().reference()
