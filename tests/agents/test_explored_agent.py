"""An energy that comes without settings is explored, and the agent is the one that suits it."""

import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import load, without_pictures
from torch import Tensor

import vgs_rl
from vgs_rl import VGS
from vgs_rl.agents import ExplorationConfig, MixtureNetwork, MLPNetwork, ValueGradientAgent
from vgs_rl.agents.automatic import plan
from vgs_rl.agents.automatic.explored import ExploredEnergy
from vgs_rl.experiments.run import load_run
from vgs_rl.exploration import Clock

FAR = 50.0
WIDTHS = torch.tensor([0.5, 4.0])
# One round without a clock: tests take the same path however busy the machine is.
EFFORT = {
    "fast": [True],
    "search": [0.2],
    "late": [True] * 20,
    "trajectories": [None] * 20,
}


def short(seconds: float, decisions: dict[str, list[Any]] | None) -> Clock:
    """A clock that decides so, unless it is told otherwise."""
    return Clock(seconds, decisions or EFFORT)


class Pair(vgs_rl.Energy):
    """Two Gaussians of weights 0.2 and 0.8, far from 0 and of unequal widths; log Z = 0."""

    dim = 2
    log_z = 0.0

    def energy(self, x: Tensor) -> Tensor:
        z = (x - FAR) / WIDTHS.to(x)
        norm = math.log(2 * math.pi) + float(WIDTHS.log().sum())
        near, other = (0.5 * (z - shift).square().sum(-1) for shift in (-4.0, 4.0))
        return norm - torch.logaddexp(math.log(0.2) - near, math.log(0.8) - other)


@pytest.fixture(scope="module")
def agent() -> ValueGradientAgent:
    agent = VGS(Pair(), seed=1, device="cpu", lr=1e-3)
    assert agent.exploration.when == "always" and agent.unexplored
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "Clock", short)
        return agent.learn(updates=3, progress_bar=False)


def test_learning_begins_with_an_exploration(agent: ValueGradientAgent) -> None:
    assert not agent.unexplored and isinstance(agent.mdp.energy, ExploredEnergy)
    assert isinstance(agent.config.network, MixtureNetwork) and agent.config.lr == 1e-3
    assert agent.mdp.config.start.kind in ("noised", "noised_product")
    decided = agent.exploration
    assert decided.done and decided.unit is not None and decided.tails is not None
    assert agent.counters.updates == 3 and agent.counters.energy_evaluations > 10_000
    assert agent.counters.seconds > 0.1


def test_samples_are_in_the_coordinates_of_the_energy(agent: ValueGradientAgent) -> None:
    drawn = agent.sample(4_000)
    assert drawn.x.dtype == torch.float64 and drawn.log_weight is not None
    weight = torch.softmax(drawn.log_weight.double(), 0)
    high = weight @ (drawn.x[:, 1] > FAR).double()
    assert float(high) == pytest.approx(0.8, abs=0.05)
    mean = weight @ (drawn.x - FAR)
    torch.testing.assert_close(mean, 2.4 * WIDTHS.double(), atol=0.0, rtol=0.2)
    assert agent.energy is not agent.mdp.energy and isinstance(agent.energy, Pair)
    # Weights are those of the energy itself: log w + E is free of what the map does.
    z = agent.explored.to_z(drawn.x, torch.Generator())  # type: ignore[union-attr]
    log_det = agent.mdp.energy.coordinates.with_log_det(z)[1]  # type: ignore[union-attr]
    mapped = agent.energy(drawn.x) - log_det
    torch.testing.assert_close(mapped.float(), agent.mdp.energy(z.float()), atol=1e-2, rtol=1e-3)


def test_its_report_has_a_verdict(agent: ValueGradientAgent) -> None:
    report = agent.evaluate(2_000)
    assert report.metrics["log_z_error"].value < 0.1
    found = report.details["verdict"]
    assert found["word"] in ("trust", "use the weights", "do not use") and found["reasons"]
    assert str(report).startswith(f"verdict: {found['word']}\n{found['reasons'][0]}\n")
    assert json.loads(report.as_json())["details"]["verdict"]["evidence"]["explored_log_z"]
    assert "verdict" not in agent.evaluate(500, resample=True).details


def test_a_saved_one_draws_the_same_and_learns_on(
    agent: ValueGradientAgent, tmp_path: Path
) -> None:
    agent.save(tmp_path / "pair.pt")
    again = VGS.load(tmp_path / "pair.pt", Pair(), device="cpu")
    assert again.exploration == agent.exploration and not again.unexplored
    assert torch.equal(again.sample(50, 7).x, agent.sample(50, 7).x)
    assert again.evaluate(300).details["verdict"] == agent.evaluate(300).details["verdict"]
    twice = [VGS.load(tmp_path / "pair.pt", Pair(), device="cpu") for _ in range(2)]
    drawn = [each.learn(updates=5, progress_bar=False).sample(20).x for each in twice]
    assert torch.equal(*drawn)


