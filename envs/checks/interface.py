"""What every call of a vector environment must return: spaces, shapes, types, infos and masks."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from vgs_rl.envs.checks.playing import Actions, same
from vgs_rl.envs.checks.report import CheckReport, expect

Array = NDArray[Any]


def check_interface(
    env: VectorEnv[Any, Any, Any], report: CheckReport, max_steps: int, seed: int
) -> int:
    """What every call must return; returns after how many steps every row has ended once."""
    with report.check("spaces"):
        mode = _check_spaces(env)
    with report.check("reset and step"):
        return _check_episode(env, mode, max_steps, seed)


def _check_spaces(env: VectorEnv[Any, Any, Any]) -> AutoresetMode:
    n = env.num_envs
    expect(isinstance(n, int) and n >= 1, f"expected num_envs of at least 1, got {n!r}")
    for name in ("observation", "action"):
        single = getattr(env, f"single_{name}_space")
        batched = getattr(env, f"{name}_space")
        expect(isinstance(single, Space), f"expected single_{name}_space, got {single!r}")
        expected = batch_space(single, n)
        expect(batched == expected, f"expected {name}_space {expected}, got {batched}")
    mode = env.metadata.get("autoreset_mode")
    if not isinstance(mode, AutoresetMode):
        raise AssertionError(
            f"expected metadata['autoreset_mode'] to be an AutoresetMode, got {mode!r}"
        )
    return mode


def _check_episode(
    env: VectorEnv[Any, Any, Any], mode: AutoresetMode, max_steps: int, seed: int
) -> int:
    """Types and shapes, step by step; returns after how many steps every row has ended once."""
    result = env.reset(seed=seed)
    expect(
        isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict),
        f"expected reset to return (observations, dict), got {type(result).__name__}",
    )
    expect_observation(env, result[0], "reset")
    expect_masks(env, result[1], "reset's infos")
    ended = np.zeros(env.num_envs, np.bool_)
    actions = Actions(env, seed)
    for t in range(1, max_steps + 1):
        sent = actions.sample()
        kept = copy.deepcopy(sent)
        step = env.step(sent)
        expect(same(sent, kept), "expected step to leave the actions as they were")
        expect(len(step) == 5, f"expected step to return 5 values, got {len(step)}")
        observations, rewards, terminated, truncated, infos = step
        expect_observation(env, observations, "step")
        for name, array, kind in (
            ("rewards", rewards, np.floating),
            ("terminated", terminated, np.bool_),
            ("truncated", truncated, np.bool_),
        ):
            expect(
                isinstance(array, np.ndarray)
                and array.shape == (env.num_envs,)
                and np.issubdtype(array.dtype, kind),
                f"expected {name} as {kind.__name__} array of shape ({env.num_envs},), got "
                f"{getattr(array, 'dtype', type(array).__name__)} of shape {np.shape(array)}",
            )
        expect(bool(np.isfinite(rewards).all()), f"expected finite rewards, got {rewards}")
        expect(isinstance(infos, dict), f"expected infos as dict, got {type(infos).__name__}")
        expect_masks(env, infos, "step's infos")
        done = terminated | truncated
        ended |= done
        if ended.all():
            return t
        if mode is AutoresetMode.DISABLED and done.any():
            env.reset(options={"reset_mask": done})
    raise AssertionError(
        f"expected every row to end an episode within max_steps = {max_steps}, "
        f"{int((~ended).sum())} of {env.num_envs} did not"
    )


def expect_observation(env: VectorEnv[Any, Any, Any], observations: Any, source: str) -> None:
    """Observations of the declared shape and type, within their space."""
    space = env.observation_space
    if isinstance(space, Box):
        expect(
            isinstance(observations, np.ndarray)
            and observations.shape == space.shape
            and observations.dtype == space.dtype,
            f"expected {source} to return observations in {space.dtype} of shape {space.shape}, "
            f"got {getattr(observations, 'dtype', type(observations).__name__)} "
            f"of shape {np.shape(observations)}",
        )
    expect(observations in space, f"expected {source}'s observations in {space}, got others")


def expect_masks(
    env: VectorEnv[Any, Any, Any], infos: dict[str, Any], name: str, *, nested: bool = False
) -> None:
    """Every key has a boolean mask `_key` of shape (num_envs,).

    In nested dictionaries masks may be missing, as in Gymnasium's own episode statistics.
    """
    for key, value in infos.items():
        if key.startswith("_") and key[1:] in infos:
            continue
        mask = infos.get(f"_{key}")
        expect(
            (nested and mask is None)
            or (
                isinstance(mask, np.ndarray)
                and mask.dtype == np.bool_
                and mask.shape == (env.num_envs,)
            ),
            f"expected {name} to hold a boolean mask '_{key}' of shape ({env.num_envs},) "
            f"beside '{key}', got {mask!r}",
        )
        if isinstance(value, dict):
            expect_masks(env, value, f"{name}['{key}']", nested=True)
        else:
            expect(
                len(value) == env.num_envs,
                f"expected {name}['{key}'] to have {env.num_envs} entries, got {len(value)}",
            )
