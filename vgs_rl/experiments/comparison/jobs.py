"""The runs of a comparison: which they are, how each is set up, and what has to hold before."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from vgs_rl.checks import require_positive
from vgs_rl.evaluation.report import Report
from vgs_rl.experiments.baselines import BASELINES, Baseline
from vgs_rl.experiments.config import RunConfig, merged, run_config
from vgs_rl.experiments.jobs import fraction
from vgs_rl.experiments.run import build
from vgs_rl.fields import checked, field_types, near_names, nearest
from vgs_rl.files.shipped import CONFIGS, shipped_configs
from vgs_rl.files.yaml_text import plain_scalar
from vgs_rl.mdp import SamplingMDP
from vgs_rl.registry import Target, find
from vgs_rl.training.config import (
    BudgetConfig,
    config_file,
    read_config,
    read_yaml,
    resolve_device,
)
from vgs_rl.training.identity import digest, settings_of
from vgs_rl.trust import Trust

PATH_AGENTS = {
    "pis": "vgs_rl.agents.path.pis.PISConfig",
    "tb": "vgs_rl.agents.path.trajectory_balance.TrajectoryBalanceConfig",
    "logvar": "vgs_rl.agents.path.trajectory_balance.LogVarianceConfig",
}
# Prefix of the short names of a library's algorithms: its configuration, import name and extra.
LIBRARIES = {
    "sb3": ("vgs_rl.agents.rl.sb3.SB3Config", "stable_baselines3", "sb3"),
    "tianshou": ("vgs_rl.agents.rl.tianshou_agent.TianshouConfig", "tianshou", "tianshou"),
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
        config: the run's configuration.
        settings: what a file would have to hold for it.
        own_name: the agent's own name, which its run folder has.
        scale: rough standard deviation of the target, where baselines start.
        requires: import name and extra of a library that has to be there.
        root: folder of the comparison.
        threads: of PyTorch.
        trust: what the configuration may name besides this package's classes and targets.
    """

    env: str
    agent: str
    config: RunConfig
    settings: dict[str, Any]
    own_name: str
    scale: float
    requires: tuple[str, str] | None
    root: Path
    threads: int = 1
    trust: Trust = False

    @property
    def seed(self) -> int:
        """Training seed."""
        return self.config.seed

    @property
    def baseline(self) -> bool:
        """Whether it trains nothing."""
        return self.own_name in BASELINES

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.env}/{self.agent}/{self.seed}"

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.config.output / self.env / self.own_name / str(self.seed)

    @property
    def log(self) -> Path:
        """What the run printed."""
        return self.root / "jobs" / f"{self.name.replace('/', '-')}.log"

    @cached_property
    def identity(self) -> str:
        """The digest of all settings but `output`: what the run's report holds as `settings`."""
        settings = settings_of(self.config)
        del settings["output"]
        if self.baseline:
            settings = {k: v for k, v in settings.items() if k.partition(".")[0] != "agent"}
            settings |= {"agent": self.own_name, "scale": self.scale}
        return digest(settings)

    @property
    def ready(self) -> bool:
        """Whether it can start."""
        return True

    @property
    def finished(self) -> bool:
        """Whether there is the report of this very run, and the samples that it evaluates."""
        return self.report() is not None and (self.folder / "samples.pt").is_file()

    def report(self) -> Report | None:
        """What came out, if it came of these settings."""
        try:
            report = Report.load(self.folder / "report.json")
        except (OSError, ValueError):
            return None
        return report if report.details.get("settings") == self.identity else None

    def fraction(self) -> float:
        """How much of the budget the run has used, by its last record."""
        return fraction(self.folder, self.config.budget)

    def make_baseline(self, device: torch.device) -> Baseline:
        """The baseline that it is."""
        config = self.config
        energy = find(config.env).make_energy(**config.env_args)
        return Baseline(
            name=self.own_name,
            mdp=SamplingMDP(energy, config.mdp, device=device),
            n=config.evaluation.n_samples,
            scale=self.scale,
            seed=config.seed,
        )


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
        if BUDGETS[name] in budget:
            raise CompareError(f"--budget: {name} is given twice, got {text!r}")
        kind = field_types(BudgetConfig)[BUDGETS[name]]
        try:
            value = checked(kind, plain_scalar(number), name)
            require_positive("--budget", **{name: value})
        except ValueError as error:
            message = str(error).removeprefix("--budget.")
            raise CompareError(f"--budget {message}") from error
        budget[BUDGETS[name]] = float(value) if name == "seconds" else value
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
        CompareError: on a name that nothing is known by, or two runs that would be one.
        ConfigError: if a file cannot be used, or names such code.
        ValueError: if there is no such device.
    """
    agents = list(dict.fromkeys(["uncontrolled", *agents]))
    found = str(resolve_device(device))
    jobs: list[Job] = []
    for env in envs:
        base, stem, target = _shipped(env, trust)
        overrides = _overrides(stem)
        word = trust or frozenset({env})
        for seed in seeds:
            shared = {"budget": budget, "seed": seed, "device": found}
            for agent in agents:
                job = _job(base, target, overrides, agent, shared, root)
                jobs.append(replace(job, threads=threads, trust=word))
    folders = [job.folder for job in jobs]
    for job in jobs:
        if folders.count(job.folder) > 1:
            raise CompareError(
                f"--env {','.join(envs)}: two runs would be {job.name}; targets of one name need "
                "separate comparisons"
            )
    return jobs


def check_jobs(jobs: Sequence[Job]) -> None:
    """Builds every run's agent once and checks every baseline's budget, before anything starts.

    Raises:
        CompareError: if a library is missing, or an agent or a budget does not fit.
    """
    cpu, checked = torch.device("cpu"), set[tuple[str, str]]()
    for job in jobs:
        if (job.env, job.agent) in checked:
            continue
        checked.add((job.env, job.agent))
        if job.requires is not None:
            module, extra = job.requires
            if importlib.util.find_spec(module) is None:
                raise CompareError(
                    f"{job.agent} needs {module}, which is not installed: "
                    f"pip install 'vgs-rl[{extra}]'"
                )
        try:
            if job.baseline:
                job.make_baseline(cpu).check(job.config.budget)
            else:
                build(replace(job.config, device="cpu"))
        except (ValueError, TypeError) as error:
            raise CompareError(f"{job.agent} on {job.env}: {error}") from error


def _shipped(env: str, trust: bool) -> tuple[dict[str, Any], str, Target]:
    """A configuration file's content, its stem and target; the target's own MDP by default."""
    if env.endswith((".yaml", ".yml")) or env in shipped_configs("run"):
        file = config_file(env, "run")
        base, stem = read_config(file, RunConfig, trust=trust), file.stem
        target = find(str(base.get("env", RunConfig.env)))
    else:
        target = find(env)
        base, stem = {"env": env}, target.name.lower()
        ours = target.name if target.namespace == "vgs_rl" else env
        for file in sorted(CONFIGS.glob("*.yaml")):
            content = read_yaml(file)
            if content.get("env") in (env, ours):
                base, stem = read_config(file, RunConfig), file.stem
                break
    return {"env": RunConfig.env, "mdp": asdict(target.mdp), **base}, stem, target


def _overrides(stem: str) -> dict[str, Any]:
    """Settings by short name: those for all targets, and over them those for one.

    Raises:
        CompareError: if a short name is unknown, or has settings that a run has not.
    """
    found: dict[str, Any] = {}
    for name in ("all", stem):
        file = CONFIGS / "compare" / f"{name}.yaml"
        if file.is_file():
            found = merged(found, read_yaml(file))
    for agent, settings in found.items():
        if not isinstance(settings, dict):
            raise CompareError(f"configs/compare: {agent} must be a mapping, got {settings!r}")
        known = ("of", *field_types(RunConfig))
        for key in settings:
            if key not in known:
                raise CompareError(
                    f"configs/compare: {agent}.{key} is no setting; {nearest(str(key), known)}"
                )
        _agent_section(settings.get("of", agent), {}, 1.0)  # which refuses names
    return found


def _job(
    base: dict[str, Any],
    target: Target,
    overrides: dict[str, Any],
    agent: str,
    shared: dict[str, Any],
    root: Path,
) -> Job:
    given = dict(overrides.get(agent, {}))
    of = given.pop("of", None)  # a variant of another agent
    if of is not None:
        given = merged({k: v for k, v in overrides.get(of, {}).items() if k != "of"}, given)
    kind = of or agent
    shipped = base.get("agent", {"class_path": "ValueGradientConfig"})
    scale = float(shipped.get("init_args", {}).get("prior_std", 1.0))
    section, requires = _agent_section(kind, shipped, scale)
    shown = ("env", "env_args", "mdp")
    settings: dict[str, Any] = {key: base[key] for key in shown if key in base}
    evaluation = {**base.get("evaluation", {}), "figures_every": 0}
    settings |= {"evaluation": evaluation, **shared}
    settings |= {"output": str(root if of is None else root / "variants" / agent)}
    if section is not None:
        settings["agent"] = section
    settings = merged(settings, given)
    config = run_config(settings)
    if section is not None and config.agent.name != kind:
        raise CompareError(
            f"{agent} calls itself {config.agent.name}: its folder would be another's"
        )
    return Job(
        env=target.name,
        agent=agent,
        config=config,
        settings=settings,
        own_name=kind,
        scale=scale,
        requires=requires,
        root=root,
    )


def tuned_agents() -> list[str]:
    """Short names of the libraries' algorithms that have their own settings."""
    return [file.stem.replace("_", "-") for file in sorted((CONFIGS / "rl").glob("*.yaml"))]


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
        tuned = read_config(file, RunConfig)["agent"].get("init_args", {}) if file.is_file() else {}
        return {"class_path": class_path, "init_args": {**tuned, **arguments}}, (module, extra)
    libraries = (f"{name}-ALGORITHM[-kernel]" for name in LIBRARIES)
    known = ["vgs", *PATH_AGENTS, *libraries, *BASELINES]
    near = near_names(kind, [*known, *tuned_agents()])
    hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(known)}"
    raise CompareError(f"--agents: nothing is known by {kind!r}; {hint}")
