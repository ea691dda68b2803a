"""What an energy is like, before anything is learned: preconditioned and explored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vgs_rl.energy import Energy
from vgs_rl.exploration import (
    AffineMap,
    Clock,
    Composed,
    Coordinates,
    Exploration,
    JoinedReference,
    LocationScale,
    MappedEnergy,
    MappedReference,
    Modes,
    Reference,
    affordable_effort,
    common_scale,
    explore,
    fit_location_scale,
    fitted_reference,
    given_one,
    independent,
    preconditioner,
)
from vgs_rl.exploration.clock import USUAL
from vgs_rl.exploration.preconditioning import MOST_OF_SEVERAL, unit_mode
from vgs_rl.samplers.mcmc.kernels import FiniteEnergy

BENDS = 2  # explorations that may begin again in coordinates that undo funnels and bananas
PARTICLES = 1024  # of an island at first
FAST = 0.4  # of the usual search, from which an energy allows for Hessians and a guide by ∇E
CURVATURE = 0.4  # of the time, that the Hessians of one minimum may take
LEAST = 0.3  # of the time, for each of them
ILL_CONDITIONED = 100.0  # above this condition number a bend's axis is not known well enough


@dataclass(frozen=True, kw_only=True)
class Survey:
    """An energy with what is known of it.

    Attributes:
        energy: the target, in coordinates that Hessians show where that pays, and in some where
            coordinates depend less on each other.
        unit: the map from these to the energy's own coordinates, or None.
        bends: how many of its maps undo funnels and bananas.
        marginals: whether some coordinates are quantiles: between wells these are so steep that ∇E
            is the difference of large numbers, which no guide should follow.
        exploration: of `energy`.
        doubts: why its coordinates should not be believed, a sentence each.
        cautions: why they may be wrong without a sign of it, a sentence each.
        dtype: in which it is evaluated.
        fast: whether E is fast enough for Hessians, and for a guide by ∇E.
        evaluations: states at which E or ∇E was evaluated.
    """

    energy: Energy
    unit: Coordinates | None
    bends: int
    marginals: bool
    exploration: Exploration
    doubts: tuple[str, ...]
    cautions: tuple[str, ...]
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
    fast = clock.decide("fast", lambda: effort > FAST)
    began, evaluations, n = clock.elapsed(), 0, PARTICLES
    funnel: Coordinates | None = None
    if fast:
        funnel = common_scale(finite, energy.dim, generator)
    if fast and funnel is None:
        funnel = given_one(finite, energy.dim, generator)
    unit = funnel
    marginal: Coordinates | None = None
    large = energy.dim > MOST_OF_SEVERAL
    if large:  # the walks and some ten Hessians of one minimum have to fit into their time
        wanted = 2_000 + 20 * energy.dim
        allowed = CURVATURE * 10 * effort * USUAL
        large = clock.decide("curvature", lambda: wanted < allowed)
    if funnel is None and (fast or large):
        until = began + CURVATURE * seconds
        stop = clock.deadline("hessians", until) if large else None
        unit = preconditioner(finite, energy.dim, generator, stop)
    if fast and funnel is None:
        plain = energy if unit is None else MappedEnergy(energy, unit, dtype=dtype)
        within = FiniteEnergy(plain, dtype=dtype)
        marginal = independent(within, plain.dim, generator)
        evaluations += within.evaluations
        if marginal is not None:
            unit = marginal if unit is None else Composed(unit, marginal)
    if unit is not None:
        energy = MappedEnergy(energy, unit, dtype=dtype)
        reference = None if reference is None else MappedReference(reference, unit)
    modes: Modes | None = None
    if large and unit is not None and marginal is None:
        modes = unit_mode(FiniteEnergy(energy, dtype=dtype), generator.device)
    bend: Coordinates | None = None
    doubts: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()

    def bent(x: Tensor, log_weight: Tensor) -> bool:
        nonlocal bend
        bend = fit_location_scale(x, generator, log_weight)
        return bend is not None

    for left in range(BENDS, -1, -1):
        exploration = explore(
            energy,
            generator,
            reference=reference,
            n=n,
            seconds=max(seconds - (clock.elapsed() - began), LEAST * seconds),
            clock=clock,
            dtype=dtype,
            tell=tell,
            enough=bent if left else lambda x, log_weight: False,
            modes=modes,
        )
        evaluations += exploration.evaluations
        if bend is None:
            break
        if (condition := condition_number(exploration.x, exploration.log_weight)) > ILL_CONDITIONED:
            doubts = (
                "a funnel or a banana was undone in coordinates that depend on each other strongly "
                f"(condition number {condition:,.0f}): its neck may be narrower than the particles "
                "know; give coordinates that depend on each other less",
            )
        trees = bend.inner if isinstance(bend, Composed) else bend
        if isinstance(trees, LocationScale) and bool((trees.log_scale[:, 1:] != 0).any()):
            cautions = (
                "a funnel was undone as far as particles knew it: samples may end before its neck "
                "does; coordinates that depend on each other less would show",
            )
        energy = MappedEnergy(energy, bend, dtype=dtype)
        unit = bend if unit is None else Composed(unit, bend)
        z = bend.to_z(exploration.x)
        n = len(exploration.islands[0].x)
        known = fitted_reference(z, exploration.log_weight, generator)
        reference = JoinedReference(known, MappedReference(exploration.reference, bend), 0.8)
        bend, modes = None, None
    return Survey(
        energy=energy,
        unit=unit,
        bends=BENDS - left + (funnel is not None),
        marginals=marginal is not None,
        exploration=exploration,
        doubts=doubts,
        cautions=cautions,
        dtype=dtype,
        fast=fast,
        evaluations=finite.evaluations + evaluations,
    )


def condition_number(x: Tensor, log_weight: Tensor) -> float:
    """That of weighted states (B, D) in units of each coordinate: longest axis over shortest.

    It is that of the covariance that whitening takes, so it is too small where that is shrunk, with
    fewer than five states a dimension; above 256 dimensions it is that of its long axes.

    Args:
        x: states, shape (B, D).
        log_weight: their log-weights, shape (B,).
    """
    whitening = AffineMap.whitening(x, log_weight.double().softmax(0))
    scaled = whitening.factor
    if scaled.ndim == 1:
        return float(whitening.stretch.max()) if len(whitening.stretch) else 1.0
    widths = torch.linalg.svdvals(scaled / scaled.norm(dim=-1, keepdim=True))
    return float(widths[0] / widths[-1])


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
