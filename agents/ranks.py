"""The state of an agent that several ranks train: what all have, and what each has for itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vgs_rl.files.restore import load_generator, restore
from vgs_rl.training import parallel

if TYPE_CHECKING:
    from vgs_rl.agents.base import Agent


def require_ranks(agent: Agent) -> None:
    """Refuses an agent that only one process can train.

    Raises:
        ValueError: if there are several ranks, naming the agent.
    """
    if parallel.world_size() > 1 and not agent.data_parallel:
        raise ValueError(
            f"{type(agent).__name__} trains in one process, got {parallel.world_size()} ranks: "
            "start it without torchrun"
        )


def state_of_all(agent: Agent) -> dict[str, Any]:
    """The agent's state with what each rank has for itself; all ranks call it, for rank 0."""
    state = agent.state_dict()
    if parallel.world_size() == 1:
        return state
    own = {name: getattr(agent, name).state_dict() for name in agent.sharded}
    ranks = parallel.to_first({"generator": agent.generator.get_state(), **own})
    return state | {"ranks": list(ranks), "common": agent.common.get_state()}


def load_own(agent: Agent, state: Mapping[str, Any]) -> None:
    """Restores what this rank has for itself, of a training by as many ranks.

    Raises:
        ValueError: if it does not fit the agent.
    """
    if parallel.world_size() == 1 or ranks_of(state) != parallel.world_size():
        return
    own = state["ranks"][parallel.rank()]
    for name in agent.sharded:
        restore(getattr(agent, name), own[name], name)
    load_generator(agent.generator, own["generator"])
    load_generator(agent.common, state["common"])


def ranks_of(state: Mapping[str, Any]) -> int:
    """How many ranks have trained together to the state of a checkpoint.

    Raises:
        ValueError: if it does not say so.
    """
    ranks = state.get("ranks", [None])
    if not (isinstance(ranks, list) and ranks):
        raise ValueError("the checkpoint's ranks must be a list of their states")
    return len(ranks)


def replicated(agent: Agent) -> list[Tensor]:
    """Parameters and buffers that are the same on all ranks."""
    modules = [agent.mdp, *(getattr(agent, name) for name in agent.saved)]
    networks = [each for each in modules if isinstance(each, torch.nn.Module)]
    return [tensor for each in networks for tensor in (*each.parameters(), *each.buffers())]