def test_ctrl_c_ends_an_exploration(monkeypatch: pytest.MonkeyPatch) -> None:
    update = ValueGradientAgent.update

    def press(self: ValueGradientAgent) -> dict[str, Tensor]:
        signal.raise_signal(signal.SIGINT)
        return update(self)

    monkeypatch.setattr(plan, "Clock", short)
    monkeypatch.setattr(ValueGradientAgent, "update", press)
    agent = VGS(lambda x: x.square().sum(-1), dim=1, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        agent.learn(updates=1, progress_bar=False)
    assert agent.unexplored


def test_what_is_set_is_kept() -> None:
    chain = vgs_rl.MDPConfig(num_steps=3)
    for options in ({"prior_std": 2.0}, {"mdp": chain}, {"network": MLPNetwork(width=8, depth=1)}):
        agent = VGS(Pair(), device="cpu", **options)  # type: ignore[arg-type]
        assert agent.exploration.when == "never" and not agent.unexplored
    assert VGS("GMM9", device="cpu").exploration.when == "never"
    assert VGS("DW4", device="cpu").exploration.when == "never"
    assert VGS("Rosenbrock2", device="cpu").exploration.when == "always"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seconds": 0.0}, "exploration.seconds must be a positive number, got 0"),
        ({"when": "never", "effort": {"late": [True]}}, "exploration.when must be always where"),
        ({"when": "always", "effort": {"late": True}}, "exploration.effort must be lists by name"),
        ({"when": "sometimes"}, "exploration.when must be one of auto, always, never"),
    ],
)
def test_wrong_settings_are_one_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExplorationConfig(**settings)  # type: ignore[arg-type]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "Clock", short)
    (tmp_path / "my_bowl.py").write_text(
        "import vgs_rl\n\n\nclass Bowl(vgs_rl.Energy):\n    dim = 2\n\n"
        "    def energy(self, x):\n        return 200.0 * (x - 7.0).square().sum(-1)\n"
    )
    with without_pictures():
        yield tmp_path


SMALL = [
    "--budget.updates=2",
    "--evaluation.n_samples=400",
    "--evaluation.validation_samples=50",
    "--progress=false",
    "--device=cpu",
]


def test_a_run_on_an_own_energy_says_what_was_chosen_and_repeats(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = load("commands.train").main
    assert main(["--env=my_bowl:Bowl", "--agent.lr=1e-3", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "\nverdict: " in out and "what exploration chose" in out
    run = here / "runs/Bowl/vgs/0"
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert written["exploration"]["when"] == "always" and written["exploration"]["effort"]
    assert written["mdp"]["start"]["kind"] in ("noised", "noised_product")
    assert written["agent"]["init_args"]["lr"] == 1e-3
    report = json.loads((run / "report.json").read_text())
    assert report["details"]["verdict"]["word"] in out
    first = vgs_rl.Samples.load(run / "samples.pt")
    assert float((first.x - 7.0).abs().max()) < 1.0
    agent = load_run(run, trust=True)
    assert agent.evaluate(400, seed=1_000_003).details["verdict"] == report["details"]["verdict"]

    again = [
        f"--config={run / 'config.yaml'}",
        "--output=again",
        "--trust=true",
        "--progress=false",
    ]
    assert main(again) == 0
    assert torch.equal(vgs_rl.Samples.load(here / "again/Bowl/vgs/0/samples.pt").x, first.x)
    other = here / "again/Bowl/vgs/0/config.yaml"
    assert other.read_text() == (run / "config.yaml").read_text().replace(
        "output: runs", "output: again"
    )
    assert main([f"--resume={run}", "--budget.updates=4", "--trust=true", "--progress=false"]) == 0
    assert load_run(run, trust=True, checkpoint="last").counters.updates == 4


def test_options_that_exploration_chooses_are_kept_or_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = load("commands.train").main
    own = ["--env=my_bowl:Bowl", "--mdp.num_steps=3", *SMALL]
    assert main(own) == 0
    written = yaml.safe_load((here / "runs/Bowl/vgs/0/config.yaml").read_text())
    assert written["exploration"]["when"] == "never" and written["mdp"]["num_steps"] == 3
    assert "verdict" not in capsys.readouterr().out
    for options, message in (
        ([*own, "--exploration.when=always"], "exploration.when always chooses mdp itself"),
        (
            ["--env=my_bowl:Bowl", "--exploration.when=always", "--agent.prior_std=3"],
            "exploration.when always chooses agent itself: leave agent out, but for lr",
        ),
        (
            ["--env=my_bowl:Bowl", "--exploration.when=always", "--agent=PISConfig"],
            "exploration.when always is for vgs, got agent pis",
        ),
        (
            ["--env=my_bowl:Bowl", "--exploration.when=always", "--ceiling=true"],
            "--ceiling is of chains in the target's own coordinates",
        ),
    ):
        assert main([*options, "--output=other"]) == 2
        assert message in capsys.readouterr().err
