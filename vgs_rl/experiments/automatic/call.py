"""Samples of an energy that nobody tuned for: explore, normalise, learn, say what to believe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vgs_rl.agents.automatic.progress import Progress
from vgs_rl.agents.automatic.survey import Survey, survey
from vgs_rl.agents.automatic.trials import Rows, Trial, Trials
from vgs_rl.checks import count_of, require_positive, seed_of
from vgs_rl.conditional.energy import require_one
from vgs_rl.energy import Energy
from vgs_rl.evaluation.verdict import Evidence, Verdict, early_ends, judge_evidence
from vgs_rl.experiments.automatic.around import explore_around
from vgs_rl.experiments.automatic.board import Board
from vgs_rl.experiments.automatic.learning import Learning
from vgs_rl.experiments.automatic.result import MappedSampler, Result
from vgs_rl.exploration import (
    Clock,
    Composed,
    Coordinates,
    Exploration,
    MappedEnergy,
    MappedReference,
    PriorReference,
    Reference,
    energy_drift,
    moved,
    support_of,
)
from vgs_rl.foreign.function_energy import FunctionEnergy
from vgs_rl.registry import energy_of
from vgs_rl.samplers.base import Samples
from vgs_rl.samplers.mcmc.kernels import FiniteEnergy

EXPLORED = 0.45  # of the time, for exploration
TURNS = 3  # of learning, with an exploration from the samples between them
BACKWARD = 4_096  # paths, about, that judge a turn besides its samples
LATE = 0.1  # of the time, that must be left for another
WORDS = ("do not use", "use the weights", "trust")  # the last is the best
REPEATED = ("target", "n", "seed", "seconds", "target_ess", "effort")


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
    repeat: Mapping[str, Any] | None = None,
    log_dir: Path | str | None = None,
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
        seed: of every random number. Phases end by the clock, so the same call gives other numbers
            when it is faster or slower: see `repeat`.
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
        repeat: `settings` of an earlier result. Everything is then done as often as it was there,
            however long it takes, and the same machine gives the same numbers. `n`, `seed`,
            `seconds` and `target_ess` are those of the settings; target, prior, bounds, support and
            device are given again.
        log_dir: an empty folder for TensorBoard: phases, trials, verdict and a picture.
        progress_bar: whether to show one.

    Raises:
        ValueError: if the arguments contradict each other, the target has no Euclidean space, its
            energy is finite nowhere, or a run does not repeat.
        FileExistsError: if `log_dir` holds another run.

    Example:
        >>> result = sample(lambda x: 0.5 * (x - 3).square().sum(-1), 500, dim=2, seconds=5)
        >>> result.x.shape
        torch.Size([500, 2])
    """
    decisions = None
    if repeat is not None:
        n, seed, seconds, target_ess, decisions = _repeated(repeat)
    n, seed = count_of("n", n, least=2), seed_of(seed)
    require_positive("sample", seconds=seconds, target_ess=target_ess)
    if target_ess > 1:
        raise ValueError(f"sample.target_ess must be at most 1, got {target_ess}")
    energy = _target(target, dim, log_density).to(device)
    name = target if isinstance(target, str) else type(energy).__name__
    if repeat is not None and repeat["target"] != name:
        raise ValueError(f"repeat.target is {repeat['target']!r}, got {name!r}")
    require_one(energy, "sample explores")
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
    clock = Clock(seconds, decisions)
    folder = None if log_dir is None else Path(log_dir)
    with Progress(clock, show=progress_bar) as progress, Board(folder, clock) as board:

        def tell(message: str) -> None:
            progress.tell(message)
            board.phase(message)

        given = energy
        found = survey(
            energy,
            generator,
            clock=clock,
            seconds=EXPLORED * seconds,
            tell=tell,
            reference=reference,
        )
        energy, exploration, dtype = found.energy, found.exploration, found.dtype
        board.explored(exploration)

        def ends(samples: Samples) -> tuple[str, ...]:
            """Doubts about coordinates and about the tails of samples."""
            if not found.fast or samples.log_weight is None:
                return found.doubts
            x = samples.x if found.unit is None else found.unit.to_x(samples.x)
            return (*found.doubts, *early_ends(x.double(), samples.log_weight, given, 1.0, dtype))

        if found.unit is not None:
            shape = found.unit if shape is None else Composed(shape, found.unit)
        known, history = None, []
        kept: _Turn | None = None
        for turn in range(TURNS):
            trials = Trials(
                energy=energy,
                exploration=exploration,
                dtype=dtype,
                seed=seed + 1000 * turn,
                clock=clock,
                seconds=seconds,
                target_ess=target_ess,
                tell=tell,
                known=known,
                guided=found.fast and not found.marginals,
                noted=board.trial,
            )
            share = 0.6 if turn + 1 < TURNS else 0.9
            paths = n + BACKWARD
            learning = Learning(trials=trials, seconds=share * clock.left(), paths=paths)
            best = learning.run()
            history += learning.history
            tell("drawing samples")
            before = clock.elapsed()
            free = MappedSampler(best.agent.sampler(), best.energy.to_x)
            samples = free.sample(n, seed)
            judged = _Turn.of(best, free, samples, exploration, ends(samples), found, seed)
            board.judged(judged.verdict, judged.evidence)
            if kept is None or judged.better_than(kept, n, seed + 2):
                kept = judged
            # Another turn draws and judges as well.
            late = (1 - LATE) * seconds - (clock.elapsed() - before)
            if kept.verdict == "trust" or learning.stopped or clock.late(late):
                break
            drawn = learning.drawn(best)
            exploration = explore_around(
                kept.best,
                energy,
                exploration,
                generator,
                clock=clock,
                seconds=0.5 * clock.left(),
                dtype=dtype,
                tell=tell,
            )
            board.explored(exploration)
            doubts = ends(kept.samples)
            kept = _Turn.of(kept.best, kept.sampler, kept.samples, exploration, doubts, found, seed)
            board.judged(kept.verdict, kept.evidence)
            if kept.verdict == "trust" or clock.late(late):
                break
            known = drawn if known is None else known.joined(drawn)
        assert kept is not None
        free, samples = kept.sampler, kept.samples
        sampler = free if shape is None else MappedSampler(free, _typed(shape.to_x))
        if shape is not None:
            samples = replace(samples, x=_typed(shape.to_x)(samples.x))
        result = Result(
            samples=samples,
            verdict=kept.verdict,
            evidence=kept.evidence,
            agent=kept.best.agent,
            energy=kept.best.energy,
            exploration=exploration,
            sampler=sampler,
            settings={
                "target": name,
                "n": n,
                "seed": seed,
                "seconds": seconds,
                "target_ess": target_ess,
                "device": str(torch.device(device)),
                "dtype": str(dtype).removeprefix("torch."),
                "bends": found.bends,
                "exploration": exploration.summary(),
                "learning": history,
                "effort": clock.decisions,
            },
            seconds=clock.elapsed(),
        )
        board.finish(result)
    return result


