"""Where the time of reinforcement-learning libraries goes on our environments."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from vgs_rl.agents.rl.base import LibraryConfig
from vgs_rl.experiments.config import named_config
from vgs_rl.experiments.run import build
from vgs_rl.experiments.tables import (
    machine,
    print_machine,
    print_table,
    require_outputs,
    write_json,
)
from vgs_rl.training.config import BudgetConfig, EvaluationConfig

Library = Literal["sb3", "tianshou"]
LIBRARIES: tuple[Library, ...] = get_args(Library)


def libraries(
    names: tuple[Library, ...] = LIBRARIES,
    num_envs: int = 1024,
    updates: int = 5,
    threads: int = 1,
    json: Path | None = None,
) -> None:
    """What the environment, the adapter and the library itself cost in PPO's training.

    An update is an iteration of PPO with the settings of configs/rl/: whole episodes of all
    environments, then epochs of minibatches. `environment` is `SamplingVectorEnv.step`, `adapter`
    what ours adds to it, `loops` SB3's own Python loop over environments
    (`_update_info_buffer`; tianshou's loops are inside its buffer, which is part of `collecting`),
    `collecting` everything else between two steps, `learning` the minibatches.

    Args:
        names: sb3, tianshou.
        num_envs: environments.
        updates: iterations that are timed, after one that is not.
        threads: torch's threads.
        json: also write the table to this file.
    """
    require_outputs(json)
    torch.set_num_threads(threads)
    size = machine(threads)
    print_machine(size)
    table = [_shares(name, num_envs, updates) for name in names]
    print_table(f"PPO on GMM9, {num_envs:,} environments, shares of its wall-clock", table)
    write_json({"machine": size, "rows": table}, json)


def _shares(name: Library, num_envs: int, updates: int) -> dict[str, Any]:
    config = named_config(f"rl/{name}_ppo")
    assert isinstance(config.agent, LibraryConfig)
    agent: Any = build(replace(config, agent=replace(config.agent, num_envs=num_envs)))[1]
    watch = _Stopwatch()
    if name == "sb3":
        model = agent.model
        watch.time(model.env.env, "step", "environment")
        watch.time(model.env, "step_wait", "stepping")
        watch.time(model, "_update_info_buffer", "loops")
        watch.time(model, "collect_rollouts", "collection")
        watch.time(model, "train", "learning")
    else:
        watch.time(agent.collector.env.env, "step", "environment")
        watch.time(agent.collector.env, "step", "stepping")
        watch.time(agent.collector, "collect", "collection")
        watch.time(agent.algorithm, "update", "learning")
    quiet: dict[str, Any] = {
        "evaluation": EvaluationConfig(validate_every=10**9),
        "progress_bar": False,
    }
    agent.learn(BudgetConfig(updates=1), **quiet)
    watch.seconds.clear()
    steps = agent.counters.env_steps
    agent.learn(BudgetConfig(updates=1 + updates), **quiet)
    spent = watch.seconds
    total = spent["collection"] + spent["learning"]
    parts = {
        "environment": spent["environment"],
        "adapter": spent["stepping"] - spent["environment"],
        "loops": spent["loops"],
        "collecting": spent["collection"] - spent["stepping"] - spent["loops"],
        "learning": spent["learning"],
    }
    row: dict[str, Any] = {
        "library": name,
        "steps_per_s": (agent.counters.env_steps - steps) / total,
    }
    return row | {part: f"{100 * seconds / total:.1f}%" for part, seconds in parts.items()}


class _Stopwatch:
    """Sums of the time that methods of objects take."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def time(self, owner: Any, method: str, part: str) -> None:
        """From now on the calls of `owner.method` count for `part`."""
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*arguments: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            try:
                return original(*arguments, **options)
            finally:
                self.seconds[part] += time.perf_counter() - begin

        setattr(owner, method, timed)
