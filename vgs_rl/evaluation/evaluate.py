"""One evaluation for all samplers: every metric with its ideal (docs/protocol.md).

A metric's ideal is what a perfect sampler would score: the mean of the same metric over pairs of
equally large sets of exact samples, with its standard deviation (`ideal_std`), or the value at
which a bound is tight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vgs_rl.checks import count_of, seed_of
from vgs_rl.energy import Energy, Split
from vgs_rl.evaluation import metrics as distances
from vgs_rl.evaluation.certificate import Premise, certificate
from vgs_rl.evaluation.particle_metrics import ParticleProtocol, particle_metrics
from vgs_rl.evaluation.particles import pair_distances, transformed
from vgs_rl.evaluation.path_metrics import (
    certificate_metrics,
    log_z_metrics,
    path_metrics,
    upper_metrics,
)
from vgs_rl.evaluation.report import Metric, Report, format_comparison
from vgs_rl.samplers.base import Sampler, Samples
from vgs_rl.weights import dead_paths

__all__ = ["Metric", "ParticleProtocol", "Report", "evaluate", "format_comparison"]

BINS = 200
SINKHORN_SAMPLES = 2_000
IDEAL_PAIRS = 5  # of sets of exact samples, whose metrics give the ideal
CHUNK = 4_096  # states whose energies are computed at once
METRIC_ORDER = (
    "tvd_energy",
    "tvd_energy_published",
    "tvd_distance",
    "tvd_distance_published",
    "sinkhorn",
    "w2",
    "w2_energy",
    "w2_distance",
    "w2_geometric",
    "w2_geometric_published",
    "std_error",
    "mode_weight_error",
    "log_z_error",
    "log_z",
    "log_z_low",
    "log_z_high",
    "tv_bound",
    "elbo",
    "elbo_live",
    "eubo",
    "gap",
    "ess",
    "largest_weight",
    "k_hat",
    "path_ess",
)


@torch.no_grad()
def evaluate(
    sampler: Sampler,
    energy: Energy,
    n: int = 20_000,
    *,
    seed: int = 0,
    target_name: str | None = None,
    agent_name: str = "",
    resample: bool = False,
    batches: int = 10,
    batch_size: int = 2_000,
    split: Split = "test",
    protocol: ParticleProtocol | None = None,
    training_seed: int | None = None,
    train_seconds: float = 0.0,
    env_steps: int = 0,
    energy_evaluations: int = 0,
    on_samples: Callable[[Samples], None] | None = None,
) -> Report:
    """Evaluates a sampler by every metric that it and its target admit; the others are left out.

    - Against exact samples (``energy.sample``), or half of the shipped ``energy.reference()``
      while its other half gives the ideal: ``tvd_energy``; for particles ``tvd_distance``, the
      same of all pair distances, and
      :func:`vgs_rl.evaluation.particle_metrics.particle_metrics`; else
      ``std_error`` and ``sinkhorn``, which relabelling and rotation would drown.
    - Against known masses: ``mode_weight_error``. Against a known log Z: ``log_z_error``,
      |log mean w - log Z|; where it is not known, ``log_z``, the estimate itself.
    - From the log-weights of independent paths: ``elbo``; ``ess``, the effective sample size of
      all n paths; the share of the ``largest_weight`` and the tail index ``k_hat``, which say
      whether ess and log Z can be believed; ``path_ess``, the median ESS over batches. Of particles
      that have been resampled on the way (SMC) only log Z is left.
    - ``eubo`` on paths drawn backwards from exact samples, or from all of the shipped reference,
      and its ``gap`` to the ELBO: estimates of the paths' KL divergences, no bounds of them.
    - What is proven (:class:`vgs_rl.evaluation.certificate.Certificate`): ``log_z_low`` for all
      independent paths; ``log_z_high`` and ``tv_bound`` where there are backward paths, under the
      premise that is named with them. All of it is in the details, as ``certificate``.

    A path whose log-weight is NaN or -inf has weight 0. The ELBO is then -inf, as it is in truth;
    ``elbo_live`` is that of the sampler which throws such paths away, and the details count them.

    At the sampler's temperature, if it is not 1, neither exact samples nor log Z nor mode weights
    apply, whatever the sampler: what is left are metrics of log-weights, at that temperature.

    The same arguments give the same numbers. The sampler, the reference, the ideal and the
    backward paths have separate generators, derived from `seed`, on the sampler's device. No
    counter of training moves.

    Args:
        sampler: what to evaluate.
        energy: its target.
        n: samples to draw.
        seed: seed of the evaluation.
        target_name: name for the report; the energy's class by default.
        agent_name: name for the report.
        resample: evaluate importance-resampled samples. The metrics of log-weights then come from n
            further paths without resampling.
        batches: batches of the path-ESS, at most as many as n allows.
        batch_size: paths in each.
        split: which shipped samples: "validation" for choices, "test" for what is reported.
        protocol: repeats and sample counts of particle metrics; all of it by default.
        training_seed: for the report.
        train_seconds: for the report.
        env_steps: for the report; those of training.
        energy_evaluations: for the report; those of training.
        on_samples: is called with the samples that are evaluated, for pictures of them.

    Raises:
        ValueError: if n is below 2, `resample` is asked of a sampler without log-weights, or a
            log-weight is +inf.
    """
    n, seed = count_of("n", n, least=2), seed_of(seed)
    batches, batch_size = count_of("batches", batches), count_of("batch_size", batch_size)
    if resample and not sampler.has_weights:
        raise ValueError(f"resample needs log-weights, and {type(sampler).__name__} has none")
    draw, paths_again, exact, second, backwards, repeats, further = _generators(
        seed, sampler.device
    )
    temperature = sampler.temperature
    samples = sampler.sample(n, draw, resample=resample)
    if on_samples is not None:
        on_samples(samples)
    paths = sampler.sample(n, paths_again) if resample else samples
    metrics: dict[str, Metric] = {}
    proven = None
    reference = None
    if temperature == 1.0:
        reference = _reference(energy, n, split, exact, second, further, samples.x.dtype)
    if reference is not None:
        protocol = protocol or ParticleProtocol()
        metrics |= _sample_metrics(samples.x, energy, reference, protocol, repeats)
    if temperature == 1.0 and energy.mode_probabilities is not None:
        metrics["mode_weight_error"] = _mode_metric(samples.x, energy, reference)
    if paths.log_weight is not None:
        log_z = energy.log_z if temperature == 1.0 else None
        metrics |= log_z_metrics(paths.log_weight, log_z, independent=paths.independent)
        if paths.independent:
            metrics |= path_metrics(paths.log_weight, log_z, batches, batch_size)
            backward = premise = None
            if sampler.has_reverse_weights and reference is not None:
                states, premise = reference.backward
                backward = sampler.reverse_log_weight(states.to(samples.x), backwards)
                metrics |= upper_metrics(backward, log_z, metrics["elbo"], premise)
            proven = certificate(paths.log_weight, backward, premise=premise)
            metrics |= certificate_metrics(proven, log_z)
    order = [name for name in METRIC_ORDER if name in metrics]
    return Report(
        target=target_name or type(energy).__name__,
        agent=agent_name,
        seed=training_seed,
        n_samples=n,
        train_seconds=train_seconds,
        env_steps=env_steps,
        energy_evaluations=energy_evaluations,
        metrics={name: metrics[name] for name in order},
        details=_details(samples, paths, energy, seed, resample, temperature)
        | {"certificate": None if proven is None else proven.as_dict()},
    )


@dataclass(kw_only=True)
class _Set:
    x: Tensor
    energies: Tensor

    def rows(self, index: Tensor) -> _Set:
        return _Set(x=self.x[index], energies=self.energies[index])


@dataclass(kw_only=True)
class _Reference:
    """Pairs of equally large sets. The first is compared with the samples, all give the ideal."""

    pairs: list[tuple[_Set, _Set]]
    kind: Literal["exact", "shipped", "shipped, validation"]

    @property
    def truth(self) -> _Set:
        """What samples are compared with."""
        return self.pairs[0][0]

    @property
    def exact(self) -> bool:
        """Whether these are exact samples rather than shipped ones."""
        return self.kind == "exact"

    @property
    def backward(self) -> tuple[Tensor, Premise]:
        """States that paths are drawn backwards from: the truth, or both halves of the shipped."""
        if self.exact:
            return self.truth.x, "exact samples"
        return torch.cat([half.x for half in self.pairs[0]]), "reference samples (MCMC)"


def _reference(
    energy: Energy,
    n: int,
    split: Split,
    first: torch.Generator,
    second: torch.Generator,
    further: torch.Generator,
    dtype: torch.dtype,
) -> _Reference | None:
    """Exact samples, or random halves of the shipped ones, or None where there are neither.

    They are as precise as `dtype`, that of the samples, at least.
    """

    def exact(generator: torch.Generator) -> _Set:
        x = energy.sample(n, generator)
        x = x.to(torch.promote_types(x.dtype, dtype))
        return _Set(x=x, energies=_energies(energy, x))

    if energy.can_sample:
        pairs = [(exact(first), exact(second))]
        pairs += [(exact(further), exact(further)) for _ in range(IDEAL_PAIRS - 1)]
        return _Reference(pairs=pairs, kind="exact")
    try:
        x = energy.reference(split).to(first.device)
    except NotImplementedError:
        return None
    x = x.to(torch.promote_types(x.dtype, dtype))
    shipped = _Set(x=x, energies=_energies(energy, x))
    half = min(n, len(x) // 2)
    pairs = []
    for k in range(IDEAL_PAIRS):
        source = further if k else first
        order = torch.randperm(len(x), generator=source, device=source.device)
        pairs.append((shipped.rows(order[:half]), shipped.rows(order[half : 2 * half])))
    kind: Literal["shipped", "shipped, validation"]
    kind = "shipped" if split == "test" else "shipped, validation"
    return _Reference(pairs=pairs, kind=kind)


def _sample_metrics(
    x: Tensor,
    energy: Energy,
    reference: _Reference,
    protocol: ParticleProtocol,
    repeats: torch.Generator,
) -> dict[str, Metric]:
    """Metrics that compare samples with the reference, at equal counts."""
    truth, second = reference.pairs[0]
    count = len(truth.x)
    some = distances.evenly_spaced_rows(x, count)
    evaluated = _Set(x=some, energies=_energies(energy, some))

    def metric(compare: Callable[[_Set, _Set], Tensor], note: str, **details: Any) -> Metric:
        ideals = [float(compare(b, a)) for a, b in reference.pairs]
        details |= {"reference": reference.kind, "reference_n": count, **_ideal_std(ideals)}
        value = float(compare(evaluated, truth))
        return Metric(value=value, ideal=fmean(ideals), n=count, note=note, details=details)

    def tvd(a: _Set, b: _Set) -> Tensor:
        return distances.total_variation(a.energies, b.energies, bins=BINS)

    metrics = {"tvd_energy": metric(tvd, f"{BINS} bins", bins=BINS)}
    symmetry = energy.symmetry
    if symmetry is not None:

        def tvd_distance(a: _Set, b: _Set) -> Tensor:
            first, other = (pair_distances(z.x, symmetry).flatten() for z in (a, b))
            return distances.total_variation(first, other, bins=BINS)

        metrics["tvd_distance"] = metric(tvd_distance, f"{BINS} bins", bins=BINS)
        mixed = transformed(second.x, symmetry, repeats)
        return metrics | particle_metrics(
            (x, evaluated.energies if some is x else _energies(energy, x)),
            (truth.x, truth.energies),
            (mixed, second.energies),
            symmetry,
            protocol,
            repeats,
            reference=reference.kind,
        )
    metrics["std_error"] = metric(
        lambda a, b: distances.std_error(a.x, b.x), f"mean over {x.shape[1]} coordinates"
    )
    metrics["sinkhorn"] = _sinkhorn_metric(evaluated.x, reference)
    return metrics


def _sinkhorn_metric(x: Tensor, reference: _Reference) -> Metric:
    """The ideal is of all three pairs of three sets: each set's own cost is needed once."""
    (truth, second), (third, _), *_ = reference.pairs
    few = min(len(truth.x), SINKHORN_SAMPLES)
    reg = distances.sinkhorn_regularisation(truth.x, few)
    exact = [distances.SinkhornSet(each.x, few, reg) for each in (truth, second, third)]
    ideals = [float(b.divergence(a)) for a, b in combinations(exact, 2)]
    return Metric(
        value=float(distances.SinkhornSet(x, few, reg).divergence(exact[0])),
        ideal=fmean(ideals),
        n=few,
        note=f"squared distances, debiased, reg {reg:.3g}: not the scale of published costs",
        details={
            "reference": reference.kind,
            "reference_n": few,
            "reg": reg,
            **_ideal_std(ideals),
        },
    )


