"""The untuned benchmark: its own densities are normalised, and errors are what they say."""

import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vgs_rl.energy import Energy
from vgs_rl.envs import GMM9, Funnel10, Gaussian, ManyWell32, StudentMixture, StudentT
from vgs_rl.experiments.benchmarks import untuned as module
from vgs_rl.experiments.benchmarks.rivals import Estimate
from vgs_rl.experiments.benchmarks.untuned import counts, summary, untuned
from vgs_rl.experiments.benchmarks.untuned_targets import (
    LOCAL,
    TARGETS,
    AffineCopy,
    Counted,
    Truth,
    make_target,
)
from vgs_rl.registry import find, registered


class Unknown(Energy):
    dim = 2

    def energy(self, x: Tensor) -> Tensor:
        return x.square().sum(-1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["scales", "narrow", "far"])
def test_local_densities_are_gaussians_of_known_log_z(name: str) -> None:
    """E + log Z is ½ χ² + ½ log det(2 pi C) at states of a known map of normal numbers."""
    energy = make_target(name)
    std = {"scales": [1e-3, 1.0, 1e3], "narrow": [1e-3] * 4, "far": [1.0] * 3}[name]
    scale, mean = torch.tensor(std).double(), 1_000.0 if name == "far" else 0.0
    z = torch.randn(500, energy.dim, generator=seeded(), dtype=torch.float64)
    log_det = float((scale * math.sqrt(2 * math.pi)).log().sum())
    assert energy.log_z == pytest.approx(log_det, abs=1e-6)
    density = energy(mean + scale * z) + energy.log_z
    torch.testing.assert_close(density, 0.5 * z.square().sum(-1) + log_det, atol=1e-5, rtol=1e-5)


def jacobian(copied: AffineCopy) -> Tensor:
    """A of x = m + A z, by the map itself."""
    origin = copied.coordinates.to_x(torch.zeros(1, copied.dim))
    return (copied.coordinates.to_x(torch.eye(copied.dim)) - origin).T


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), condition=st.floats(1.0, 1e6))
def test_an_affine_copy_has_the_condition_number_and_the_density_of_the_map(
    seed: int, condition: float
) -> None:
    copied = AffineCopy(Funnel10(), condition, seed)
    singular = torch.linalg.svdvals(jacobian(copied))
    assert float(singular[0] / singular[-1]) == pytest.approx(condition, rel=1e-4)
    x = torch.randn(20, 10, generator=seeded(seed), dtype=torch.float64)
    z = copied.coordinates.to_z(x)
    torch.testing.assert_close(copied(z), Funnel10()(x) - singular.log().sum(), atol=1e-3, rtol=0)


def test_an_affine_copy_has_the_same_z() -> None:
    """The mean weight of draws from a Gaussian that is mapped by hand is Z."""
    base = Gaussian((1.0, -2.0), (0.5, 2.0))
    copied = AffineCopy(base, seed=3)
    assert copied.log_z == base.log_z
    matrix = jacobian(copied)
    wide = 2.0 * torch.randn(40_000, 2, generator=seeded(), dtype=torch.float64)
    z = copied.coordinates.to_z(wide + torch.tensor([1.0, -2.0]))
    log_proposal = -0.125 * wide.square().sum(-1) - math.log(8 * math.pi) + matrix.det().abs().log()
    log_z = torch.logsumexp(-copied(z) - log_proposal, 0) - math.log(len(z))
    assert float(log_z) == pytest.approx(base.log_z, abs=0.03)


@pytest.mark.parametrize("base", [GMM9(), Funnel10(), ManyWell32()], ids=lambda e: type(e).__name__)
def test_exact_samples_of_a_copy_are_mapped_samples_of_the_target(base: GMM9) -> None:
    copied = AffineCopy(base)
    z = copied.sample(200, seeded(1))
    x = base.sample(200, seeded(1)).double()
    assert z.dtype == torch.float64
    torch.testing.assert_close(copied.coordinates.to_x(z), x, atol=1e-6, rtol=1e-6)
    # Densities differ from the target's by the determinant alone, and gradients fit them.
    gap = copied(z) - base(x)
    torch.testing.assert_close(gap, gap.mean().expand(200), atol=1e-6, rtol=0)
    leaf = z[:5].clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(copied(leaf).sum(), leaf)
    torch.testing.assert_close(copied.with_gradient(z[:5])[1], slope)


def test_default_targets_have_log_z_and_the_benchmarks_own_are_no_registered_names() -> None:
    known = {find(each).name for each in registered()}
    assert len(set(TARGETS)) == len(TARGETS)
    assert set(LOCAL) == set(TARGETS) - known
    for energy in map(make_target, TARGETS):
        assert energy.log_z is not None and energy.dim <= 128, type(energy).__name__
    copied = make_target("GMM9-affine")
    assert isinstance(copied, AffineCopy) and copied.dim == 2
    singular = torch.linalg.svdvals(jacobian(copied))
    assert float(singular[0] / singular[-1]) == pytest.approx(1e4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("GMM8", "did you mean GMM9"),
        ("DW4", "targets: DW4 is not on R\\^D"),
        ("test_untuned:Unknown", "Unknown has neither log Z nor exact or reference samples"),
    ],
)
def test_targets_that_cannot_be_compared_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_target(name)


