"""Agents in one file each: settings and state, no code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vgs_rl.agents.automatic.explored import chain_energy
from vgs_rl.agents.base import Agent
from vgs_rl.agents.target import Origin
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
    """Writes an agent's settings and state to a file.

    Raises:
        OSError: if the file cannot be written.
    """
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
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, state, kind="agent")


def load_agent(
    path: Path,
    energy: Energy | Any = None,
    *,
    dim: int | None = None,
    device: str = "auto",
    trust: Trust = False,
) -> Agent:
    """An agent from a file of :func:`save_agent`; see :meth:`vgs_rl.agents.usage.Usable.load`."""
    state = load_checkpoint(path, resolve_device(device), kind="agent")
    with fitting(str(path)):
        check_like(state, {"config": "", "target": "", "agent": {}}, "agent")
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
    placed = resolve_device(device)
    on = chain_energy(chosen, config.exploration.done, placed)
    agent = config.agent.build(SamplingMDP(on, config.mdp, device=placed), seed=config.seed)
    if isinstance(agent, ValueGradientAgent):
        agent.exploration = config.exploration
    agent.origin = Origin(state["target"], env if energy is None else "", config.env_args)
    with fitting(str(path)):
        agent.load_state_dict(state["agent"])
    return agent
