"""Trained runs that a benchmark evaluates, and what its tables show with them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vgs_rl import find
from vgs_rl.agents import (
    Agent,
    MALASampler,
    RefinedSampler,
    ValueGradientAgent,
    ValueGradientConfig,
)
from vgs_rl.evaluation.evaluate import Report
from vgs_rl.evaluation.particle_metrics import ParticleProtocol
from vgs_rl.experiments.cli import Mistake
from vgs_rl.experiments.config import RunConfig
from vgs_rl.experiments.evaluation import ceilings, evaluate_agent, evaluate_smc
from vgs_rl.experiments.pretrained import counters_of, load_pretrained, shipped_samplers
from vgs_rl.experiments.run import open_run, train
from vgs_rl.samplers.base import DrawnSampler, Sampler, Samples

COSTS = ("train_seconds", "env_steps", "energy_evaluations")


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A trained agent: its report, the folder of extra reports, and how to load it."""

    report: Report
    folder: Path
    load: Callable[[], tuple[RunConfig, Agent]]
    compiled: bool = False


def trained_run(config: RunConfig, trust: bool) -> TrainedRun:
    """Trains a configuration, or reads the report of that run from an earlier call."""
    done = config.folder / "report.json"
    if not done.is_file():
        print(f"training {config.agent.name} on {config.env} into {config.folder}")
        if train(config, overwrite=True) is None:
            raise SystemExit(130)
    report = Report.from_json(done.read_text(encoding="utf-8"))
    return TrainedRun(
        report=report,
        folder=config.folder,
        load=lambda: open_run(config.folder, trust=trust),
    )


def shipped_run(
    env: str,
    output: Path,
    n: int | None,
    compiled: bool,
    protocol: ParticleProtocol | None = None,
) -> TrainedRun:
    """Evaluates the sampler that is shipped for a target, or reads its report."""
    target = find(env)
    if target.name not in shipped_samplers():
        known = ", ".join(shipped_samplers())
        raise Mistake(f"no sampler is shipped for {target.name}; there are {known}")
    config, agent, trained = load_pretrained(target.name)
    n = n or config.evaluation.n_samples
    folder = output / f"pretrained_{n}"
    file, drawn = folder / "report.json", folder / "samples.pt"
    if not file.is_file():
        print(f"evaluating {target.name} in {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        sampler: Sampler = agent.sampler(compiled=compiled)
        if drawn.is_file():  # drawn before, and then interrupted
            sampler = DrawnSampler(Samples.load(drawn, agent.mdp.device))
        agent.counters = counters_of(trained)
        evaluate_agent(
            config,
            agent,
            n=n,
            sampler=sampler,
            protocol=protocol,
            on_samples=lambda samples: samples.save(drawn),
            progress_bar=True,
        ).save(file)
    report = Report.from_json(file.read_text(encoding="utf-8"))
    return TrainedRun(
        report=report,
        folder=folder,
        load=lambda: load_pretrained(target.name)[:2],
        compiled=compiled,
    )


def _protocol_of(agent: Agent, report: Report) -> dict[str, Any]:
    """How what stands beside the run is evaluated: particles, which cost more, on a tenth."""
    if agent.mdp.energy.symmetry is None:
        return {"n": report.n_samples}
    protocol = ParticleProtocol(geometric_repeats=0, published_geometric_repeats=0)
    return {"n": report.n_samples // 10, "protocol": protocol}


def _again(run: TrainedRun, agent: Agent) -> Sampler | None:
    """The samples that were evaluated, where the chain is expensive, else None: new ones."""
    if agent.mdp.energy.symmetry is None:
        return None
    return DrawnSampler(Samples.load(run.folder / "samples.pt", agent.mdp.device))


def resampled(run: TrainedRun) -> Report:
    """The run's samples after importance resampling."""
    config, agent = run.load()
    report = evaluate_agent(
        config,
        agent,
        resample=True,
        sampler=_again(run, agent),
        progress_bar=True,
        **_protocol_of(agent, run.report),
    )
    return _costing_as(run.report, report, "vgs, resampled")


def smc(run: TrainedRun) -> Report:
    """Sequential Monte Carlo with the learned value as twist."""
    config, agent = run.load()
    report = evaluate_smc(config, agent, **_protocol_of(agent, run.report))
    return _costing_as(run.report, report, "vgs, twisted SMC")


def _costing_as(report: Report, other: Report, agent: str) -> Report:
    """`other`, which needed the training that `report` tells of."""
    cost = {name: getattr(report, name) for name in COSTS}
    return replace(other, agent=agent, **cost)


def mala(run: TrainedRun) -> Report:
    """MALA with the energy evaluations of training and of one sampling, from a start as wide."""
    report = run.report
    config, agent = run.load()
    assert isinstance(config.agent, ValueGradientConfig)
    budget = report.energy_evaluations + report.n_samples
    energy = agent.mdp.energy
    # Clusters settle slowly, a few of them very slowly: rather few chains than short ones.
    chains = budget // 20 if energy.symmetry is None else max(10, budget // 100_000)
    sampler = MALASampler(
        energy,
        budget,
        chains=min(1_000, chains),
        scale=config.agent.prior_std,
        temperature=agent.mdp.temperature,
        # Particles may start on top of each other.
        max_drift=None if energy.symmetry is None else 100.0,
        device=agent.mdp.device,
    )
    drawn: list[float] = []
    begin = time.perf_counter()
    found = evaluate_agent(
        config,
        agent,
        sampler=sampler,
        on_samples=lambda _: drawn.append(time.perf_counter() - begin),
        **_protocol_of(agent, report),
    )
    return replace(
        found, agent="mala", train_seconds=drawn[0], env_steps=0, energy_evaluations=budget
    )


def mala_steps(run: TrainedRun) -> Report:
    """The run's samples after ten steps of MALA."""
    config, agent = run.load()
    drawn = _again(run, agent) or agent.sampler()
    pilot = min(200, run.report.n_samples // 2)
    sampler = RefinedSampler(drawn, agent.mdp.energy, steps=10, pilot=pilot)
    how = _protocol_of(agent, run.report)
    refined = evaluate_agent(config, agent, sampler=sampler, **how)
    return _costing_as(run.report, refined, "vgs + MALA")


def low_noise(run: TrainedRun) -> Report:
    """Samples of nine tenths of the noise, and none in the last step; without weights."""
    config, agent = run.load()
    assert isinstance(agent, ValueGradientAgent)
    scale = torch.full_like(agent.mdp.rho, 0.9)
    scale[-1] = 0.0
    quiet = evaluate_agent(
        config,
        agent,
        sampler=agent.sampler(compiled=run.compiled, noise_scale=scale),
        progress_bar=True,
        **_protocol_of(agent, run.report),
    )
    return _costing_as(run.report, quiet, "vgs, low noise")


def exact_values(run: TrainedRun) -> Report:
    """The oracle on the run's chain."""
    config, _ = run.load()
    return ceilings(config, ("posterior",))["oracle posterior"]
