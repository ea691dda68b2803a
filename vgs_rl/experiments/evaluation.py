"""What a trained agent is worth: its report, its pictures, and what perfect values would reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import vgs_rl.envs.sampling  # noqa: F401  importing the Gymnasium faces registers the targets
from vgs_rl.agents.base import Agent
from vgs_rl.agents.value_gradient.agent import ValueGradientAgent
from vgs_rl.evaluation.evaluate import Report, evaluate
from vgs_rl.evaluation.particle_metrics import ParticleProtocol
from vgs_rl.experiments.automatic.result import MappedSampler
from vgs_rl.experiments.config import RunConfig
from vgs_rl.files.unfinished import NAME as UNFINISHED
from vgs_rl.files.unfinished import Unfinished
from vgs_rl.mdp import SamplingMDP
from vgs_rl.networks.policies import Drift
from vgs_rl.plots.particles import (
    EXACT_CLUSTERS,
    cluster_summary,
    plot_pair_distances,
    reference_label,
    reference_states,
)
from vgs_rl.plots.plots import Drawing, plot_energy_histogram, plot_learning_curves, plot_summary
from vgs_rl.plots.results import plot_states
from vgs_rl.registry import Target, find
from vgs_rl.samplers.base import ChainSampler, Sampler, Samples
from vgs_rl.samplers.oracle import oracle_sampler
from vgs_rl.samplers.twisted import TwistedSMC
from vgs_rl.training.config import (
    resolve_device,
)
from vgs_rl.training.folder import IDEAL, RunFolder, write_ideal_run
from vgs_rl.training.identity import identity_details, shown_settings
from vgs_rl.training.resume import run_digest


def evaluate_agent(
    config: RunConfig, agent: Agent, *, n: int | None = None, **options: Any
) -> Report:
    """The report of an agent (or of another sampler) on the run's own evaluation seed.

    Args:
        config: the run.
        agent: its agent.
        n: samples to draw; the run's number by default.
        **options: of :meth:`vgs_rl.agents.usage.Usable.evaluate`.
    """
    evaluation = config.evaluation
    report = agent.evaluate(n or evaluation.n_samples, seed=evaluation.seed, **options)
    report.details |= identity_details(config)
    return report


def evaluate_smc(
    config: RunConfig,
    agent: Agent,
    *,
    n: int | None = None,
    protocol: ParticleProtocol | None = None,
) -> Report:
    """The report of SMC with the agent's value as twist, resampled at the end.

    Raises:
        ValueError: if the agent has no value.
    """
    if not isinstance(agent, ValueGradientAgent):
        raise ValueError(f"SMC needs a value as its twist, and {config.agent.name} has none")
    sampler: Sampler = TwistedSMC(agent.mdp, agent.policy)
    if agent.explored is not None:
        sampler = MappedSampler(sampler, agent.explored.to_x)
    return evaluate_agent(
        config,
        agent,
        n=n,
        resample=True,
        sampler=sampler,
        protocol=protocol,
    )


def finish(
    config: RunConfig,
    target: Target,
    agent: Agent,
    folder: RunFolder,
    *,
    progress_bar: bool = False,
) -> Report:
    """Evaluates, draws, writes samples.pt and, last of all, report.json.

    A run that is ended meanwhile goes on with the samples that it has drawn.
    """
    evaluated: list[Samples] = []
    chosen = agent.target_at()[0]
    sampler = agent.sampler() if chosen is None else agent.sampler().at(chosen)
    identity = run_digest(folder.path, agent.checkpoint)
    unfinished = sampler.unfinished = Unfinished(folder.path / UNFINISHED, identity)
    report = evaluate_agent(
        config,
        agent,
        sampler=sampler,
        on_samples=evaluated.append,
        progress_bar=progress_bar,
    )
    evaluated[0].save(folder.path / "samples.pt")
    step = agent.counters.env_steps
    report.to_tensorboard(folder.writer, step)
    if report.verdict:
        folder.writer.add_text("verdict", "\n".join(f"- {line}" for line in report.verdict), step)
    if folder.path == config.folder:  # else it was moved, and who its neighbours are is not known
        write_ideal_run(
            folder.path.parents[1] / IDEAL,
            report.ideals(),
            env_steps=step,
            energy_evaluations=agent.counters.energy_evaluations,
            seconds=agent.counters.seconds,
        )
    folder.hyper_parameters(shown_settings(config), finished=True)
    folder.draw(
        lambda: final_figures(config, target, agent, folder, evaluated[0].x), step, keep=True
    )
    unfinished.remove()
    folder.finish(report)
    return report


def final_figures(
    config: RunConfig, target: Target, agent: Agent, folder: RunFolder, x: Tensor
) -> dict[str, Drawing]:
    """The pictures of a finished run, by name; x (n, D) are the samples that were evaluated."""
    mdp, (chosen, energy) = agent.mdp, agent.target_at()
    generator = mdp.generator(config.evaluation.seed + 3)
    pictures = agent.figures(generator)
    log_z = energy.log_z if mdp.temperature == 1.0 else None
    pictures["learning_curves"] = lambda: plot_learning_curves(folder.records, log_z=log_z)
    sampler = agent.sampler()
    if mdp.energy.symmetry is not None and isinstance(sampler, ChainSampler):
        return pictures | _cluster_figures(target, sampler, folder, x, generator)
    if energy.can_sample and mdp.temperature == 1.0:
        pictures["energy"] = lambda: plot_energy_histogram(
            energy(x), energy(energy.sample(len(x), generator).to(mdp.dtype))
        )
    if chosen is not None:
        few, seed = max(2, config.evaluation.n_samples // 10), config.evaluation.seed
        pictures["log_z"] = lambda: agent.log_z_curve(n=few, seed=seed).plot()
    if chosen is not None or not isinstance(sampler, ChainSampler):
        return pictures | {"samples": lambda: plot_states(x)}
    pictures["summary"] = lambda: plot_summary(
        mdp,
        sampler.policy,
        generator,
        value=agent.average.value if isinstance(agent, ValueGradientAgent) else None,
        records=folder.records,
        title=agent.picture_title,
    )
    return pictures


def _cluster_figures(
    target: Target,
    sampler: ChainSampler,
    folder: RunFolder,
    x: Tensor,
    generator: torch.Generator,
) -> dict[str, Drawing]:
    """What particle targets have instead of pictures of two coordinates."""
    mdp, energy = sampler.mdp, sampler.mdp.energy
    symmetry = energy.symmetry
    assert symmetry is not None
    x = x[:EXACT_CLUSTERS]
    reference, label = reference_states(mdp, generator, "test"), reference_label(energy)
    pictures: dict[str, Drawing] = {
        "distances": lambda: plot_pair_distances(x, reference, symmetry, label=label)
    }
    if reference is not None:
        pictures["energy"] = lambda: plot_energy_histogram(
            energy(x), energy(reference), label=label
        )
    pictures["summary"] = lambda: cluster_summary(
        mdp,
        sampler.policy,
        x,
        generator,
        records=folder.records,
        split="test",
        title=target.name,
    )
    return pictures


def ceilings(
    config: RunConfig, drifts: Sequence[Drift] = ("posterior", "bellman")
) -> dict[str, Report]:
    """Reports of the oracle on the run's MDP, by drift: what perfect learning reaches."""
    target = find(config.env)
    reports = {}
    for drift in drifts:
        energy = target.make_energy(**config.env_args)
        mdp = SamplingMDP(energy, config.mdp, device=resolve_device(config.device))
        reports[f"oracle {drift}"] = evaluate(
            oracle_sampler(mdp, drift, seed=config.evaluation.seed + 4),
            energy,
            config.evaluation.n_samples,
            seed=config.evaluation.seed,
            target_name=target.name,
            agent_name=f"oracle {drift}",
        )
    return reports
