"""The runs of a comparison: which they are, how each is set up, and how they run side by side."""

from __future__ import annotations

import copy
import importlib.util
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from vgs_rl.agents.base import interruptible
from vgs_rl.agents.run import RunConfig
from vgs_rl.config import read_config, read_yaml
from vgs_rl.trust import Trust

CONFIGS = Path(__file__).parent.parent / "configs"
BASELINES = ("uncontrolled", "ula", "mala", "hmc", "pt", "ais", "smc")
PATH_AGENTS = {
    "pis": "vgs_rl.agents.path_gradient.PISConfig",
    "tb": "vgs_rl.agents.trajectory_balance.TrajectoryBalanceConfig",
    "logvar": "vgs_rl.agents.trajectory_balance.LogVarianceConfig",
}
# Prefix of the short names of a library's algorithms: its configuration, import name and extra.
LIBRARIES = {
    "sb3": ("vgs_rl.agents.sb3.SB3Config", "stable_baselines3", "sb3"),
    "tianshou": ("vgs_rl.agents.tianshou_agents.TianshouConfig", "tianshou", "tianshou"),
}
BUDGETS = {
    "steps": "env_steps",
    "energies": "energy_evaluations",
    "seconds": "seconds",
    "updates": "updates",
}


class CompareError(ValueError):
    """A comparison that cannot be set up; the message names what is wrong."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run.

    Attributes:
        env: name of the target.
        agent: short name.
        seed: training seed.
        settings: the run's configuration as YAML would hold it, `output` included.
        own_name: the agent's own name, which its run folder has.
        baseline: whether it trains nothing.
        scale: rough standard deviation of the target, where baselines start.
        requires: import name and extra of a library that has to be there.
        root: folder of the comparison.
        threads: of PyTorch.
        trust: what the settings may name beside this package's classes and targets.
    """

    env: str
    agent: str
    seed: int
    settings: dict[str, Any]
    own_name: str
    baseline: bool
    scale: float
    requires: tuple[str, str] | None
    root: Path
    threads: int = 1
    trust: Trust = False

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.env}/{self.agent}/{self.seed}"

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.settings["output"]) / self.env / self.own_name / str(self.seed)

    @property
    def file(self) -> Path:
        """The run's configuration; beside it the log, with the suffix .log."""
        return self.root / "jobs" / f"{self.name.replace('/', '-')}.yaml"

    @property
    def log(self) -> Path:
        """What the run printed."""
        return self.file.with_suffix(".log")

    @property
    def text(self) -> str:
        """The configuration as YAML; for an agent `train.py --config` takes it."""
        head = f"# baseline {self.agent}, scale {self.scale:g}\n" if self.baseline else ""
        return head + str(yaml.safe_dump(self.settings, sort_keys=False))

    @property
    def unchanged(self) -> bool:
        """Whether an earlier call started this very run."""
        return self.file.is_file() and self.file.read_text() == self.text

    @property
    def finished(self) -> bool:
        """Whether it needs not be run again."""
        return self.unchanged and (self.folder / "report.json").is_file()

    def fraction(self) -> float:
        """How much of the budget the run has used, by its last record."""
        file = self.folder / "metrics.jsonl"
        try:
            with open(file, "rb") as lines:
                lines.seek(max(0, file.stat().st_size - 4096))
                last = json.loads(lines.read().decode().splitlines()[-1])
        except (OSError, ValueError, IndexError):
            return 0.0
        limits = {k: limit for k, limit in self.settings["budget"].items() if limit}
        return min(1.0, max(last[k] / limit for k, limit in limits.items()))


def parse_budget(text: str) -> dict[str, float | int]:
    """`steps=2e6,seconds=60` as fields of a budget: at whichever limit is reached first.

    Raises:
        CompareError: if it is not of that form.
    """
    budget: dict[str, float | int] = {}
    for part in text.split(","):
        name, equals, number = part.partition("=")
        if name not in BUDGETS or not equals:
            raise CompareError(
                f"--budget must read {', '.join(f'{n}=NUMBER' for n in BUDGETS)}, got {text!r}"
            )
        try:
            value = float(number)
        except ValueError as error:
            raise CompareError(f"--budget {name} must be a number, got {number!r}") from error
        if not 0 < value < float("inf"):
            raise CompareError(f"--budget {name} must be positive, got {number}")
        budget[BUDGETS[name]] = value if name == "seconds" else round(value)
    return budget


