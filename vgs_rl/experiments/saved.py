"""Agents in one file each: settings and state, no code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vgs_rl.agents.automatic.explored import chain_energy
from vgs_rl.agents.base import Agent
from vgs_rl.agents.distilled.agent import DistilledAgent
from vgs_rl.agents.target import Origin, TargetAgent
from vgs_rl.agents.value_gradient.agent import ValueGradientAgent
from vgs_rl.energy import Energy
from vgs_rl.experiments.config import run_config
from vgs_rl.files.checkpoint import load_checkpoint, save_checkpoint
from vgs_rl.files.restore import check_like, fitting
from vgs_rl.files.yaml_text import dump_yaml, parse_mapping
from vgs_rl.mdp import SamplingMDP
from vgs_rl.registry import energy_of
from vgs_rl.training.config import resolve_device
from vgs_rl.training.record import as_choice, as_mapping
from vgs_rl.trust import Trust


def save_agent(agent: Agent, path: Path) -> None:
    """Writes an agent's settings and state to a file, and those of its student.

    Raises:
        OSError: if the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, _state_of(agent), kind="agent")


def _state_of(agent: Agent) -> dict[str, Any]:
    origin = agent.origin or Origin(agent.target_name)
    settings = {
        "env": origin.env,
        "env_args": dict(origin.env_args),
        "mdp": as_mapping(agent.mdp.config),
        "agent": as_choice(agent.config),
        "seed": agent.seed,
    }
    if isinstance(agent, ValueGradientAgent):
        settings["exploration"] = as_mapping(agent.exploration)
    state = {"config": dump_yaml(settings), "target": origin.name, "agent": agent.state_dict()}
    return state if agent.student is None else state | {"student": _state_of(agent.student)}


def load_agent(
    path: Path,
    energy: Energy | Any = None,
    *,
    dim: int | None = None,
    device: str = "auto",
    trust: Trust = False,
) -> Agent:
    """An agent from a file of :func:`save_agent`; see :meth:`vgs_rl.agents.usage.Usable.load`."""
    placed = resolve_device(device)
    state = load_checkpoint(path, placed, kind="agent")
    return _agent_of(state, path, energy, dim, placed, trust)


def _agent_of(
    state: dict[str, Any],
    path: Path,
    energy: Energy | Any,
    dim: int | None,
    placed: torch.device,
    trust: Trust,
) -> Agent:
    of_student: dict[str, Any] = {"student": {}} if "student" in state else {}
    with fitting(str(path)):
        check_like(state, {"config": "", "target": "", "agent": {}, **of_student}, "agent")
    content = parse_mapping(state["config"], str(path))
    env = content.pop("env", "")
    if energy is None and not env:
        raise ValueError(
            f"{path}: energy must be given, {state['target']} was handed over as an object; "
            "such as load(path, energy=my_energy)"
        )
    # The settings alone are checked here: the name of a target that is replaced is not looked up.
    named = {"env": env} if energy is None else {}
    config = run_config(content | named, source=str(path), trust=trust)
    chosen = energy_of(env, dim, **config.env_args) if energy is None else energy_of(energy, dim)
    on = chain_energy(chosen, config.exploration.done, placed)
    agent = config.agent.build(SamplingMDP(on, config.mdp, device=placed), seed=config.seed)
    if isinstance(agent, ValueGradientAgent):
        agent.exploration = config.exploration
    agent.origin = Origin(state["target"], env if energy is None else "", config.env_args)
    with fitting(str(path)):
        agent.load_state_dict(state["agent"])
    if of_student:
        student = _agent_of(state["student"], path, agent.energy, None, placed, trust)
        if not (isinstance(agent, TargetAgent) and isinstance(student, DistilledAgent)):
            raise ValueError(f"{path} must hold a student of an agent, got {student!r}")
        student.origin, agent.student, agent.one_step = agent.origin, student, True
    return agent