@dataclass(frozen=True, kw_only=True)
class _Turn:
    """What a turn of learning has come to, as the newest exploration judges it."""

    best: Trial
    sampler: MappedSampler
    samples: Samples
    evidence: Evidence
    verdict: Verdict

    @classmethod
    def of(
        cls,
        best: Trial,
        sampler: MappedSampler,
        samples: Samples,
        exploration: Exploration,
        doubts: tuple[str, ...],
        found: Survey,
        seed: int,
    ) -> _Turn:
        """It with its verdict."""
        evidence = _evidence(best, samples, exploration, doubts, found, seed)
        verdict = judge_evidence(evidence)
        return cls(best=best, sampler=sampler, samples=samples, evidence=evidence, verdict=verdict)

    def better_than(self, other: _Turn, n: int, seed: int) -> bool:
        """By verdict, then by the effective share of n samples that are not those of the result.

        As many as there: a thousand seldom have the few large weights of ten thousand.
        """
        rank, best = (WORDS.index(each.verdict) for each in (self, other))
        if rank != best:
            return rank > best
        return self.sampler.sample(n, seed).ess > other.sampler.sample(n, seed).ess


def _repeated(settings: Mapping[str, Any]) -> tuple[int, int, float, float, dict[str, list[Any]]]:
    """N, seed, seconds, target ESS and what the clock decided, of an earlier result's settings.

    Raises:
        ValueError: if they are no such settings.
    """
    missing = [name for name in REPEATED if name not in settings]
    if missing:
        raise ValueError(
            f"repeat must be the settings of an earlier result, got none with {', '.join(missing)}"
        )
    effort = settings["effort"]
    if not isinstance(effort, Mapping) or not all(isinstance(v, list) for v in effort.values()):
        raise ValueError(f"repeat.effort must be lists by name, got {effort!r:.80}")
    n, seed, seconds, target_ess = (settings[name] for name in REPEATED[1:5])
    return n, seed, seconds, target_ess, dict(effort)


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


@torch.no_grad()
def _evidence(
    best: Trial,
    samples: Samples,
    exploration: Exploration,
    doubts: tuple[str, ...],
    found: Survey,
    seed: int,
) -> Evidence:
    """What speaks for and against the samples; where E is fast, new particles say it."""
    assert samples.log_weight is not None
    mdp = best.agent.mdp
    generator = mdp.generator(seed + 1)
    particles, drift = Rows.of(exploration).resampled(generator), None
    x = samples.x.double()
    if found.fast:
        energy, reference = FiniteEnergy(found.energy, dtype=found.dtype), exploration.reference
        particles = moved(energy, reference, particles, generator)
        drift = energy_drift(energy, reference, x, samples.log_weight, generator)
    z = best.energy.coordinates.to_z(particles, generator)
    backward = best.agent.sampler().reverse_log_weight(z, generator)
    return Evidence.of(
        x,
        samples.log_weight,
        particles=particles,
        backward=backward,
        explored_log_z=exploration.log_z,
        explored_spread=exploration.spread,
        drift=drift,
        doubts=(*doubts, *exploration.doubts),
        cautions=found.cautions,
        notes=tuple(best.agent.notes()),
    )