def budget_name(budget: dict[str, float | int]) -> str:
    """A budget as a folder's name."""
    short = {field: name for name, field in BUDGETS.items()}
    return ",".join(f"{short[field]}={value:g}" for field, value in budget.items())


def make_jobs(
    envs: Sequence[str],
    agents: Sequence[str],
    seeds: Sequence[int],
    budget: dict[str, float | int],
    root: Path,
    *,
    device: str = "auto",
    threads: int = 1,
    trust: bool = False,
) -> list[Job]:
    """All runs of a comparison, in the order in which they start.

    Args:
        envs: names of targets, or configuration files.
        agents: short names; `uncontrolled` is added where it is missing.
        seeds: training seeds.
        budget: fields of a budget.
        root: folder of the comparison.
        device: where everything runs.
        threads: of each run.
        trust: whether configuration files may name code that is not this package's; what `envs`
            names itself may always be.

    Raises:
        ConfigError: if a file cannot be used, or names such code.
        CompareError: on a name that nothing is known by.
    """
    agents = list(dict.fromkeys(["uncontrolled", *agents]))
    jobs = []
    for env in envs:
        base, stem = _shipped(env, trust)
        overrides = _overrides(stem)
        for seed in seeds:
            for agent in agents:
                job = _job(base, overrides, agent, seed, budget, root)
                settings = {**job.settings, "device": device}
                word = trust or frozenset({env})
                jobs.append(replace(job, settings=settings, threads=threads, trust=word))
    return jobs


def _shipped(env: str, trust: bool) -> tuple[dict[str, Any], str]:
    """The configuration file of a target, and its stem; the target's own MDP if there is none."""
    if env.endswith((".yaml", ".yml")):
        return read_config(Path(env), RunConfig, trust=trust), Path(env).stem
    for file in sorted(CONFIGS.glob("*.yaml")):
        content = read_yaml(file)
        if content.get("env") == env:
            return content, file.stem
    return {"env": env}, env.lower()


def _overrides(stem: str) -> dict[str, Any]:
    """Settings by short name: those for all targets, and over them those for one."""
    found: dict[str, Any] = {}
    for name in ("all", stem):
        file = CONFIGS / "compare" / f"{name}.yaml"
        if file.is_file():
            found = _merged(found, read_yaml(file))
    return found


