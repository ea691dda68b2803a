"""Samples of an energy that nobody tuned for: explore, normalise, learn, say what to believe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vgs_rl.checks import count_of, require_positive, seed_of
from vgs_rl.energy import Energy
from vgs_rl.evaluation.verdict import Evidence, judge_evidence
from vgs_rl.experiments.automatic.around import explore_around
from vgs_rl.experiments.automatic.learning import Learning, Rows, Trial
from vgs_rl.experiments.automatic.progress import Progress
from vgs_rl.experiments.automatic.result import MappedSampler, Result
from vgs_rl.exploration import (
    Composed,
    Coordinates,
    Exploration,
    MappedEnergy,
    MappedReference,
    PriorReference,
    Reference,
    affordable_effort,
    explore,
    preconditioner,
    support_of,
)
from vgs_rl.foreign.function_energy import FunctionEnergy
from vgs_rl.registry import energy_of
from vgs_rl.samplers.base import Samples
from vgs_rl.samplers.kernels import FiniteEnergy

EXPLORED = 0.45  # of the time, for exploration
TURNS = 3  # of learning, with an exploration from the samples between them
LATE = 0.1  # of the time, that must be left for another


def sample(
    target: str | Energy | Callable[[Tensor], Tensor] | None = None,
    n: int = 10_000,
    *,
    seed: int = 0,
    dim: int | None = None,
    log_density: Callable[[Tensor], Tensor] | None = None,
    prior: Any = None,
    bounds: Any = None,
    support: Any = None,
    seconds: float = 240.0,
    target_ess: float = 0.8,
    device: str = "cpu",
    progress_bar: bool = True,
) -> Result:
    """Draws samples of an energy, without any setting, and says whether to trust them.

    It explores by tempered sequential Monte Carlo, maps the target to unit size, and tries a
    value-gradient sampler that starts from what was found. It trains one where that is not good
    enough, and fits map and start again to its own weighted samples. It ends as soon as
    `target_ess` is reached. The verdict is about the weighted samples.

    Args:
        target: a name, an energy, or a function (B, D) -> (B,).
        n: samples.
        seed: of every random number. Learning ends by the clock, so another machine, or a busier
            one, gives other numbers.
        dim: D of a function's states.
        log_density: in place of `target`, the function -E.
        prior: where exploration begins: a torch distribution, or anything with `sample((n,))` and
            `log_prob(x)`. It is no part of the target.
        bounds: of the coordinates, a pair (low, high), each a number or a sequence of D; None or an
            infinity means that there is none.
        support: in place of `bounds`, a constraint of `torch.distributions.constraints` or a list
            of them (:func:`~vgs_rl.exploration.support_of`), among them
            :func:`~vgs_rl.exploration.periodic` for angles.
        seconds: about how long it may take. Where E is so slow that a few hundred thousand
            evaluations would take longer, fewer walks and particles are used, and no guide by ∇E.
        target_ess: effective sample size, as a fraction in (0, 1], at which learning ends early.
        device: `cpu` or `cuda`.
        progress_bar: whether to show one.

    Raises:
        ValueError: if the arguments contradict each other, the target has no Euclidean space, or
            its energy is finite nowhere.

    Example:
        >>> result = sample(lambda x: 0.5 * (x - 3).square().sum(-1), 500, dim=2, seconds=5)
        >>> result.x.shape
        torch.Size([500, 2])
    """
    n, seed = count_of("n", n, least=2), seed_of(seed)
    require_positive("sample", seconds=seconds, target_ess=target_ess)
    if target_ess > 1:
        raise ValueError(f"sample.target_ess must be at most 1, got {target_ess}")
    energy = _target(target, dim, log_density).to(device)
    if energy.geometry.effective_dim != energy.dim:
        raise ValueError(
            f"sample needs a target on R^D, got {type(energy).__name__} on a "
            f"{type(energy.geometry).__name__}; train an agent with its own configuration"
        )
    generator = torch.Generator(device).manual_seed(seed)
    reference: Reference | None = None if prior is None else PriorReference(prior, energy.dim)
    shape: Coordinates | None = None
    if bounds is not None or support is not None:
        shape = support_of(energy.dim, bounds=bounds, support=support).to(device)
        energy = MappedEnergy(energy, shape)
        if reference is not None:
            reference = MappedReference(reference, shape)
    dtype = _computing_type(energy, device)
    with Progress(seconds, show=progress_bar) as progress:
        finite = FiniteEnergy(energy, dtype=dtype)
        fast = affordable_effort(finite, energy.dim, EXPLORED * seconds, device) == 1.0
        unit = preconditioner(finite, energy.dim, generator) if fast else None
        if unit is not None:
            shape = unit if shape is None else Composed(shape, unit)
            energy = MappedEnergy(energy, unit, dtype=dtype)
            reference = None if reference is None else MappedReference(reference, unit)
        exploration = explore(
            energy,
            generator,
            reference=reference,
            seconds=EXPLORED * seconds,
            dtype=dtype,
            tell=progress.tell,
        )
        known, history = None, []
        for turn in range(TURNS):
            learning = Learning(
                energy=energy,
                exploration=exploration,
                dtype=dtype,
                seed=seed + 1000 * turn,
                seconds=progress.left() * (0.6 if turn + 1 < TURNS else 0.9),
                target_ess=target_ess,
                tell=progress.tell,
                known=known,
                guided=fast,
            )
            best = learning.run()
            history += learning.history
            progress.tell("drawing samples")
            free = MappedSampler(best.agent.sampler(), best.energy.to_x)
            samples = free.sample(n, seed)
            verdict = judge_evidence(evidence := _evidence(best, samples, exploration, seed))
            if verdict.word == "trust" or learning.stopped or progress.left() < LATE * seconds:
                break
            found = learning.drawn(best)
            exploration = explore_around(
                best,
                energy,
                exploration,
                generator,
                seconds=0.5 * progress.left(),
                dtype=dtype,
                tell=progress.tell,
            )
            verdict = judge_evidence(evidence := _evidence(best, samples, exploration, seed))
            if verdict.word == "trust" or progress.left() < LATE * seconds:
                break
            known = found if known is None else known.joined(found)
        sampler = free if shape is None else MappedSampler(free, _typed(shape.to_x))
        if shape is not None:
            samples = replace(samples, x=_typed(shape.to_x)(samples.x))
    return Result(
        samples=samples,
        verdict=verdict,
        evidence=evidence,
        agent=best.agent,
        energy=best.energy,
        exploration=exploration,
        sampler=sampler,
        settings={
            "target": target if isinstance(target, str) else type(energy).__name__,
            "n": n,
            "seed": seed,
            "seconds": seconds,
            "target_ess": target_ess,
            "dtype": str(dtype).removeprefix("torch."),
            "exploration": exploration.summary(),
            "learning": history,
        },
        seconds=progress.elapsed(),
    )


def _typed(to_x: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The map, in the type of its argument."""
    return lambda z: to_x(z).to(z.dtype)


