"""How calls of a vector environment hang together: seeds, memory, rows, autoreset, metrics."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from vgs_rl.envs.checks.interface import expect_masks, expect_observation
from vgs_rl.envs.checks.playing import Actions, Step, expect_same, leaves, play, same
from vgs_rl.envs.checks.report import CheckReport, expect
from vgs_rl.envs.episodes import rewarded_energy
from vgs_rl.mdp import SamplingMDP

Array = NDArray[Any]


def check_laws(env: VectorEnv[Any, Any, Any], report: CheckReport, steps: int, seed: int) -> None:
    """How calls hang together."""
    mode: AutoresetMode = env.metadata["autoreset_mode"]
    with report.check("seeding"):
        first = play(env, mode, seed, steps)
        expect_same(first, play(env, mode, seed, steps), "equal seeds and actions")
        other = play(env, mode, seed + 1, steps, action_seed=seed)
        expect(
            not same([s[:2] for s in first], [s[:2] for s in other]),
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


def _check_memory(
    env: VectorEnv[Any, Any, Any], mode: AutoresetMode, seed: int, steps: int, expected: list[Step]
) -> None:
    kept: list[tuple[str, Array]] = []

    def scribble(returned: Any) -> None:
        arrays = [(p, a) for p, a in leaves(returned) if isinstance(a, np.ndarray) and a.size]
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

    expect_same(
        expected, play(env, mode, seed, steps, after=scribble), "overwriting returned arrays"
    )


def _check_env_rows(
    env: VectorEnv[Any, Any, Any], mode: AutoresetMode, seed: int, steps: int, first: list[Step]
) -> None:
    row = np.arange(env.num_envs) == 0
    other = Actions(env, seed + 1)
    second = play(env, mode, seed, steps, change=lambda t, a: other.other_row(a, row))
    ends = [t for t, s in enumerate(first) if (s[2] | s[3]).any()]
    ends += [t for t, s in enumerate(second) if (s[2] | s[3]).any()]
    until = min(ends, default=steps)  # from there on autoresets may draw differently

    def rows(history: list[Step], mask: Array) -> list[Any]:
        return [
            ([leaf[mask] for _, leaf in leaves(s[0])], s[1][mask]) for s in history[1 : until + 1]
        ]

    expect(
        same(rows(first, ~row), rows(second, ~row)),
        "expected other actions in row 0 to leave the other rows as they were",
    )
    expect(
        not same(rows(first, row), rows(second, row)),
        "expected other actions in row 0 to change its observations or rewards",
    )
    start = [np.asarray(leaf) for _, leaf in leaves([s[0] for s in first[: until + 1]])]
    expect(
        any(not np.array_equal(leaf[0], leaf[1]) for leaf in start),
        "expected rows 0 and 1 to differ, they got the same observations",
    )


def _check_next_step(env: VectorEnv[Any, Any, Any], seed: int, steps: int) -> None:
    mode = AutoresetMode.NEXT_STEP
    first = play(env, mode, seed, steps)
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
    other = Actions(env, seed + 1)

    def change(t: int, actions: Array) -> Array:
        return other.other_row(actions, done) if t == at else actions

    second = play(env, mode, seed, at + 1, change=change)
    expect_same(
        first[: at + 2], second, "other actions in the step after an end, which are ignored,"
    )


def _check_same_step(env: VectorEnv[Any, Any, Any], seed: int, steps: int) -> None:
    changed = False
    for observations, _, terminated, truncated, infos in play(
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
    actions, n = Actions(env, seed), env.num_envs
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
    expect_observation(env, after, "reset with a mask")
    expect_masks(env, infos, "reset's infos")
    for (_, old), (_, new) in zip(leaves(before), leaves(after), strict=True):
        expect(np.array_equal(old[~mask], new[~mask]), "expected unmasked rows to stay")
    expect(not same(before, after), "expected the masked row to be reset, it stayed")
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
    actions, total = Actions(env, seed), mdp.num_steps
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