# --- the count -----------------------------------------------------------------------------------


def test_the_count_is_of_states_and_is_shared_by_copies() -> None:
    counted = Counted(GMM9())
    assert counted.log_z is None and not counted.can_sample
    counted(torch.zeros(3, 2))
    energy, gradient = copy.deepcopy(counted).with_gradient(torch.ones(4, 2))
    assert counted.evaluations == 7
    torch.testing.assert_close((energy, gradient), GMM9().with_gradient(torch.ones(4, 2)))


# --- errors --------------------------------------------------------------------------------------


def test_errors_of_known_shifts_and_widths() -> None:
    truth = Truth.of(Gaussian((1.0, -1.0), (4.0, 0.25)))
    assert truth.has_moments
    x = torch.tensor([1.0, -1.0]) + torch.randn(20_000, 2, generator=seeded(5)) * torch.tensor(
        [2.0, 0.5]
    )
    mean_error, std_error = truth.errors(x)
    assert mean_error < 0.04 and std_error < 0.03
    moved, wide = truth.errors(x + torch.tensor([0.0, 0.5]))
    assert moved == pytest.approx(1.0, abs=0.04) and wide == pytest.approx(std_error)
    assert truth.errors(2 * (x - x.mean(0)) + x.mean(0))[1] == pytest.approx(1.0, abs=0.05)


def test_errors_are_those_of_weighted_samples() -> None:
    """Draws of a wider Gaussian with their weights are as good as exact samples."""
    truth = Truth.of(Gaussian((0.0, 0.0), (1.0, 1.0)))
    x = 1.5 * torch.randn(40_000, 2, generator=seeded(2), dtype=torch.float64)
    log_weight = -0.5 * (x.square() - (x / 1.5).square()).sum(-1)
    assert truth.errors(x)[1] > 0.4
    assert max(truth.errors(x, log_weight)) < 0.05
    far = torch.cat([x, torch.full((3, 2), torch.inf)])
    dead = torch.cat([log_weight, torch.tensor([-torch.inf, math.nan, -torch.inf])])
    assert truth.errors(far, dead) == truth.errors(x, log_weight)


def test_no_samples_or_no_weights_have_no_errors() -> None:
    truth = Truth.of(GMM9(), 2_000)
    assert all(math.isnan(each) for each in truth.errors(torch.zeros(0, 2)))
    dead = torch.full((5,), -torch.inf)
    assert all(math.isnan(each) for each in truth.errors(torch.zeros(5, 2), dead))
    assert truth.is_right(0.0, math.nan) is False


@pytest.mark.parametrize("energy", [StudentT(3), StudentMixture(4)])
def test_moments_that_do_not_exist_are_not_compared(energy: StudentT) -> None:
    truth = Truth.of(energy, 100)
    assert not truth.has_moments
    assert truth.is_right(0.05, math.nan) is True
    assert truth.is_right(0.2, math.nan) is False
    assert truth.is_right(None, math.nan) is None


def test_of_the_funnel_only_what_samples_know_is_compared() -> None:
    """exp(v) has a kurtosis that no exact samples of this number give; v itself is normal."""
    truth = Truth.of(Funnel10())
    assert truth.counted is not None
    assert truth.counted.tolist() == [True] + [False] * 9


@pytest.mark.parametrize(
    ("log_z", "mean_error", "right"),
    [(0.09, 0.1, True), (-0.11, 0.1, False), (0.0, 0.2, False), (math.nan, 0.1, False)],
)
def test_a_right_result_is_right_in_all_that_is_known(
    log_z: float, mean_error: float, right: bool
) -> None:
    truth = Truth.of(GMM9(), 2_000)
    assert truth.is_right(log_z, mean_error) is right
    assert truth.is_right(None, mean_error) is (mean_error < 0.15)


# --- the command ---------------------------------------------------------------------------------


def test_a_false_trust_is_trusted_and_wrong() -> None:
    cases = (("trust", True), ("trust", False), ("trust", None), ("do not use", False))
    rows = [{"verdict": word, "right": right} for word, right in cases]
    assert counts(rows) == {"results": 4, "right": 1, "trust": 3, "false trusts": 1}
    assert summary(rows) == "Right: 1 of 4. Verdict *trust*: 3, of which wrong: 1."


