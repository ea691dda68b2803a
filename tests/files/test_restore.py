"""State of another shape, dtype or kind is refused before anything is changed."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from vgs_rl import MDPConfig, SamplingMDP
from vgs_rl.agents import (
    GradientMatching,
    MLPNetwork,
    ValueGradientAgent,
    ValueGradientConfig,
)
from vgs_rl.agents.value_gradient.td import TD0
from vgs_rl.envs import GMM9
from vgs_rl.files.restore import load_generator, load_optimizer


def agent(objective: Any) -> ValueGradientAgent:
    config = ValueGradientConfig(network=MLPNetwork(width=8, depth=2), objective=objective)
    return ValueGradientAgent(SamplingMDP(GMM9(), MDPConfig(num_steps=4)), config)


MATCHING = GradientMatching(batch_size=16, refresh_size=16, first_size=32, start_size=32)


@pytest.fixture(scope="module", params=["matching", "td"])
def trained(request: pytest.FixtureRequest) -> tuple[Callable[[], ValueGradientAgent], Any]:
    objective = MATCHING if request.param == "matching" else TD0(batch_size=16)
    mine = agent(objective)
    for _ in range(2):
        mine.update()
    return lambda: agent(objective), mine.state_dict()


def leaves(state: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(state, dict):
        return [leaf for key in state for leaf in leaves(state[key], (*path, key))]
    if isinstance(state, list):
        return [leaf for i in range(len(state)) for leaf in leaves(state[i], (*path, i))]
    return [path]


def changed(state: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    state = copy.deepcopy(state)
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = change(inner[path[-1]])
    return state


def test_a_state_comes_back(trained: tuple[Callable[[], ValueGradientAgent], Any]) -> None:
    make, state = trained
    again = make()
    again.load_state_dict(copy.deepcopy(state))
    assert again.counters.updates == 2
    again.update()


def test_every_tensor_of_another_shape_is_refused(
    trained: tuple[Callable[[], ValueGradientAgent], Any],
) -> None:
    make, state = trained
    mine = make()
    tensors = 0
    for path in leaves(state):
        value = state
        for key in path:
            value = value[key]
        if not isinstance(value, torch.Tensor) or "scalars" in path or not value.numel():
            continue
        tensors += 1
        grown = changed(state, path, lambda x: torch.zeros((*x.shape, 3), dtype=x.dtype))
        with pytest.raises(ValueError, match="does not fit this configuration"):
            mine.load_state_dict(grown)
            pytest.fail(f"{path} of another shape was taken")
        text = changed(state, path, lambda x: "text")
        with pytest.raises(ValueError, match="does not fit this configuration"):
            mine.load_state_dict(text)
    assert tensors > 30


def test_adam_with_moments_of_another_shape_never_steps() -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters(), fused=True)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    good = optimizer.state_dict()
    for path, message in {
        ("state", 0, "exp_avg"): r"optimizer.state.0.exp_avg must have shape \(2, 3\), got \(1,\)",
        ("state", 1, "exp_avg_sq"): r"optimizer.state.1.exp_avg_sq must have shape \(2,\)",
    }.items():
        bad = changed(good, path, lambda x: torch.zeros(1))
        with pytest.raises(ValueError, match=message):
            load_optimizer(optimizer, bad)
    bad = copy.deepcopy(good)
    del bad["state"][0]["exp_avg"]
    with pytest.raises(ValueError, match=r"optimizer.state.0 lacks exp_avg"):
        load_optimizer(optimizer, bad)
    bad = changed(good, ("param_groups", 0, "lr"), lambda x: "fast")
    with pytest.raises(ValueError, match=r"param_groups\[0\].lr must be a number, got 'fast'"):
        load_optimizer(optimizer, bad)
    load_optimizer(optimizer, good)


def test_a_generator_takes_a_generators_state_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    for state in (torch.zeros(3, dtype=torch.uint8), torch.zeros(5), "state", None):
        with pytest.raises(ValueError, match="generator"):
            load_generator(generator, state)
    zeros = torch.full_like(generator.get_state(), 255)
    with pytest.raises(ValueError, match="generator is no state of a generator"):
        load_generator(generator, zeros)
