"""Going on with what a folder holds: what may change, what is there to go on from, what is done."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vgs_rl.files.checkpoint import load_checkpoint
from vgs_rl.files.unfinished import digest_of
from vgs_rl.training import parallel
from vgs_rl.training.config import BudgetConfig, ConfigError
from vgs_rl.training.identity import differences, identity_of, settings_of
from vgs_rl.training.states import COUNTERS

# Sections and fields that change what is done with a trained agent, not how it is trained.
NOT_TRAINING = {
    "budget",
    "evaluation",
    "watch",
    "compare",
    "comparison",
    "seeds",
    "device",
    "output",
}


def notice(text: str) -> None:
    """Says something that is no error, on standard error; of several ranks, the first one does."""
    if parallel.is_first():
        print(f"note: {text}", file=sys.stderr)


def require_same_run(was: Any, now: Any, path: Path) -> None:
    """Compares what a folder holds with what it is to be gone on with.

    Args:
        was: the folder's configuration, which has a field `output`.
        now: the new one.
        path: the folder.

    Raises:
        ConfigError: if settings that define the run differ, naming each with both values.
    """
    found = differences(identity_of(was), identity_of(now))
    if was.output != now.output:
        found.append(f"output: the run lies in {path}, got {now.output}")
    if found:
        raise ConfigError(
            f"{'; '.join(found)} (--resume goes on with the run in {path}; what defines it cannot "
            "change: leave it out, or start a new run)"
        )


def changed_training(was: Any, now: Any) -> list[str]:
    """Names of settings of training that differ, such as a learning rate; budgets are none."""
    before, after = settings_of(was), settings_of(now)
    return [
        name
        for name in after
        if name.partition(".")[0] not in NOT_TRAINING and before.get(name) != after[name]
    ]


def refuse_changes_of_finished(was: Any, now: Any, counters: Mapping[str, float]) -> None:
    """Compares a finished run with what is asked of it, where its budget holds no further update.

    Args:
        was: the finished run's configuration, which has a field `budget`.
        now: the new one.
        counters: what the run has used.

    Raises:
        ConfigError: if settings were changed that take no effect any more.
    """
    if now.budget.fraction(counters) < 1:
        return
    if now.budget != was.budget:
        limits = {name: limit for name, limit in vars(now.budget).items() if limit is not None}
        asked = ", ".join(f"{name}={limit:g}" for name, limit in limits.items())
        used = ", ".join(f"{name}={counters[name]:g}" for name in limits)
        raise ConfigError(f"budget must be above what the finished run used, {used}; got {asked}")
    if changed := changed_training(was, now):
        raise ConfigError(
            f"{', '.join(changed)}: no effect on a finished run; give a longer budget, too, such "
            f"as {longer(now.budget)}"
        )


def longer(budget: BudgetConfig) -> str:
    """Options of twice this budget."""
    limits = {name: limit for name, limit in vars(budget).items() if limit is not None}
    return " ".join(f"--budget.{name} {2 * limit:g}" for name, limit in limits.items())


def last_checkpoint(path: Path) -> Path | None:
    """The checkpoint that training goes on from; None if it was ended before there was one."""
    files = (path / "checkpoints" / f"{name}.pt" for name in ("last", "best"))
    return next((file for file in files if file.is_file()), None)


def chosen_checkpoint(path: Path, name: str | None = None) -> str:
    """The name of the checkpoint to evaluate: the best, or the last if validation chose none.

    Args:
        path: the run folder.
        name: `best` or `last`, to have no other.

    Raises:
        FileNotFoundError: if there is none, saying what to do.
    """
    for each in ("best", "last") if name is None else (name,):
        if (path / "checkpoints" / f"{each}.pt").is_file():
            return each
    wanted = "checkpoint" if name is None else f"checkpoint {name}"
    raise FileNotFoundError(f"{path} has no {wanted} yet: train on with --resume {path}")


def run_digest(path: Path, checkpoint: str | None) -> str:
    """A digest of what a run's sampler is made from.

    Args:
        path: the run folder.
        checkpoint: the name of the checkpoint that was loaded; by default the chosen one.
    """
    name = checkpoint or chosen_checkpoint(path)
    return digest_of(path / "config.yaml", path / "checkpoints" / f"{name}.pt")


def check_identity(file: Path, state: Mapping[str, Any], config: Any) -> None:
    """Compares a checkpoint with the configuration next to it.

    Raises:
        ValueError: if they belong to different runs, naming what differs.
    """
    found = differences(state.get("identity", {}), identity_of(config), owner="the checkpoint")
    if found:
        raise ValueError(f"{file} is not of this configuration: {'; '.join(found)}")


def counters_in(file: Path) -> dict[str, Any]:
    """The counters of a checkpoint.

    Raises:
        ValueError: if it is damaged or has none.
    """
    counters = load_checkpoint(file).get("counters")
    if not isinstance(counters, dict) or any(
        not isinstance(counters.get(name), int | float) for name in COUNTERS
    ):
        raise ValueError(f"{file} is no checkpoint of a training: it has no counters")
    return counters