COLUMNS = (
    "| target | D | seed | verdict | right | log Z - truth | exploration's | mean error "
    "| std error | ESS of all | k-hat | energies | seconds |"
)
BESIDE = (
    "| target | D | seed | method | right | log Z - truth | mean error | std error | R-hat "
    "| energies | seconds | note |"
)


def exact(energy: Energy, n: int, *, seconds: float, seed: int) -> SimpleNamespace:
    """What `sample` gives, of exact samples and some evaluations."""
    energy(torch.zeros(123, energy.dim))
    x = make_target("narrow").sample(n, seeded(seed + 1))
    certificate = SimpleNamespace(log_z=-23.95, ess=0.9, k_hat=0.1)
    evidence = SimpleNamespace(certificate=certificate, explored_log_z=-24.0)
    return SimpleNamespace(
        x=x,
        log_weight=torch.zeros(n),
        evidence=evidence,
        verdict="trust",
        settings={"effort": {"stopped": [False]}},
    )


def test_ctrl_c_within_a_training_ends_the_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(energy: Energy, n: int, *, seconds: float, seed: int) -> SimpleNamespace:
        result = exact(energy, n, seconds=seconds, seed=seed)
        if seed == 1:
            result.settings["effort"]["stopped"].append(True)
        return result

    monkeypatch.setattr(module, "sample", stopped)
    with pytest.raises(KeyboardInterrupt):
        untuned(("narrow",), seeds=(0, 1, 2), n=500, json=tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["seed"] for row in rows] == [0]  # what was cut off is no result


def test_the_benchmark_writes_tables_summary_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results").mkdir()
    page, picture = tmp_path / "results/page.md", tmp_path / "images/page.png"
    page.write_text("<!-- untuned:begin -->\n<!-- untuned:end -->\n")
    rows = tmp_path / "rows.json"
    monkeypatch.setattr(module, "sample", exact)
    untuned(("narrow",), seeds=(0, 1), n=500, json=rows, markdown=page, picture=picture)
    text = page.read_text()
    assert COLUMNS in text and "| narrow | 4 | 0 | trust | yes | " in text
    assert "Right: 2 of 2." in text and "](../images/page.png)" in text
    assert picture.stat().st_size > 5_000
    found = json.loads(rows.read_text())
    assert found["summary"] == {"results": 2, "right": 2, "trust": 2, "false trusts": 0}
    assert found["rows"][0]["energies"] == 123 and found["rivals"] == []
    assert found["rows"][0]["mean error"] < 0.15


def test_rivals_get_the_seconds_that_the_sample_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def rival(name: str, energy: Energy, seconds: float, seed: int) -> Estimate:
        given.append(seconds)
        if name == "smc":
            raise RuntimeError("diverged")
        energy(torch.zeros(7, energy.dim))
        return Estimate(x=make_target("narrow").sample(500, seeded(seed)).double(), r_hat=1.01)

    monkeypatch.setattr(module, "sample", exact)
    monkeypatch.setattr(module, "run_rival", rival)
    monkeypatch.setattr(module, "require_rivals", lambda rivals: None)
    page, rows = tmp_path / "page.md", tmp_path / "rows.json"
    page.write_text("<!-- untuned:begin -->\n<!-- untuned:end -->\n")
    with pytest.raises(ValueError, match="no section 'untuned-rivals'"):
        untuned(("narrow",), rivals=("nuts",), markdown=page)
    page.write_text(
        "<!-- untuned:begin -->\n<!-- untuned:end -->\n"
        "<!-- untuned-rivals:begin -->\n<!-- untuned-rivals:end -->\n"
    )
    untuned(("narrow",), rivals=("nuts", "smc"), json=rows, markdown=page)
    found = json.loads(rows.read_text())
    assert given == [found["rows"][0]["seconds"]] * 2
    ours, nuts, smc = found["rivals"]
    assert (ours["method"], ours["note"], ours["right"]) == ("vgs_rl.sample", "trust", True)
    assert (nuts["energies"], nuts["right"], nuts["log Z - truth"]) == (7, True, None)
    assert (smc["note"], smc["right"]) == ("failed", False)
    assert BESIDE in page.read_text()


def test_a_target_that_fails_is_a_row_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("too far")

    monkeypatch.setattr(module, "sample", fails)
    untuned(("narrow", "far"), json=tmp_path / "rows.json")
    out = capsys.readouterr().out
    assert "narrow, seed 0: RuntimeError: too far" in out and "Right: 0 of 2" in out
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["verdict"] for row in rows] == ["failed", "failed"]
    assert rows[0]["log Z - truth"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"targets": ("narow",)},
            "targets: env: no target is named 'narow'.*own are scales, narrow",
        ),
        ({"rivals": ("nut",)}, "rivals: there is no 'nut'; .*nuts"),
        ({"seconds": 0}, "untuned.seconds must be a positive number, got 0"),
    ],
)
def test_wrong_options_are_refused_before_work(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        untuned(**options)  # type: ignore[arg-type]
