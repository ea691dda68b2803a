"""Checks of a vector environment, which Gymnasium's `check_env` does not take.

:func:`check_vector_env` takes any, and knows more about those of this package.
"""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from vgs_rl.envs.checks.interface import check_interface
from vgs_rl.envs.checks.laws import check_laws
from vgs_rl.envs.checks.report import CheckReport


def check_vector_env(
    env: VectorEnv[Any, Any, Any] | str,
    *,
    num_envs: int = 4,
    max_steps: int = 1000,
    seed: int = 0,
) -> CheckReport:
    """Checks that a vector environment follows Gymnasium's interface.

    Spaces, shapes and types, seeding, independence of rows, memory, infos and their masks, and
    the autoreset mode that the metadata declare. Environments of this package are also held to
    episode length, rewards and terminal metrics. Actions are drawn from the whole action space;
    in bounded Box spaces a third of them are corners. The environment is left reset.

    Wrappers are held to spaces, shapes, types and infos only, since they may keep statistics that
    outlive a reset. The rest is checked of the environment inside.

    Args:
        env: the environment, wrapped or not, or an id for `gymnasium.make_vec`.
        num_envs: number of rows, where `env` is an id.
        max_steps: steps within which every row must end an episode.
        seed: of resets and actions.

    Returns:
        What was checked.

    Raises:
        CheckError: at the first check that fails.

    Example:
        >>> from vgs_rl.envs import check_vector_env
        >>> "seeding" in check_vector_env("vgs_rl/GMM9-v0", num_envs=3).passed
        True
    """
    if isinstance(env, str):
        env = gymnasium.make_vec(env, num_envs=num_envs)
    report = CheckReport(subject=str(env))
    length = check_interface(env, report, max_steps, seed)
    inside = env.unwrapped
    if inside is not env:
        name = type(inside).__name__
        report.skipped["laws of the wrappers"] = f"they may keep statistics; {name} obeys its own"
        length = check_interface(inside, report, max_steps, seed)
    check_laws(inside, report, min(length + 3, max_steps), seed)
    env.reset(seed=seed)
    return report
