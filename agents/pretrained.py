"""Trained samplers in one small file: configuration, weights and report."""

from __future__ import annotations

import tempfile
from pathlib import Path

from vgs_rl.agents.base import Counters
from vgs_rl.agents.run import RunConfig, build, config_of, parse_run
from vgs_rl.agents.value_gradient import ValueGradientAgent
from vgs_rl.checkpoint import load_checkpoint, save_checkpoint
from vgs_rl.evaluation import Report

FOLDER = Path(__file__).parent / "trained"


def shipped_samplers() -> list[str]:
    """Names of the samplers that the package ships."""
    return sorted(path.stem for path in FOLDER.glob("*.pt"))


def export_sampler(yaml: str, agent: ValueGradientAgent, report: Report, path: Path) -> None:
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
    save_checkpoint(path, state, kind="sampler")


def load_pretrained(
    name: str | Path, device: str = "auto"
) -> tuple[RunConfig, ValueGradientAgent, Report]:
    """A trained sampler's configuration, agent and report.

    Args:
        name: one of :func:`shipped_samplers`, or the path of a file of :func:`export_sampler`.
        device: where to put it.

    Raises:
        FileNotFoundError: if there is none of that name.
        ValueError: if the file is damaged or does not fit.
    """
    path = FOLDER / f"{name}.pt" if str(name) in shipped_samplers() else Path(name)
    if not path.is_file():
        known = ", ".join(shipped_samplers()) or "none"
        raise FileNotFoundError(
            f"no trained sampler {str(name)!r}: no such file, and shipped are {known}"
        )
    state = load_checkpoint(path, kind="sampler")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(state["config"])
        config = config_of(parse_run(["--config", str(file), "--device", device]))
    _, agent = build(config)
    if not isinstance(agent, ValueGradientAgent):
        raise ValueError(f"{path} holds no value-gradient agent, but {config.agent.name}")
    try:
        agent.average.load_state_dict(state["value"])
        agent.mdp.load_state_dict(state["mdp"])
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit its configuration: {error}") from error
    return config, agent, Report.from_json(state["report"])


def counters_of(report: Report) -> Counters:
    """What a report says that its training has cost."""
    return Counters(
        updates=report.details.get("updates", 0),
        env_steps=report.env_steps,
        energy_evaluations=report.energy_evaluations,
        seconds=report.train_seconds,
    )