def _ideal_std(ideals: list[float]) -> dict[str, Any]:
    """The standard deviation of what perfect samplers score, and of how many."""
    spread = stdev(ideals) if all(map(math.isfinite, ideals)) else None
    return {"ideal_std": spread, "ideal_pairs": len(ideals)}


def _energies(energy: Energy, x: Tensor) -> Tensor:
    return torch.cat([energy(part) for part in x.split(CHUNK)])


def _mode_metric(x: Tensor, energy: Energy, reference: _Reference | None) -> Metric:
    assert energy.mode_probabilities is not None
    probabilities = energy.mode_probabilities

    def error(x: Tensor) -> float:
        indicators = torch.cat([energy.mode_indicators(part) for part in x.split(CHUNK)])
        return float(distances.mode_weight_error(indicators, probabilities))

    details: dict[str, Any] = {"modes": len(probabilities)}
    ideal = None
    if reference is not None and reference.exact:
        ideals = [error(each.x) for pair in reference.pairs for each in pair]
        ideal = fmean(ideals)
        details |= _ideal_std(ideals)
    note = f"largest of {len(probabilities)}"
    return Metric(value=error(x), ideal=ideal, n=len(x), note=note, details=details)


def _details(
    samples: Samples, paths: Samples, energy: Energy, seed: int, resample: bool, temperature: float
) -> dict[str, Any]:
    used = samples.energy_evaluations
    if paths is not samples:
        used += paths.energy_evaluations
    return {
        "evaluation_seed": seed,
        "resample": resample,
        "temperature": temperature,
        "sampling_energy_evaluations": used,
        "device": str(samples.x.device),
        "dtype": str(samples.x.dtype).removeprefix("torch."),
        "non_finite_samples": int((~torch.isfinite(samples.x)).any(dim=-1).sum()),
        "dead_paths": None if paths.log_weight is None else dead_paths(paths.log_weight),
        "log_z": energy.log_z if temperature == 1.0 else None,
    }


def _generators(seed: int, device: torch.device) -> list[torch.Generator]:
    """Seven independent streams of one seed."""
    seeds = np.random.SeedSequence(seed).generate_state(7, np.uint64)
    return [torch.Generator(device).manual_seed(int(state >> np.uint64(1))) for state in seeds]
