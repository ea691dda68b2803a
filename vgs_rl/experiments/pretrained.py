"""Trained samplers in one small file: configuration, weights and report."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from vgs_rl.agents.distilled.agent import DistilledAgent, DistilledConfig
from vgs_rl.agents.value_gradient.agent import ValueGradientAgent, ValueGradientConfig
from vgs_rl.evaluation.evaluate import Report
from vgs_rl.experiments.config import RunConfig, run_config
from vgs_rl.experiments.run import build
from vgs_rl.files.checkpoint import load_checkpoint, save_checkpoint
from vgs_rl.files.restore import check_like, fitting, load_module
from vgs_rl.files.yaml_text import parse_mapping
from vgs_rl.names import PACKAGE
from vgs_rl.registry import find
from vgs_rl.samplers.memory import AllocationLimit
from vgs_rl.training.loop import Counters
from vgs_rl.trust import Trust

FOLDER = Path(str(resources.files("vgs_rl.agents"))) / "trained"
# What building an agent may allocate: for its target, and for each byte of its file.
SPARE_BYTES, BYTES_PER_BYTE = 64 * 2**20, 32


def shipped_samplers() -> list[str]:
    """Names of the samplers that the package ships."""
    return sorted(path.stem for path in FOLDER.glob("*.pt"))


def shipped_report(name: str) -> Report:
    """The report of a shipped sampler, without building it.

    Raises:
        ValueError: if its file is damaged.
    """
    path = FOLDER / f"{name}.pt"
    with fitting(str(path)):
        return Report.from_json(load_checkpoint(path, kind="sampler")["report"])


Exported = ValueGradientAgent | DistilledAgent
"""Agents whose samplers fit in a file: what acts is a moving average."""


def export_sampler(yaml: str, agent: Exported, report: Report, path: Path) -> None:
    """Writes what sampling needs of a trained agent: no optimiser, no buffer.

    Args:
        yaml: the run's resolved configuration.
        agent: the trained agent; its moving average is what is kept.
        report: its evaluation.
        path: the file.
    """
    state = {
        "config": yaml,
        "report": report.as_json(),
        "value": agent.average.state_dict(),
        "mdp": agent.mdp.state_dict(),
    }
    if isinstance(agent, ValueGradientAgent) and agent.explored is not None:
        state["explored"] = agent.explored.state_dict()
    save_checkpoint(path, state, kind="sampler")


def load_pretrained(
    name: str | Path, device: str = "auto", *, trust: Trust = False
) -> tuple[RunConfig, Exported, Report]:
    """A trained sampler's configuration, agent and report.

    Args:
        name: one of :func:`shipped_samplers`, or the path of a file of :func:`export_sampler`.
        device: where to put it.
        trust: True imports what the file names, though it is not this package's
            (:mod:`vgs_rl.trust`), such as the module of an energy of your own; False refuses it.

    Raises:
        FileNotFoundError: if there is none of that name.
        ValueError: if the file is damaged or does not fit, or names foreign code without `trust`.
    """
    path = sampler_file(name)
    state = load_checkpoint(path, kind="sampler")
    with fitting(str(path)):
        explored = state.pop("explored", None)
        check_like(state, {"config": "", "report": "", "value": {}, "mdp": {}}, "sampler")
    content = parse_mapping(state["config"], str(path))
    config = run_config(content | {"device": device}, source=str(path), trust=trust)
    if not isinstance(config.agent, ValueGradientConfig | DistilledConfig):
        raise ValueError(f"{path} must hold a vgs or distilled agent, got {config.agent.name}")
    target = find(config.env)
    # The limit is for what the file describes; a user's own energy takes what it takes.
    foreign = target.energy.__module__.partition(".")[0] != PACKAGE
    energy = target.make_energy(**config.env_args) if foreign else None
    with fitting(str(path)):
        with AllocationLimit(SPARE_BYTES + BYTES_PER_BYTE * path.stat().st_size):
            agent = build(config, energy)[1]
        assert isinstance(agent, Exported)
        if isinstance(agent, ValueGradientAgent) and agent.explored is not None:
            agent.explored.load_state_dict(explored or {})
        load_module(agent.average, state["value"], "value")
        load_module(agent.mdp, state["mdp"], "mdp")
        report = Report.from_json(state["report"])
    return config, agent, report


def sampler_file(name: str | Path) -> Path:
    """The file of a shipped sampler, by its name, or the file that is named.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = FOLDER / f"{name}.pt" if str(name) in shipped_samplers() else Path(name)
    if not path.exists():
        known = ", ".join(shipped_samplers()) or "none"
        raise FileNotFoundError(
            f"no trained sampler {str(name)!r}: no such file, and shipped are {known}"
        )
    return path


def counters_of(report: Report) -> Counters:
    """What a report says that its training has cost."""
    return Counters(
        updates=report.details.get("updates", 0),
        env_steps=report.env_steps,
        energy_evaluations=report.energy_evaluations,
        seconds=report.train_seconds,
    )
