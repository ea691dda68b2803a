"""One call samples an energy without settings; its verdict is never better than the evidence."""

import dataclasses
import importlib
import json
import math
import pickle
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from commands import load
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import vgs_rl
from vgs_rl.agents.automatic.design import choose_design
from vgs_rl.agents.automatic.trials import Trial
from vgs_rl.agents.value_gradient.agent import ValueGradientAgent
from vgs_rl.envs import Gaussian, StudentMixture
from vgs_rl.evaluation.certificate import Certificate
from vgs_rl.evaluation.verdict import Evidence, Verdict, judge_evidence
from vgs_rl.experiments.automatic.around import explore_around
from vgs_rl.exploration import Clock, MappedEnergy, explore, periodic

PROVEN = Certificate(
    n=10_000,
    n_backward=2_000,
    confidence=0.95,
    premise="explored particles (SMC)",
    log_z=1.0,
    log_z_error=0.01,
    log_z_low=0.97,
    log_z_high=1.04,
    tv_bound=0.3,
    k_hat=0.3,
    k_limit=0.7,
    k_hat_backward=0.3,
    ess=0.6,
    largest_weight=0.001,
    sample_size=1.2,
)
GOOD = Evidence(
    certificate=PROVEN,
    elbo=0.8,
    dead=0.0,
    eubo=1.2,
    explored_log_z=1.05,
    explored_spread=0.05,
    moved=0.05,
    moved_error=0.03,
    shares=0.01,
    shares_error=0.03,
    drift=0.05,
    drift_error=0.2,
    doubts=(),
)


def scales(x: Tensor) -> Tensor:
    """A Gaussian of standard deviations 1e-3 and 1e3 around 100; log Z = 0."""
    std = torch.tensor([1e-3, 1e3]).to(x)
    return 0.5 * ((x - 100.0) / std).square().sum(-1) + math.log(2 * math.pi)


def far_is_an_error(x: Tensor) -> Tensor:
    if bool((x.abs() > 1e3).any()):
        raise RuntimeError("too far")
    return x.square().sum(-1)


def test_badly_scaled_energies_cost_nothing() -> None:
    result = vgs_rl.sample(scales, 4_000, dim=2, seconds=20, seed=3)
    assert result.verdict == "trust", result
    assert abs(result.log_z.value) < 0.05
    assert result.log_z.low < result.log_z.value < result.log_z.high
    weight = torch.softmax(result.log_weight.double(), 0)
    mean = weight @ result.x.double()
    assert float(mean[0]) == pytest.approx(100.0, abs=1e-4)
    assert float(mean[1]) == pytest.approx(100.0, abs=100.0)
    assert result.resampled(10).shape == (10, 2)
    assert repr(result).startswith("verdict: trust")
    torch.testing.assert_close(result.sampler.sample(4_000, 3).x, result.x)