def _target(
    target: str | Energy | Callable[[Tensor], Tensor] | None,
    dim: int | None,
    log_density: Callable[[Tensor], Tensor] | None,
) -> Energy:
    if (target is None) == (log_density is None):
        raise ValueError("give either a target or log_density")
    if target is not None:
        return energy_of(target, dim)
    assert log_density is not None
    if dim is None:
        raise ValueError("dim must be given with a function: the dimensions of its states")
    return FunctionEnergy(lambda x: -log_density(x), dim)


def _computing_type(energy: Energy, device: str) -> torch.dtype:
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


@torch.no_grad()
def _evidence(best: Trial, samples: Samples, exploration: Exploration, seed: int) -> Evidence:
    """What speaks for and against the samples."""
    assert samples.log_weight is not None
    mdp = best.agent.mdp
    generator = mdp.generator(seed + 1)
    particles = Rows.of(exploration).resampled(generator)
    z = best.energy.coordinates.to_z(particles).to(mdp.dtype)
    backward = best.agent.sampler().reverse_log_weight(z, generator)
    return Evidence.of(
        samples.x.double(),
        samples.log_weight,
        particles=particles,
        backward=backward,
        explored_log_z=exploration.log_z,
        explored_spread=exploration.spread,
        doubts=exploration.doubts,
    )
