"""What an energy is like, before anything is learned: preconditioned and explored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vgs_rl.energy import Energy
from vgs_rl.exploration import (
    AffineMap,
    Clock,
    Exploration,
    MappedEnergy,
    MappedReference,
    Reference,
    affordable_effort,
    explore,
    preconditioner,
)
from vgs_rl.samplers.kernels import FiniteEnergy


@dataclass(frozen=True, kw_only=True)
class Survey:
    """An energy with what is known of it.

    Attributes:
        energy: the target, in preconditioned coordinates where that pays.
        unit: the map from these to the energy's own coordinates, or None.
        exploration: of `energy`.
        dtype: in which it is evaluated.
        fast: whether E is fast enough for the whole search, and for a guide by ∇E.
        evaluations: states at which E or ∇E was evaluated.
    """

    energy: Energy
    unit: AffineMap | None
    exploration: Exploration
    dtype: torch.dtype
    fast: bool
    evaluations: int


def survey(
    energy: Energy,
    generator: torch.Generator,
    *,
    clock: Clock,
    seconds: float,
    tell: Callable[[str], None],
    reference: Reference | None = None,
) -> Survey:
    """Preconditions and explores an energy.

    Args:
        energy: the target, on R^D.
        generator: source of randomness, on the device where it is done.
        clock: keeps what the time decided, or repeats it.
        seconds: about how long it may take.
        tell: told in words what happens.
        reference: where exploration begins; found if None.

    Raises:
        ValueError: if the energy fails on states of any floating type, or is finite nowhere.
    """
    dtype = computing_type(energy, generator.device)
    finite = FiniteEnergy(energy, dtype=dtype)
    effort = affordable_effort(finite, energy.dim, seconds, generator.device)
    fast = clock.decide("fast", lambda: effort == 1.0)
    unit = preconditioner(finite, energy.dim, generator) if fast else None
    if unit is not None:
        energy = MappedEnergy(energy, unit, dtype=dtype)
        reference = None if reference is None else MappedReference(reference, unit)
    exploration = explore(
        energy,
        generator,
        reference=reference,
        seconds=seconds,
        clock=clock,
        dtype=dtype,
        tell=tell,
    )
    return Survey(
        energy=energy,
        unit=unit,
        exploration=exploration,
        dtype=dtype,
        fast=fast,
        evaluations=finite.evaluations + exploration.evaluations,
    )


def computing_type(energy: Energy, device: torch.device | str) -> torch.dtype:
    """The widest type that an energy takes: one with constants of its own may take float32 alone.

    Raises:
        ValueError: if it fails in either.
    """
    for dtype in (torch.float64, torch.float32):
        x = torch.zeros(2, energy.dim, dtype=dtype, device=device)
        try:
            energy.with_gradient(x)
            return dtype
        except ValueError:
            raise
        except Exception as error:  # of a user's code
            failure = error
    raise ValueError(
        f"{type(energy).__name__}.energy failed on states of shape (2, {energy.dim}): "
        f"{type(failure).__name__}: {failure}"
    ) from failure
