"""From an energy to everything that an agent needs to learn it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from vgs_rl.agents.automatic.design import Design
from vgs_rl.agents.automatic.explored import KEPT, Explored
from vgs_rl.agents.automatic.progress import Progress
from vgs_rl.agents.automatic.settings import ExplorationConfig
from vgs_rl.agents.automatic.survey import survey
from vgs_rl.agents.automatic.trials import Rows, Trials
from vgs_rl.energy import Energy
from vgs_rl.exploration import Clock, Composed
from vgs_rl.training import parallel
from vgs_rl.weights import systematic_resample

EXPLORED = 0.65  # of the time, for exploration; the rest is for the choice of a design
ENOUGH = 0.8  # effective share of an untrained sampler at which no other design is tried


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What exploration has found for an agent.

    Attributes:
        design: how the target is sampled, in preconditioned coordinates.
        explored: the energy in the chain's coordinates, with evidence.
        rows: states for the agent's buffer, in preconditioned coordinates.
        settings: what was decided.
        evaluations: states at which E or ∇E was evaluated.
    """

    design: Design
    explored: Explored
    rows: Rows
    settings: ExplorationConfig
    evaluations: int


def common_plan(
    energy: Energy,
    settings: ExplorationConfig,
    *,
    seed: int,
    device: torch.device,
    progress_bar: bool = True,
) -> Plan:
    """The plan of rank 0, which the other ranks make again by its effort; see :func:`make_plan`."""
    first, plan = parallel.is_first(), None
    with parallel.alone():
        if first:
            plan = make_plan(energy, settings, seed=seed, device=device, progress_bar=progress_bar)
    decided = parallel.from_first(settings if plan is None else plan.settings)
    with parallel.alone():
        return plan or make_plan(energy, decided, seed=seed, device=device, progress_bar=False)


def make_plan(
    energy: Energy,
    settings: ExplorationConfig,
    *,
    seed: int,
    device: torch.device,
    progress_bar: bool = True,
) -> Plan:
    """Explores an energy and chooses a design.

    Args:
        energy: the target, on R^D, at tau = 1.
        settings: whose effort is repeated, if it has one.
        seed: of every random number.
        device: where it is done.
        progress_bar: whether to show one.

    Raises:
        ValueError: if the energy is finite nowhere that was looked, or what was decided does not
            repeat.
    """
    seconds = settings.seconds
    clock = Clock(seconds, settings.effort if settings.done else None)
    generator = torch.Generator(device).manual_seed(seed)
    with Progress(clock, show=progress_bar, what="exploring") as progress:
        share, tell = EXPLORED * seconds, progress.tell
        found = survey(energy, generator, clock=clock, seconds=share, tell=tell)
        trials = Trials(
            energy=found.energy,
            exploration=found.exploration,
            dtype=found.dtype,
            seed=seed,
            clock=clock,
            seconds=seconds - share,
            target_ess=ENOUGH,
            tell=tell,
            guided=found.fast and not found.marginals,
        )
        design = trials.choose().design
    decided = replace(
        settings,
        when="always",
        unit=design.unit,
        tails=design.tails,
        bends=found.bends,
        effort=clock.decisions,
    )
    for name in ("unit", "tails", "bends") if settings.done else ():
        was, now = getattr(settings, name), getattr(decided, name)
        if was not in (None, now):
            raise ValueError(
                f"exploration.{name} is {now!r} here, got {was!r}: exploration does not repeat, "
                "such as on another machine; leave exploration.effort out to explore again"
            )
    inner, unit = design.coordinates, found.unit
    whole = inner if unit is None else Composed(unit, inner)
    explored = Explored(energy, found.dtype, whole)
    particles = found.exploration.x
    few = min(KEPT, len(particles))
    particles = particles[systematic_resample(found.exploration.log_weight, few, generator)]
    explored.particles = particles if unit is None else unit.to_x(particles)
    explored.log_z, explored.spread = found.exploration.log_z, found.exploration.spread
    explored.doubts = (*found.doubts, *found.exploration.doubts)
    explored.cautions, explored.fast = found.cautions, found.fast
    return Plan(
        design=design,
        explored=explored,
        rows=Rows.of(found.exploration),
        settings=decided,
        evaluations=found.evaluations + trials.evaluations,
    )