@pytest.fixture
def processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds are those of this process: what else the machine does takes none of them."""
    clock = SimpleNamespace(monotonic=time.process_time)
    monkeypatch.setattr(importlib.import_module("vgs_rl.exploration.clock"), "time", clock)


def require_the_neck(steepness: tuple[float, ...], seconds: float) -> None:
    """Samples of y_i ~ N(0, exp(a_i v)) and v ~ N(0, 9) reach the neck."""

    def funnel(x: Tensor) -> Tensor:
        v, rest = x[:, :1], x[:, 1:]
        logs = v * torch.tensor(steepness).to(x)
        narrow = 0.5 * (rest.square() * (-logs).exp() + logs).sum(-1)
        constant = math.log(3.0) + 0.5 * x.shape[1] * math.log(2 * math.pi)
        return narrow + v[:, 0].square() / 18 + constant

    dim = 1 + len(steepness)
    result = vgs_rl.sample(funnel, 4_000, dim=dim, seconds=seconds, progress_bar=False)
    assert result.settings["bends"] > 0
    assert result.log_z.value == pytest.approx(0.0, abs=0.1)
    weight = torch.softmax(result.log_weight.double(), 0)
    share = float(weight[result.x[:, 0] < -3].sum())
    assert share == pytest.approx(0.1587, abs=0.03)


def test_a_funnel_of_one_scale_is_sampled_down_its_neck() -> None:
    require_the_neck((1.0, 1.0, 1.0, 1.0), seconds=120)  # it ends much sooner


@pytest.mark.slow  # a training; tests of exploration say what finds the neck
@pytest.mark.usefixtures("processor_time")
def test_a_funnel_of_several_scales_is_sampled_down_its_neck() -> None:
    require_the_neck((1.0, 1.0, 0.5, 0.5), seconds=15)


@pytest.mark.slow  # tests of the Hessian and of modes say what it rests on
@pytest.mark.usefixtures("processor_time")
def test_a_skewed_gaussian_in_300_dimensions_is_trusted() -> None:
    dim = 300
    normal = torch.randn(dim, dim, generator=torch.Generator().manual_seed(1)).double()
    axes, width = torch.linalg.qr(normal)[0], torch.logspace(-1, 1, dim, dtype=torch.float64)
    precision = (axes / width.square()) @ axes.T
    truth = 0.5 * dim * math.log(2 * math.pi) + float(width.log().sum())

    def bowl(x: Tensor) -> Tensor:
        return 0.5 * (((x - 3) @ precision.to(x)) * (x - 3)).sum(-1)

    result = vgs_rl.sample(bowl, 4_000, dim=dim, seconds=120, progress_bar=False)
    assert result.verdict == "trust"
    assert result.log_z.value == pytest.approx(truth, abs=0.1)


def test_modes_with_heavy_tails_are_trusted() -> None:
    target = StudentMixture(10, degrees=2.0, components=4)
    result = vgs_rl.sample(target, 5_000, seconds=40, progress_bar=False)
    assert result.verdict == "trust"
    assert abs(result.log_z.value) < 0.05
    assert result.settings["learning"][-1]["tails"] == "components"


def test_the_better_of_two_turns_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second turn that ends in a worse sampler does not replace the first one's."""
    call = importlib.import_module("vgs_rl.experiments.automatic.call")
    run, turns = call.Learning.run, []

    def learned(learning: Any) -> Trial:
        best: Trial = run(learning)
        if turns:
            best.agent.mdp.start.widen(3.0)
        turns.append(best)
        return best

    monkeypatch.setattr(call.Learning, "run", learned)
    unsure = Verdict("use the weights", reasons=("so says the test",))
    monkeypatch.setattr(call, "judge_evidence", lambda evidence: unsure)
    result = vgs_rl.sample("FourGauss", 1_000, seconds=30, progress_bar=False)
    assert len(turns) > 1
    assert result.agent is turns[0].agent
    assert result.evidence.certificate.ess == pytest.approx(result.samples.ess)


@pytest.mark.parametrize("seconds", [0.0, math.inf])
def test_what_has_no_time_to_reach_the_target_replaces_nothing_that_did(seconds: float) -> None:
    energy, generator = Gaussian((0.0, 3.0), (1.0, 4.0)), torch.Generator().manual_seed(0)
    before = explore(energy, generator, n=128)
    assert before.complete
    design, _ = choose_design(before.x, generator)
    mapped = MappedEnergy(energy, design.coordinates)
    agent: Any = None
    found = explore_around(
        Trial(design=design, agent=agent, energy=mapped),
        energy,
        before,
        generator,
        clock=Clock(),
        seconds=seconds,
        dtype=torch.float64,
        tell=lambda message: None,
    )
    assert found.complete
    assert (found.islands is before.islands) == (seconds == 0.0)
    assert found.evaluations > before.evaluations


def test_an_energy_with_constants_in_float32_is_sampled_in_float32() -> None:
    matrix = torch.tensor([[2.0, 0.3], [0.0, 0.5]])
    result = vgs_rl.sample(lambda x: 0.5 * (x @ matrix).square().sum(-1), 1_000, dim=2, seconds=6)
    assert result.x.dtype == torch.float32
    truth = math.log(2 * math.pi) - float(matrix.logdet())
    assert result.log_z.value == pytest.approx(truth, abs=0.1)