def _merged(below: Any, above: Any) -> Any:
    """`above` over `below`, mappings key by key."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return copy.deepcopy(above)
    keys = [*below, *(key for key in above if key not in below)]
    return {
        key: _merged(below.get(key), above[key]) if key in above else copy.deepcopy(below[key])
        for key in keys
    }


def _job(
    base: dict[str, Any],
    overrides: dict[str, Any],
    agent: str,
    seed: int,
    budget: dict[str, float | int],
    root: Path,
) -> Job:
    from vgs_rl.registry import find

    given = dict(overrides.get(agent, {}))
    of = given.pop("of", None)  # a variant of another agent
    if of is not None:
        given = _merged({k: v for k, v in overrides.get(of, {}).items() if k != "of"}, given)
    kind = of or agent
    shipped = base.get("agent", {"class_path": "ValueGradientConfig"})
    scale = float(shipped.get("init_args", {}).get("prior_std", 1.0))
    section, requires = _agent_section(kind, shipped, scale)
    settings = {key: base[key] for key in ("env", "env_args", "mdp") if key in base}
    evaluation = {**base.get("evaluation", {}), "figures_every": 0}
    limits = {"updates": None, **budget}  # which are limited by default
    settings |= {"evaluation": evaluation, "budget": limits, "seed": seed}
    settings |= {"output": str(root if of is None else root / "variants" / agent)}
    if section is not None:
        settings["agent"] = section
    settings = _merged(settings, given)
    return Job(
        env=find(base["env"]).name,
        agent=agent,
        seed=seed,
        settings=settings,
        own_name=kind,
        baseline=kind in BASELINES,
        scale=scale,
        requires=requires,
        root=root,
    )


def _agent_section(
    kind: str, shipped: dict[str, Any], scale: float
) -> tuple[dict[str, Any] | None, tuple[str, str] | None]:
    """The `agent` section of a short name, and the library that it needs.

    A library's algorithm has the settings of its configs/rl/*.yaml on every target.
    """
    if kind in BASELINES:
        return None, None
    if kind == "vgs":
        return copy.deepcopy(shipped), None
    if kind in PATH_AGENTS:
        return {"class_path": PATH_AGENTS[kind], "init_args": {"prior_std": scale}}, None
    library, _, algorithm = kind.removesuffix("-kernel").partition("-")
    if library in LIBRARIES and algorithm:
        class_path, module, extra = LIBRARIES[library]
        arguments = {"algorithm": algorithm.upper()}
        if kind.endswith("-kernel"):
            arguments["policy_noise"] = "policy"
        file = CONFIGS / "rl" / f"{kind.replace('-', '_')}.yaml"
        tuned = read_yaml(file)["agent"].get("init_args", {}) if file.is_file() else {}
        return {"class_path": class_path, "init_args": {**tuned, **arguments}}, (module, extra)
    libraries = (f"{name}-ALGORITHM[-kernel]" for name in LIBRARIES)
    known = ["vgs", *PATH_AGENTS, *libraries, *BASELINES]
    raise CompareError(f"--agents: nothing is known by {kind!r}; there are {', '.join(known)}")


# --- running -------------------------------------------------------------------------------------


def run_all(jobs: Sequence[Job], processes: int, *, progress_bar: bool = True) -> dict[str, str]:
    """Runs what is not finished, side by side; a failure stops nothing but itself.

    Returns:
        What went wrong, by the names of the runs.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when the runs have written their checkpoints; a second
            one does not wait for them.
    """
    waiting = [job for job in jobs if not job.finished]
    done, failed = len(jobs) - len(waiting), dict[str, str]()
    # Read by OpenMP when a child imports torch: every run has the same threads for itself.
    os.environ["OMP_NUM_THREADS"] = str(max((job.threads for job in jobs), default=1))
    running: list[tuple[Job, BaseProcess]] = []
    bar = tqdm(
        total=len(jobs),
        disable=not progress_bar,
        dynamic_ncols=True,
        bar_format="{percentage:3.0f}% |{bar:20}| {elapsed}<{remaining} {postfix}",
        mininterval=0.2 if sys.stderr.isatty() else 15.0,
    )
    with bar, interruptible() as interrupted:
        while (waiting or running) and not interrupted():
            while waiting and len(running) < processes:
                job = waiting.pop(0)
                running.append((job, _start(job)))
            time.sleep(0.2)
            for job, process in [entry for entry in running if not entry[1].is_alive()]:
                running.remove((job, process))
                done += 1
                if process.exitcode != 0 or not job.finished:
                    failed[job.name] = _reason(job, process.exitcode)
                    tqdm.write(f"failed: {job.name}: {failed[job.name]}", sys.stderr)
            _show(bar, done, len(jobs), [job for job, _ in running])
        if interrupted():
            for _, process in running:  # which writes a checkpoint
                assert process.pid is not None
                os.kill(process.pid, signal.SIGINT)
            for _, process in running:
                process.join()
            raise KeyboardInterrupt
    return failed


def _show(bar: Any, done: int, total: int, running: Sequence[Job]) -> None:
    fractions = {job.name: job.fraction() for job in running}
    bar.n = done + sum(fractions.values())
    now = ", ".join(f"{name} {100 * share:.0f}%" for name, share in fractions.items())
    bar.set_postfix_str(f"{done}/{total} runs; {now}", refresh=False)
    bar.update(0)


def _start(job: Job) -> BaseProcess:
    job.file.parent.mkdir(parents=True, exist_ok=True)
    resume = job.unchanged and (job.folder / "checkpoints" / "last.pt").is_file()
    job.file.write_text(job.text)
    process = multiprocessing.get_context("spawn").Process(
        target=work, args=(job, resume), daemon=True, name=job.name
    )
    process.start()
    return process


def _reason(job: Job, exitcode: int | None) -> str:
    lines = [line for line in job.log.read_text().splitlines() if line.strip()]
    last = lines[-1] if lines else "it printed nothing"
    return f"{last} (exit {exitcode}; {job.log})"


def work(job: Job, resume: bool) -> None:
    """What a child process does: one run, from its configuration to its report."""
    # Ctrl-C at the terminal is the parent's, which passes it on, once.
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    try:
        finished = run_job(job, resume=resume)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        raise SystemExit(1) from None
    raise SystemExit(0 if finished else 130)


def run_job(job: Job, *, resume: bool = False) -> bool:
    """One run; whether it came to its end.

    Raises:
        ImportError: if it needs a library that is not installed.
    """
    if job.requires is not None:
        module, extra = job.requires
        if importlib.util.find_spec(module) is None:
            raise ImportError(
                f"{job.agent} needs {module}, which is not installed: pip install 'vgs-rl[{extra}]'"
            )
    from compare_worker import run_agent, run_without_training

    return run_without_training(job) if job.baseline else run_agent(job, resume=resume)
