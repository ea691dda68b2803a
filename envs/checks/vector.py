"""Checks of a vector environment, which Gymnasium's `check_env` does not take.

:func:`check_vector_env` takes any, and knows more about those of this package.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Space
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from vgs_rl.envs.checks.report import CheckReport, expect
from vgs_rl.envs.episodes import rewarded_energy
from vgs_rl.mdp import SamplingMDP

Array = NDArray[Any]
Step = tuple[Any, Array, Array, Array, dict[str, Any]]


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
    length = _check_interface(env, report, max_steps, seed)
    inside = env.unwrapped
    if inside is not env:
        name = type(inside).__name__
        report.skipped["laws of the wrappers"] = f"they may keep statistics; {name} obeys its own"
        length = _check_interface(inside, report, max_steps, seed)
    _check_laws(inside, report, min(length + 3, max_steps), seed)
    env.reset(seed=seed)
    return report


def _check_interface(
    env: VectorEnv[Any, Any, Any], report: CheckReport, max_steps: int, seed: int
) -> int:
    """What every call must return; returns after how many steps every row has ended once."""
    with report.check("spaces"):
        mode = _check_spaces(env)
    with report.check("reset and step"):
        return _check_episode(env, mode, max_steps, seed)


def _check_laws(env: VectorEnv[Any, Any, Any], report: CheckReport, steps: int, seed: int) -> None:
    """How calls hang together."""
    mode: AutoresetMode = env.metadata["autoreset_mode"]
    with report.check("seeding"):
        first = _play(env, mode, seed, steps)
        _expect_same(first, _play(env, mode, seed, steps), "equal seeds and actions")
        other = _play(env, mode, seed + 1, steps, action_seed=seed)
        expect(
            not _same([s[:2] for s in first], [s[:2] for s in other]),
            "expected different seeds to give different observations or rewards",
        )
    with report.check("memory"):
        _check_memory(env, mode, seed, steps, first)
    if env.num_envs > 1 and isinstance(env.action_space.sample(), np.ndarray):
        with report.check("rows are independent"):
            _check_env_rows(env, mode, seed, steps, first)
    else:
        report.skipped["rows are independent"] = "needs two rows and array actions"
    with report.check(f"autoreset mode {mode.name}"):
        if mode is AutoresetMode.NEXT_STEP:
            _check_next_step(env, seed, steps)
        elif mode is AutoresetMode.SAME_STEP:
            _check_same_step(env, seed, steps)
        else:
            _check_reset_mask(env, seed)
    mdp = getattr(env, "mdp", None)
    if isinstance(mdp, SamplingMDP) and getattr(env, "is_default", False):
        with report.check("metrics of the sampling MDP"):
            _check_sampling(env, mdp, mode, seed)
    else:
        report.skipped["metrics of the sampling MDP"] = "another environment, or other options"


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
    _expect_observation(env, result[0], "reset")
    _expect_masks(env, result[1], "reset's infos")
    ended = np.zeros(env.num_envs, np.bool_)
    actions = _Actions(env, seed)
    for t in range(1, max_steps + 1):
        sent = actions.sample()
        kept = copy.deepcopy(sent)
        step = env.step(sent)
        expect(_same(sent, kept), "expected step to leave the actions as they were")
        expect(len(step) == 5, f"expected step to return 5 values, got {len(step)}")
        observations, rewards, terminated, truncated, infos = step
        _expect_observation(env, observations, "step")
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
        _expect_masks(env, infos, "step's infos")
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


def _expect_observation(env: VectorEnv[Any, Any, Any], observations: Any, source: str) -> None:
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


def _expect_masks(
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
            _expect_masks(env, value, f"{name}['{key}']", nested=True)
        else:
            expect(
                len(value) == env.num_envs,
                f"expected {name}['{key}'] to have {env.num_envs} entries, got {len(value)}",
            )


class _Actions:
    """Reproducible actions from the whole space; in bounded Box spaces every third is a corner."""

    def __init__(self, env: VectorEnv[Any, Any, Any], seed: int) -> None:
        self.space = copy.deepcopy(env.action_space)
        self.space.seed(seed)
        self._rng = np.random.default_rng(seed)
        self._drawn = 0

    def sample(self) -> Any:
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


def _play(
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
    actions = _Actions(env, seed if action_seed is None else action_seed)
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


def _leaves(data: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _leaves(value, f"{path}[{key!r}]")
    elif isinstance(data, (tuple, list)) or (isinstance(data, np.ndarray) and data.dtype == object):
        for i, value in enumerate(data):
            yield from _leaves(value, f"{path}[{i}]")
    else:
        yield path, data


def _difference(first: Any, second: Any) -> str | None:
    """Path to the first leaf that differs."""
    left, right = dict(_leaves(first)), dict(_leaves(second))
    for path in left.keys() | right.keys():
        if path not in left or path not in right:
            return path
        if not np.array_equal(np.asarray(left[path]), np.asarray(right[path])):
            return path
    return None


def _same(first: Any, second: Any) -> bool:
    return _difference(first, second) is None


def _expect_same(first: list[Step], second: list[Step], why: str) -> None:
    names = ("observations", "rewards", "terminated", "truncated", "infos")
    for t, (left, right) in enumerate(zip(first, second, strict=True)):
        for name, a, b in zip(names, left, right, strict=True):
            path = _difference(a, b)
            expect(path is None, f"expected {why} to give equal {name}, step {t} differs at {path}")


def _check_memory(
    env: VectorEnv[Any, Any, Any], mode: AutoresetMode, seed: int, steps: int, expected: list[Step]
) -> None:
    kept: list[tuple[str, Array]] = []

    def scribble(returned: Any) -> None:
        arrays = [(p, a) for p, a in _leaves(returned) if isinstance(a, np.ndarray) and a.size]
        for path, array in arrays:
            for _, old in kept:
                expect(
                    not np.shares_memory(array, old),
                    f"expected new memory from every call, {path} shares it with an earlier one",
                )
        del kept[:-64]  # the latest calls are enough, and keep this linear
        kept.extend(arrays)
        for _, array in arrays:
            if array.flags.writeable:
                array.fill(1)

    _expect_same(
        expected, _play(env, mode, seed, steps, after=scribble), "overwriting returned arrays"
    )


def _check_env_rows(
    env: VectorEnv[Any, Any, Any], mode: AutoresetMode, seed: int, steps: int, first: list[Step]
) -> None:
    row = np.arange(env.num_envs) == 0
    other = _Actions(env, seed + 1)
    second = _play(env, mode, seed, steps, change=lambda t, a: other.other_row(a, row))
    ends = [t for t, s in enumerate(first) if (s[2] | s[3]).any()]
    ends += [t for t, s in enumerate(second) if (s[2] | s[3]).any()]
    until = min(ends, default=steps)  # from there on autoresets may draw differently

    def rows(history: list[Step], mask: Array) -> list[Any]:
        return [
            ([leaf[mask] for _, leaf in _leaves(s[0])], s[1][mask]) for s in history[1 : until + 1]
        ]

    expect(
        _same(rows(first, ~row), rows(second, ~row)),
        "expected other actions in row 0 to leave the other rows as they were",
    )
    expect(
        not _same(rows(first, row), rows(second, row)),
        "expected other actions in row 0 to change its observations or rewards",
    )
    start = [np.asarray(leaf) for _, leaf in _leaves([s[0] for s in first[: until + 1]])]
    expect(
        any(not np.array_equal(leaf[0], leaf[1]) for leaf in start),
        "expected rows 0 and 1 to differ, they got the same observations",
    )


def _check_next_step(env: VectorEnv[Any, Any, Any], seed: int, steps: int) -> None:
    mode = AutoresetMode.NEXT_STEP
    first = _play(env, mode, seed, steps)
    at = next(t for t, s in enumerate(first) if (s[2] | s[3]).any())
    done = first[at][2] | first[at][3]
    _, rewards, terminated, truncated, _ = first[at + 1]
    expect(
        not rewards[done].any() and not (terminated | truncated)[done].any(),
        "expected the step after an end to reset, with reward 0 and no new end, got rewards "
        f"{rewards[done]}, terminated {terminated[done]}, truncated {truncated[done]}",
    )
    if not isinstance(env.action_space.sample(), np.ndarray):
        return
    other = _Actions(env, seed + 1)

    def change(t: int, actions: Array) -> Array:
        return other.other_row(actions, done) if t == at else actions

    second = _play(env, mode, seed, at + 1, change=change)
    _expect_same(
        first[: at + 2], second, "other actions in the step after an end, which are ignored,"
    )


def _check_same_step(env: VectorEnv[Any, Any, Any], seed: int, steps: int) -> None:
    changed = False
    for observations, _, terminated, truncated, infos in _play(
        env, AutoresetMode.SAME_STEP, seed, steps
    ):
        done = terminated | truncated
        for key in ("final_obs", "final_info"):
            mask = infos.get(f"_{key}", np.zeros_like(done))
            expect(
                np.array_equal(mask, done),
                f"expected infos['_{key}'] to mark the ended rows {done.tolist()}, "
                f"got {np.asarray(mask).tolist()}",
            )
        for i in np.flatnonzero(done):
            final = infos["final_obs"][i]
            expect(
                final in env.single_observation_space,
                f"expected infos['final_obs'][{i}] in {env.single_observation_space}, got {final}",
            )
            if isinstance(observations, np.ndarray):
                changed = changed or not np.array_equal(final, observations[i])
            else:
                changed = True
    expect(changed, "expected ended rows to be reset, their observations equal final_obs")


def _check_reset_mask(env: VectorEnv[Any, Any, Any], seed: int) -> None:
    actions, n = _Actions(env, seed), env.num_envs
    env.reset(seed=seed)
    before = copy.deepcopy(env.step(actions.sample())[0])
    mask = np.arange(n) == 0
    options = {"reset_mask": mask.copy()}
    after, infos = env.reset(options=options)
    # Gymnasium's own two take the mask out.
    expect(
        isinstance(env, SyncVectorEnv | AsyncVectorEnv)
        or ("reset_mask" in options and np.array_equal(options["reset_mask"], mask)),
        "expected reset to leave options['reset_mask'] in place: outer wrappers read it too",
    )
    _expect_observation(env, after, "reset with a mask")
    _expect_masks(env, infos, "reset's infos")
    for (_, old), (_, new) in zip(_leaves(before), _leaves(after), strict=True):
        expect(np.array_equal(old[~mask], new[~mask]), "expected unmasked rows to stay")
    expect(not _same(before, after), "expected the masked row to be reset, it stayed")
    wrong = {
        "of a wrong shape": np.ones(n + 1, np.bool_),
        "of integers": np.ones(n, np.int64),
        "without a True entry": np.zeros(n, np.bool_),
        "that is a list": [True] * n,
    }
    for name, value in wrong.items():
        try:
            env.reset(options={"reset_mask": value})
        except (TypeError, ValueError, AssertionError):
            continue
        raise AssertionError(f"expected reset to refuse a mask {name}, it did not")


def _check_sampling(
    env: VectorEnv[Any, Any, Any], mdp: SamplingMDP, mode: AutoresetMode, seed: int
) -> None:
    """Length, rewards and metrics of one episode, computed again from actions and states."""
    actions, total = _Actions(env, seed), mdp.num_steps
    expected_cost = np.zeros(env.num_envs)
    cost = np.zeros(env.num_envs)
    observations, infos = env.reset(seed=seed)
    for t in range(total):
        expect(
            np.allclose(observations[:, -1], t / total),
            f"expected the last observation entry to be t/T = {t / total:g} at step {t}",
        )
        control, x = actions.sample(), torch.from_numpy(observations[:, :-1]).double()
        observations, rewards, terminated, truncated, infos = env.step(control)
        expect(not truncated.any(), "expected no truncation")
        expect(
            bool((terminated == (t + 1 == total)).all()),
            f"expected termination at step T = {total} exactly, got {terminated} at {t + 1}",
        )
        rho, log_a = float(mdp.rho[t]), float(mdp.chain.log_a[t])
        spread = mdp.effective_dim * (0.5 * (rho**2 - 1) - math.log(rho) - log_a)
        u = mdp.geometry.tangent(torch.as_tensor(control, dtype=torch.float64), x).numpy()
        expected_cost += mdp.temperature * (0.5 * np.square(u).sum(-1) + spread)
        cost -= rewards
    if mode is AutoresetMode.SAME_STEP:
        observations = infos["final_obs"]
    x = torch.from_numpy(observations[:, :-1].copy()).to(mdp.device, mdp.dtype)
    values = mdp.energy(x).detach()
    energy = values.double().cpu().numpy()
    rewarded = rewarded_energy(values, mdp.temperature).double().cpu().numpy()
    for key in ("log_weight" if mdp.start.has_density else "log_path", "energy"):
        expect(
            key in infos and bool(infos[f"_{key}"].all()) and not bool(np.isnan(infos[key]).any()),
            f"expected infos['{key}'] without NaN, with its mask, on the last step",
        )
    for name, got, want in (
        ("infos['energy']", infos["energy"], energy),
        ("minus the return", cost, expected_cost + rewarded),
    ):
        same = np.isclose(got, want, rtol=1e-3, atol=1e-3 * (1.0 + np.abs(expected_cost)))
        expect(bool(same.all()), f"expected {name} to equal {want}, got {got}")