def test_ctrl_c_while_learning_gives_what_was_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    update, turns = ValueGradientAgent.update, []

    def press(self: ValueGradientAgent) -> dict[str, Tensor]:
        if self.counters.updates == 2:
            turns.append(self)
            signal.raise_signal(signal.SIGINT)
        return update(self)

    monkeypatch.setattr(ValueGradientAgent, "update", press)
    result = vgs_rl.sample(scales, 500, dim=2, seconds=30, target_ess=1.0)
    assert len(turns) == 1 and len(result.x) == 500
    assert result.settings["learning"][-1]["updates"] == 3


def ring(x: Tensor) -> Tensor:
    return 8.0 * (x.norm(dim=-1) - 2.0) ** 2


def test_a_run_repeats_from_its_settings_and_is_in_tensorboard(tmp_path: Path) -> None:
    options = {"dim": 2, "progress_bar": False}
    logs = tmp_path / "logs"
    first = vgs_rl.sample(ring, 500, seconds=3, target_ess=1.0, seed=4, log_dir=logs, **options)
    assert first.settings["learning"][-1]["updates"] > 1
    settings = json.loads(json.dumps(first.settings))
    again = vgs_rl.sample(ring, repeat=settings, **options)
    assert torch.equal(again.x, first.x) and torch.equal(again.log_weight, first.log_weight)
    assert str(again.verdict) == str(first.verdict) and again.log_z == first.log_z
    assert again.settings["effort"] == settings["effort"] and again.settings["seed"] == 4

    events = EventAccumulator(str(logs)).Reload()
    tags = events.Tags()
    assert {"trial/ess", "trial/gap", "exploration/log_z", "verdict/ess"} <= set(tags["scalars"])
    assert tags["images"] == ["figures/samples"]
    ends = [each.value for each in events.Scalars("trial/ess")]
    shown = [entry["ess"] for entry in first.settings["learning"]]
    assert ends == pytest.approx(shown) and events.Scalars("trial/ess")[-1].step > 0
    card = events.Tensors("verdict/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert str(first.verdict) in card and first.reasons[0] in card
    with pytest.raises(FileExistsError, match="holds another run"):
        vgs_rl.sample(ring, seconds=3, log_dir=logs, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"effort": None}, "repeat.effort must be lists by name"),
        ({"effort": {}}, r"effort\.fast has too few entries"),
        ({"target": "GMM9"}, "repeat.target is 'GMM9', got 'FunctionEnergy'"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_what_cannot_be_repeated_is_told(change: dict[str, Any], message: str) -> None:
    settings = {"target": "FunctionEnergy", "n": 50, "seed": 0, "seconds": 3.0}
    settings |= {"target_ess": 0.8, "effort": {}, **change}
    with pytest.raises(ValueError, match=message):
        vgs_rl.sample(ring, dim=2, repeat=settings, progress_bar=False)
    del settings["n"]
    with pytest.raises(ValueError, match="repeat must be the settings .* got none with n"):
        vgs_rl.sample(ring, dim=2, repeat=settings)


def changed(change: dict[str, Any]) -> Evidence:
    """Good evidence with some of its numbers, or of its certificate's, replaced."""
    proven = dataclasses.replace(PROVEN, **change.get("certificate", {}))
    return dataclasses.replace(GOOD, **{**change, "certificate": proven})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"certificate": {"k_hat": 0.8}}, "tail is too heavy"),
        ({"certificate": {"k_hat": math.nan}}, "tail is too heavy"),
        ({"certificate": {"ess": 0.005}}, "50 effective samples are fewer"),
        ({"certificate": {"log_z_high": 0.89}}, "not of the target that the weights show"),
        ({"explored_log_z": 2.0}, "log Z of the weights and of exploration differ by 1.00"),
        ({"explored_log_z": math.nan}, "differ by nan"),
        ({"eubo": 0.2}, "contradict log Z"),
        ({"certificate": {"k_hat_backward": 1.1}}, "where the sampler hardly goes"),
        ({"moved": 0.5}, "0.50 standard deviations apart"),
        ({"shares": 0.12}, "a region's share is 0.12 larger or smaller"),
        ({"drift": -0.4}, "MCMC moves change the samples' mean energy by -0.40 nats"),
        ({"drift": math.nan}, "MCMC moves change the samples' mean energy by nan nats"),
        ({"dead": 0.7}, "70% of the samples have weight 0"),
        ({"doubts": ("it ran out of time",)}, "it ran out of time"),
    ],
)
def test_any_evidence_against_the_samples_is_a_reason(change: dict[str, Any], reason: str) -> None:
    assert judge_evidence(GOOD) == "trust"
    verdict = judge_evidence(changed(change))
    assert verdict == "do not use"
    assert any(reason in each for each in verdict.reasons), verdict.reasons


