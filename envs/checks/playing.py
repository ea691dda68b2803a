"""Playing a vector environment from a seed, and comparing what it returned."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from vgs_rl.envs.checks.report import expect

Array = NDArray[Any]
Step = tuple[Any, Array, Array, Array, dict[str, Any]]


class Actions:
    """Reproducible actions from the whole space; in bounded Box spaces every third is a corner."""

    def __init__(self, env: VectorEnv[Any, Any, Any], seed: int) -> None:
        self.space = copy.deepcopy(env.action_space)
        self.space.seed(seed)
        self._rng = np.random.default_rng(seed)
        self._drawn = 0

    def sample(self) -> Any:
        """The next actions, of all rows."""
        action = self.space.sample()
        self._drawn += 1
        if isinstance(self.space, Box) and self.space.is_bounded() and self._drawn % 3 == 0:
            upper = self._rng.random(self.space.shape) < 0.5
            return np.where(upper, self.space.high, self.space.low).astype(self.space.dtype)
        return action

    def other_row(self, actions: Array, rows: Array) -> Array:
        """The same actions but other ones in `rows`."""
        for _ in range(100):
            changed = actions.copy()
            changed[rows] = self.sample()[rows]
            if not np.array_equal(changed[rows], actions[rows]):
                return changed
        raise AssertionError("expected an action space with more than one action")


def play(
    env: VectorEnv[Any, Any, Any],
    mode: AutoresetMode,
    seed: int,
    steps: int,
    *,
    action_seed: int | None = None,
    change: Callable[[int, Any], Any] = lambda t, actions: actions,
    after: Callable[[Any], None] = lambda returned: None,
) -> list[Step]:
    """Plays `steps` steps from a seeded reset and keeps copies of all that was returned.

    `change` may replace the actions of step t; `after` sees everything returned, uncopied.
    """
    actions = Actions(env, seed if action_seed is None else action_seed)
    nothing = np.zeros(env.num_envs)
    observations, infos = env.reset(seed=seed)
    history: list[Step] = [(copy.deepcopy(observations), nothing, nothing > 0, nothing > 0, {})]
    after((observations, infos))
    for t in range(steps):
        step = env.step(change(t, actions.sample()))
        history.append(copy.deepcopy(step))
        after(step)
        done = history[-1][2] | history[-1][3]
        if mode is AutoresetMode.DISABLED and done.any():
            after(env.reset(options={"reset_mask": done}))
    return history


def leaves(data: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in nested containers that is no container, with the path to it."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from leaves(value, f"{path}[{key!r}]")
    elif isinstance(data, (tuple, list)) or (isinstance(data, np.ndarray) and data.dtype == object):
        for i, value in enumerate(data):
            yield from leaves(value, f"{path}[{i}]")
    else:
        yield path, data


def difference(first: Any, second: Any) -> str | None:
    """Path to the first leaf that differs."""
    left, right = dict(leaves(first)), dict(leaves(second))
    for path in left.keys() | right.keys():
        if path not in left or path not in right:
            return path
        if not np.array_equal(np.asarray(left[path]), np.asarray(right[path])):
            return path
    return None


def same(first: Any, second: Any) -> bool:
    """Whether two nested containers hold equal numbers."""
    return difference(first, second) is None


def expect_same(first: list[Step], second: list[Step], why: str) -> None:
    """Expects two plays to have returned the same; `why` says what should make them."""
    names = ("observations", "rewards", "terminated", "truncated", "infos")
    for t, (left, right) in enumerate(zip(first, second, strict=True)):
        for name, a, b in zip(names, left, right, strict=True):
            path = difference(a, b)
            expect(path is None, f"expected {why} to give equal {name}, step {t} differs at {path}")
