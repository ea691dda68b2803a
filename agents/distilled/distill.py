"""Distillation: from any sampler to a student of few network calls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from vgs_rl.agents.distilled.agent import (
    DistilledAgent,
    DistilledConfig,
    require_distillable,
)
from vgs_rl.agents.distilled.densities import Choice, choose_density
from vgs_rl.agents.distilled.orbits import has_orbits
from vgs_rl.agents.distilled.teacher import TeacherStates
from vgs_rl.chain import ScheduleConfig
from vgs_rl.checks import count_of, seed_of
from vgs_rl.energy import Energy
from vgs_rl.geometry import CentreOfMassFree
from vgs_rl.mdp import MDPConfig, SamplingMDP
from vgs_rl.samplers.base import Sampler
from vgs_rl.starts import StartConfig

MOST_STEPS = 64
STATES = 40_000
UPDATES = 1_000
ONE_STEP_NOISE = 1e-6  # of a flow's start, in units of its mixture's mean variance
CHAIN_NOISE = 4.0  # of a chain's start, likewise
PARTICLE_COMPONENTS = 4


@dataclass(frozen=True)
class Plan:
    """What a student learns from, and its settings.

    Attributes:
        states: the teacher's.
        choice: the density that was fitted to them; none of particles.
        mdp: the student's chain.
        agent: the student's configuration.
    """

    states: TeacherStates
    choice: Choice | None
    mdp: MDPConfig
    agent: DistilledConfig

    def begin(self, agent: DistilledAgent) -> None:
        """Hands the states to an agent that was built of these settings."""
        agent.begin(self.states, self.choice)


def plan(
    teacher: Sampler, energy: Energy, steps: int, *, seed: int = 0, states: int = STATES
) -> Plan:
    """Draws a teacher's states, fits a mixture to them and chooses the student's settings.

    Args:
        teacher: any sampler of the target; without weights the student learns its errors too.
        energy: the target.
        steps: network calls of the student.
        seed: of the draw and the fit.
        states: the teacher's states to learn from.

    Raises:
        ValueError: if steps or states are out of range, every weight is 0, or the target can have
            no student.
        ModuleNotFoundError: for one step of a flow, if zuko is not installed.
    """
    require_distillable(energy, count_of("steps", steps))
    particles = energy.geometry if isinstance(energy.geometry, CentreOfMassFree) else None
    steps, states, seed = count_of("steps", steps), count_of("states", states), seed_of(seed)
    if steps > MOST_STEPS:
        raise ValueError(f"steps must be at most {MOST_STEPS}, got {steps}")
    if states < 100:
        raise ValueError(f"states must be at least 100, got {states}")
    drawn = TeacherStates.draw(teacher, states, seed)
    if particles is not None:
        return _of_particles(drawn, particles, steps, teacher.temperature)
    generator = torch.Generator(drawn.x.device).manual_seed(seed)
    choice = choose_density(drawn.x, generator, chain=steps > 1)
    noise = (ONE_STEP_NOISE if steps == 1 else CHAIN_NOISE) * choice.within
    chain = MDPConfig(
        chain="ve",
        num_steps=steps,
        schedule=ScheduleConfig(kind="auto", total_noise=noise),
        start=choice.config,
        temperature=teacher.temperature,
    )
    settings = DistilledConfig(
        components=choice.config.components,
        factorised=choice.config.kind == "noised_product",
    )
    return Plan(drawn, choice, chain, settings)


def _of_particles(
    drawn: TeacherStates, geometry: CentreOfMassFree, steps: int, temperature: float
) -> Plan:
    """A chain from an isotropic Gaussian, as wide as the noised states, or an averaged flow."""
    variance = float(drawn.x.double().square().sum(-1).mean()) / geometry.effective_dim
    noise = CHAIN_NOISE * variance
    chain = MDPConfig(
        chain="ve",
        num_steps=steps,
        schedule=ScheduleConfig(kind="auto", total_noise=noise),
        start=StartConfig(scale=math.sqrt(variance + noise), learned=False),
        temperature=temperature,
    )
    settings = DistilledConfig(components=PARTICLE_COMPONENTS)
    if steps == 1 and has_orbits(geometry):  # a state is looked at in all of its images
        settings = DistilledConfig(batch_size=64, reverse_size=64)
    return Plan(drawn, None, chain, settings)


def distill(
    teacher: Sampler,
    energy: Energy | None = None,
    *,
    steps: int = 1,
    updates: int = UPDATES,
    seed: int = 0,
    states: int = STATES,
    origin: Any = None,
    **learning: Any,
) -> DistilledAgent:
    """A student of a trained sampler: few network calls, or one, and exact log-weights.

    Args:
        teacher: any sampler of a target on R^D, or of exchangeable particles.
        energy: the target; by default that of the teacher's own chain.
        steps: network calls of the student.
        updates: gradient steps; 0 leaves the student at the mixture that it begins with.
        seed: of everything random.
        states: the teacher's states to learn from.
        origin: where the energy comes from, for reports and files.
        **learning: further arguments of :meth:`vgs_rl.agents.Agent.learn`, such as `folder`.

    Returns:
        The trained student, an agent like any other.

    Raises:
        ValueError: if an argument does not fit, naming it.
        ModuleNotFoundError: for one step, if zuko is not installed.
    """
    if energy is None:
        energy = getattr(getattr(teacher, "mdp", teacher), "energy", None)
    if not isinstance(energy, Energy):
        raise ValueError(f"energy must be given, a {type(teacher).__name__} does not know it")
    updates = count_of("updates", updates, least=0)
    planned = plan(teacher, energy, steps, seed=seed, states=states)
    mdp = SamplingMDP(energy, planned.mdp, device=teacher.device)
    agent = planned.agent.build(mdp, seed=seed)
    agent.origin = origin or agent.origin
    planned.begin(agent)
    if updates:
        agent.learn(updates=updates, **learning)
    return agent