@pytest.mark.parametrize(
    "change",
    [
        {"certificate": {"ess": 0.1}},
        {"certificate": {"k_hat": 0.6}},
        {"explored_log_z": 1.12},
        {"cautions": ("its neck may go on",)},
    ],
)
def test_doubtful_weights_are_to_be_used_but_not_trusted(change: dict[str, Any]) -> None:
    verdict = judge_evidence(changed(change))
    assert verdict == "use the weights" and len(verdict.reasons) == 1


def test_an_upper_bound_below_the_estimate_is_told() -> None:
    assert PROVEN.log_z_low is not None
    high = 0.5 * (PROVEN.log_z_low + PROVEN.log_z)
    verdict = judge_evidence(changed({"certificate": {"log_z_high": high}}))
    assert verdict == "trust" and "below its estimate" in verdict.reasons[-1]
    assert len(judge_evidence(GOOD).reasons) == 1


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"dead": 0.002}, "0.20% of the samples have weight 0"),
        ({"notes": ("rho_t is at its bound",)}, "rho_t is at its bound"),
    ],
)
def test_what_costs_nothing_is_told_all_the_same(change: dict[str, Any], note: str) -> None:
    verdict = judge_evidence(changed(change))
    assert verdict == "trust" and note in verdict.reasons[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either a target or log_density"),
        ({"target": "GMM9", "log_density": scales}, "give either a target or log_density"),
        ({"target": scales}, "dim must be given with a function"),
        ({"log_density": scales}, "dim must be given with a function"),
        ({"target": "DW4"}, "sample needs a target on R\\^D, got DW4 on a CentreOfMassFree"),
        ({"target": "GMM9", "seconds": 0}, "sample.seconds must be a positive number, got 0"),
        ({"target": "GMM9", "target_ess": 2}, "sample.target_ess must be at most 1, got 2"),
        ({"target": "GMM9", "n": 0}, "n must be"),
        (
            {"target": lambda x: x @ torch.eye(3), "dim": 2},
            "FunctionEnergy.energy failed on states",
        ),
        ({"target": lambda x: x, "dim": 2}, r"must return shape \(B,\)"),
        (
            {"target": lambda x: np.square(np.asarray(x)).sum(-1), "dim": 2},
            "must return a tensor, got ndarray: give a function of NumPy to Energy.from_function",
        ),
        ({"target": far_is_an_error, "dim": 2}, "coordinates up to .*: RuntimeError: too far"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vgs_rl.sample(**arguments)


def test_a_support_bounds_the_samples() -> None:
    """A gamma density in one coordinate, a von Mises density in the other."""

    def energy(x: Tensor) -> Tensor:
        assert bool((x[:, 0] >= 0).all() & (x[:, 1] >= 0).all() & (x[:, 1] <= 2 * math.pi).all())
        return x[:, 0] - 2 * x[:, 0].log() - torch.cos(x[:, 1])

    support = [torch.distributions.constraints.positive, periodic(2 * math.pi)]
    result = vgs_rl.sample(energy, 4_000, dim=2, support=support, seconds=20, progress_bar=False)
    truth = math.lgamma(3) + math.log(2 * math.pi * float(torch.special.i0(torch.ones(()))))
    assert result.log_z.value == pytest.approx(truth, abs=0.03)
    weight = torch.softmax(result.log_weight.double(), 0)
    assert float(weight @ result.x[:, 0].double()) == pytest.approx(3.0, abs=0.2)
    torch.testing.assert_close(result.sampler.sample(4_000, 0).x, result.x)


def test_the_command_explores_an_energy_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_energy.py").write_text(
        "import vgs_rl\n\n\nclass Bowl(vgs_rl.Energy):\n    dim = 2\n\n"
        "    def energy(self, x):\n        return 2.0 * x.square().sum(-1)\n"
    )
    main = load("commands.sample").main
    options = ["my_energy:Bowl", "--n=500", "--seconds=4", "--output=x.npz"]
    assert main(options) == 0
    out = capsys.readouterr().out
    assert out.startswith("verdict: ") and "samples   x.npz: x (500, 2)" in out
    report = json.loads((tmp_path / "x.json").read_text())
    assert out.startswith(f"verdict: {report['verdict']}\n")
    assert report["settings"]["target"] == "my_energy:Bowl" and report["settings"]["learning"]
    written = np.load(tmp_path / "x.npz")
    assert written["x"].shape == (500, 2) and written["log_weight"].shape == (500,)
    again = ["my_energy:Bowl", "--repeat=x.json", "--output=again.npz", "--logdir=logs"]
    assert main(again) == 0
    assert "curves    tensorboard --logdir logs" in capsys.readouterr().out
    assert np.array_equal(np.load(tmp_path / "again.npz")["x"], written["x"])
    assert main([*again, "--n=10"]) == 2
    assert "--n is that of --repeat: leave it out" in capsys.readouterr().err
    assert main(["my_energy:Bowl", "--repeat=again.npz"]) == 2
    assert "again.npz is no report of samples of an energy" in capsys.readouterr().err
    assert main(["my_energy:Bowl", "--seconds=-1"]) == 2
    assert main([str(tmp_path), "--seconds=5"]) == 2
    assert "--seconds is for an energy's name" in capsys.readouterr().err
    assert main(["GMM8", "--seconds=5"]) == 2
    assert "did you mean GMM9" in capsys.readouterr().err


def test_a_verdict_is_its_word_and_keeps_its_reasons() -> None:
    verdict = Verdict("trust", ("a reason",))
    again = pickle.loads(pickle.dumps(verdict))
    assert verdict == "trust" and f"{verdict:>8}" == "   trust"
    assert again == verdict and again.reasons == ("a reason",)


@pytest.mark.slow
def test_a_narrow_mode_far_away_needs_a_prior_that_has_mass_there() -> None:
    """What no number shows: every walk from elsewhere ends in the widest mode."""
    centres = torch.zeros(3, 20, dtype=torch.float64)
    centres[0, 0], centres[1, 1], centres[2] = 100.0, -100.0, 20.0
    widths, shares = torch.tensor([1.0, 0.3, 3.0]), torch.tensor([0.2, 0.5, 0.3])

    def energy(x: Tensor) -> Tensor:
        normal = (x.unsqueeze(1) - centres.to(x)) / widths.to(x).unsqueeze(1)
        level = shares.log() - 20 * widths.log() - 10 * math.log(2 * math.pi)
        return -torch.logsumexp(level.to(x) - 0.5 * normal.square().sum(-1), -1)

    without = vgs_rl.sample(energy, 4_000, dim=20, seconds=60, progress_bar=False)
    assert without.log_z.value == pytest.approx(math.log(0.3), abs=0.05)
    places = torch.distributions.Independent(torch.distributions.Normal(centres, 5.0), 1)
    prior = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(3, dtype=torch.float64)), places
    )
    found = vgs_rl.sample(energy, 4_000, dim=20, seconds=60, prior=prior, progress_bar=False)
    assert abs(found.log_z.value) < 0.1
