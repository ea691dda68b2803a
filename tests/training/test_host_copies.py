"""On an accelerator the host waits for nothing: no number is read back while it learns or draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vgs_rl import MDPConfig, SamplingMDP, ScheduleConfig
from vgs_rl.agents import (
    GradientMatching,
    MLPNetwork,
    PISConfig,
    TrajectoryBalanceConfig,
    ValueGradientConfig,
)
from vgs_rl.envs import FourGauss

# What gives the host a number, or a tensor whose size depends on numbers.
WAITS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "is_nonzero"}


class Waiting(TorchDispatchMode):
    """Counts operations for which a host has to wait until the device is done."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITS:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def waits_of(work: Callable[[], object]) -> dict[str, int]:
    with Waiting() as mode:
        work()
    return dict(mode.found)


def mdp() -> SamplingMDP:
    return SamplingMDP(FourGauss(), MDPConfig(num_steps=4, schedule=ScheduleConfig()))


AGENTS = {
    "value gradient": ValueGradientConfig(
        objective=GradientMatching(
            batch_size=32, refresh_every=100, refresh_size=64, first_size=64, start_size=64
        ),
        network=MLPNetwork(width=8, depth=1),
    ),
    "path integral": PISConfig(batch_size=16, width=8, depth=1),
    "trajectory balance": TrajectoryBalanceConfig(batch_size=16, width=8, depth=1),
}


@pytest.mark.parametrize("name", AGENTS)
def test_an_update_reads_nothing_back(name: str) -> None:
    agent = AGENTS[name].build(mdp())
    agent.update()  # which fills buffers and makes the optimiser's state
    assert waits_of(agent.update) == {}


@pytest.mark.parametrize("name", AGENTS)
def test_drawing_reads_nothing_back_on_its_way(name: str) -> None:
    agent = AGENTS[name].build(mdp())
    sampler = agent.sampler()
    generator = torch.Generator().manual_seed(0)
    assert waits_of(lambda: sampler._draw(64, generator)) == {}


def test_what_is_read_back_is_seen() -> None:
    assert waits_of(lambda: float(torch.ones(2).sum())) == {"_local_scalar_dense": 1}
