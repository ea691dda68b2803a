"""Benchmarks: what the machine was, what was compared, what it cost.

python scripts/benchmark.py env
python scripts/benchmark.py quality --configs '[gmm9]' --json runs/quality.json
python scripts/benchmark.py oracle
python scripts/benchmark.py env --json runs/benchmark_env.json
"""

from __future__ import annotations

import json as json_format
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli

from vgs_rl import SamplingMDP, find, registered
from vgs_rl.agents import MALASampler, SMCSampler, ValueGradientAgent, ValueGradientConfig, load_run
from vgs_rl.agents.run import ceilings, config_of, judge, parse_run, resolved_yaml, train
from vgs_rl.checkpoint import write_text
from vgs_rl.envs import SamplingVectorEnv
from vgs_rl.evaluation import Report, format_comparison

Table = list[dict[str, Any]]


def machine(threads: int) -> dict[str, Any]:
    """Size of the machine and versions of what the timings depend on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "gpu": gpu,
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def print_table(title: str, rows: Table) -> None:
    """Prints rows of equal keys in columns."""
    print(f"\n{title}")
    cells = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _text(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def compare_steps(target: str, num_envs: int, repeats: int, device: str) -> dict[str, Any]:
    """Cost of one step: `SamplingVectorEnv.step` against `SamplingMDP.step`.

    Both play the same whole episodes at the same batch size: T steps and one reset, the last step
    with its energies. The MDP is given its control as a tensor on its device; the environment
    takes and returns NumPy arrays, resets in SAME_STEP mode, keeps log-weights and fills infos.
    The two take turns step by step, so that both meet the same machine; the cost of an episode is
    the sum over t of the median over repetitions, the cost of a step that divided by T.
    """
    env = SamplingVectorEnv(target, num_envs=num_envs, device=device)
    other = SamplingVectorEnv(target, num_envs=num_envs, device=device)
    mdp: SamplingMDP = other.mdp
    generator = mdp.generator(0)
    control = torch.randn(num_envs, mdp.dim, generator=mdp.generator(1), device=mdp.device)
    actions = control.cpu().numpy().copy()
    synchronise = _synchroniser(mdp.device)
    state = mdp.reset(num_envs, generator)
    env.reset(seed=0)

    def bare_step(t: int) -> None:
        nonlocal state
        with torch.no_grad():
            state = mdp.step(state, control, generator).state
            if t == mdp.num_steps - 1:
                state = mdp.reset(num_envs, generator)

    bare = np.empty((repeats, mdp.num_steps))
    full = np.empty((repeats, mdp.num_steps))
    for i in range(repeats):
        for t in range(mdp.num_steps):
            begin = time.perf_counter()
            bare_step(t)
            synchronise()
            middle = time.perf_counter()
            env.step(actions)
            bare[i, t], full[i, t] = middle - begin, time.perf_counter() - middle
    bare_cost = float(np.median(bare, axis=0).mean())
    full_cost = float(np.median(full, axis=0).mean())
    return {
        "target": target,
        "num_envs": num_envs,
        "episodes": repeats,
        "mdp_step_us": 1e6 * bare_cost,
        "env_step_us": 1e6 * full_cost,
        "ratio": full_cost / bare_cost,
    }


def env_cost(target: str, num_envs: int, repeats: int, device: str) -> dict[str, Any]:
    """Cost of `SamplingVectorEnv.step`, whole episodes with their resets."""
    env = SamplingVectorEnv(target, num_envs=num_envs, device=device)
    rng = np.random.default_rng(0)
    actions = 0.1 * rng.standard_normal((num_envs, env.mdp.dim)).astype(np.float32)
    env.reset(seed=0)
    num_steps = env.mdp.num_steps
    seconds = np.empty((repeats, num_steps))
    for i in range(repeats):
        for t in range(num_steps):
            begin = time.perf_counter()
            env.step(actions)
            seconds[i, t] = time.perf_counter() - begin
    cost = float(np.median(seconds, axis=0).mean())
    return {
        "target": target,
        "dim": env.mdp.dim,
        "num_steps": num_steps,
        "num_envs": num_envs,
        "step_us": 1e6 * cost,
        "ns_per_transition": 1e9 * cost / num_envs,
        "transitions_per_s": num_envs / cost,
    }


def _synchroniser(device: torch.device) -> Callable[[], None]:
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def env(
    num_envs: int = 4096,
    repeats: int = 50,
    threads: int = 1,
    device: str = "cpu",
    json: Path | None = None,
) -> None:
    """Step costs of the environments.

    Args:
        num_envs: batch size of the comparison and of the table over targets.
        repeats: episodes per measurement; medians are over these.
        threads: torch's threads; small batches are fastest and steadiest with one.
        device: where the MDPs live.
        json: also write everything to this file.
    """
    torch.set_num_threads(threads)
    size = machine(threads)
    print(", ".join(f"{key} {value}" for key, value in size.items()))
    comparison = compare_steps("vgs_rl/GMM9-v0", num_envs, repeats, device)
    print_table("One step through NumPy against the bare MDP, medians", [comparison])
    few = max(repeats // 10, 3)
    targets = [env_cost(name, num_envs, few, device) for name in registered()]
    print_table("Transitions per second", targets)
    scaling = [env_cost("vgs_rl/GMM9-v0", n, few, device) for n in (64, 1024, 16_384)]
    print_table("Time per transition against the number of environments", scaling)
    result = {"machine": size, "comparison": comparison, "targets": targets, "scaling": scaling}
    write_json(result, json)


# What each shipped configuration has to reach, as medians over seeds (value, how it is meant).
# Training seconds are on 2 cores without a GPU. Nothing here is ever loosened.
BOUNDS: dict[str, dict[str, tuple[str, float]]] = {
    "gmm9": {
        "train_seconds": ("at most", 60),
        "tvd_energy": ("x floor", 1.25),
        "std_error": ("at most", 0.03),
        "log_z_error": ("at most", 0.005),
        "path_ess": ("at least", 0.6),
        "mode_weight_error": ("at most", 0.008),
    },
    "gmm25": {
        "train_seconds": ("at most", 180),
        "tvd_energy": ("x floor", 2.0),
        "std_error": ("at most", 0.05),
        "log_z_error": ("at most", 0.01),
        "path_ess": ("at least", 0.5),
        "mode_weight_error": ("at most", 0.01),
    },
    "gmm40": {
        "train_seconds": ("at most", 300),
        "tvd_energy": ("x floor", 2.0),
        "std_error": ("at most", 0.2299),  # 1% of the mean marginal std, 22.99
        "log_z_error": ("at most", 0.02),
        "path_ess": ("at least", 0.4),
        "mode_weight_error": ("at most", 0.01),
    },
    "funnel10": {
        "train_seconds": ("at most", 300),
        "tvd_energy": ("x floor", 1.5),
        "log_z_error": ("at most", 0.05),
        "path_ess": ("at least", 0.15),
    },
    "manywell32": {
        "train_seconds": ("at most", 480),
        "tvd_energy": ("x floor", 2.0),
        "std_error": ("at most", 0.03),
        "log_z_error": ("at most", 0.1),
        "path_ess": ("at least", 0.1),
        "mode_weight_error": ("at most", 0.02),
    },
}


def quality(
    configs: tuple[str, ...] = tuple(BOUNDS),
    seeds: tuple[int, ...] = (0, 1, 2),
    output: Path = Path("runs/benchmark"),
    json: Path | None = None,
    markdown: Path | None = None,
) -> None:
    """Trains shipped configurations over seeds and prints every figure beside floor and bound.

    Beside each run stand the same samples after importance resampling, SMC with the learned value
    as twist, MALA alone with as many energy evaluations as training and sampling took together,
    and the oracle, which is what perfect learning would reach.

    Args:
        configs: names of files in configs/.
        seeds: training seeds; the table shows medians over them.
        output: where the run folders go; finished runs there are read, not repeated.
        json: also write all reports to this file.
        markdown: also write the tables to this file.
    """
    size = machine(torch.get_num_threads())
    print(", ".join(f"{key} {value}" for key, value in size.items()))
    tables, reports = [], []
    for name in configs:
        runs = [_reports(name, seed, output) for seed in seeds]
        reports += [report for run in runs for report in run.values()]
        rows = _quality_rows(runs, BOUNDS.get(name, {}))
        first = next(iter(runs[0].values()))
        title = f"{name}, {first.n_samples:,} samples, median of seeds {list(seeds)}"
        print_table(title, rows)
        tables.append(f"**{title}**\n\n{_markdown(rows)}")
    if markdown is not None:
        write_text(markdown, "\n\n".join(tables) + "\n")
    contents = [json_format.loads(report.as_json()) for report in reports]
    write_json({"machine": size, "reports": contents}, json)


def _reports(name: str, seed: int, output: Path) -> dict[str, Report]:
    """The reports of one configuration and seed, trained or read from an earlier call."""
    file = Path(__file__).parent.parent / "configs" / f"{name}.yaml"
    arguments = ["--config", str(file), "--seed", str(seed), "--output", str(output / name)]
    config = config_of(parse_run(arguments))
    folder = config.folder
    if not (folder / "report.json").is_file():
        print(f"training {name}, seed {seed}, into {folder}")
        if train(config, resolved_yaml(arguments), overwrite=True) is None:
            raise SystemExit(130)
    others = {"resampled": _resampled, "SMC": _smc, "MALA alone": _mala, "oracle": _oracle}
    reports = {"vgs": Report.from_json((folder / "report.json").read_text())}
    for title, judge_other in others.items():
        path = folder / f"report_{title.replace(' ', '_').lower()}.json"
        if not path.is_file():
            judge_other(folder, reports["vgs"]).save(path)
        reports[title] = Report.from_json(path.read_text())
    return reports


def _resampled(folder: Path, report: Report) -> Report:
    config, agent = load_run(folder)
    return judge(config, find(config.env), agent, resample=True)


def _smc(folder: Path, report: Report) -> Report:
    config, agent = load_run(folder)
    assert isinstance(agent, ValueGradientAgent)
    sampler = SMCSampler(agent.mdp, agent.policy)
    return judge(config, find(config.env), agent, resample=True, sampler=sampler)


def _mala(folder: Path, report: Report) -> Report:
    """MALA with the energy evaluations of training and of one sampling, from a start as wide."""
    config, agent = load_run(folder)
    assert isinstance(config.agent, ValueGradientConfig)
    budget = report.energy_evaluations + report.n_samples
    energy = agent.mdp.energy
    chains = min(1_000, budget // 20)
    sampler = MALASampler(energy, budget, chains=chains, scale=config.agent.prior_std)
    mala = judge(config, find(config.env), agent, sampler=sampler)
    return replace(mala, agent="mala", train_seconds=0.0, env_steps=0, energy_evaluations=budget)


def _oracle(folder: Path, report: Report) -> Report:
    config, _ = load_run(folder)
    return ceilings(config, ("posterior",))["oracle posterior"]


def _quality_rows(runs: list[dict[str, Report]], bounds: dict[str, tuple[str, float]]) -> Table:
    rows: Table = []
    columns = list(runs[0])
    for name in ("train_seconds", "env_steps", "energy_evaluations", *runs[0]["vgs"].figures):
        values = {column: [_figure(run[column], name) for run in runs] for column in columns}
        own, median = values["vgs"], float(np.median(values["vgs"]))
        figure = runs[0]["vgs"].figures.get(name)
        floor = None if figure is None else figure.floor
        row: dict[str, Any] = {"figure": name, "vgs": median, "range": _range(own)}
        row |= {"floor": math.nan if floor is None else floor, "bound": "", "holds": ""}
        if name in bounds:
            meaning, bound = bounds[name]
            limit = bound * (floor or 0.0) if meaning == "x floor" else bound
            holds = median >= limit if meaning == "at least" else median <= limit
            row |= {"bound": f"{meaning} {bound:g}", "holds": "yes" if holds else "NO"}
        row |= {column: float(np.median(values[column])) for column in columns[1:]}
        rows.append(row)
    return rows


def _figure(report: Report, name: str) -> float:
    """A figure or a count of a report; NaN where it has none."""
    if name in report.figures:
        return report.figures[name].value
    return float(getattr(report, name, math.nan))


def _range(values: list[float]) -> str:
    return f"{_text(min(values))} to {_text(max(values))}"


def _markdown(rows: Table) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[_text(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def oracle(configs: tuple[str, ...] = tuple(BOUNDS)) -> None:
    """Prints each configuration's ceilings: the chain driven by exact values, with either drift.

    Args:
        configs: names of files in configs/.
    """
    for name in configs:
        file = Path(__file__).parent.parent / "configs" / f"{name}.yaml"
        print(format_comparison(ceilings(config_of(parse_run(["--config", str(file)])))))
        print()


def write_json(result: dict[str, Any], file: Path | None) -> None:
    """Writes `result`, if a file is given."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json_format.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    auto_cli({"env": env, "quality": quality, "oracle": oracle})
