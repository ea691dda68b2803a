"""One evaluation for all samplers: every figure beside its floor (DESIGN: Evaluation).

A figure's floor is what a perfect sampler would score: the same figure for a second, equally
large set of exact samples against the same reference, or the value at which a bound is tight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vgs_rl import metrics
from vgs_rl.energy import Energy, Split
from vgs_rl.particle_figures import ParticleProtocol, particle_figures
from vgs_rl.particles import pair_distances, transformed
from vgs_rl.report import Figure, Report, format_comparison
from vgs_rl.sampler import Sampler, Samples
from vgs_rl.weights import (
    cleaned,
    dead_paths,
    effective_share,
    largest_weight,
    live_elbo,
    log_mean_weight,
    log_z_standard_error,
    pareto_k,
    reliable_k,
)

__all__ = ["Figure", "ParticleProtocol", "Report", "evaluate", "format_comparison"]

BINS = 200
SINKHORN_SAMPLES = 2_000
CHUNK = 4_096  # states whose energies are computed at once
FIGURE_ORDER = (
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
    """Judges a sampler by every figure that it and its target admit; the others are left out.

    - Against exact samples (``energy.sample``), or half of the shipped ``energy.reference()``
      while its other half gives the floor: ``tvd_energy``; for particles ``tvd_distance``, the
      same of all pair distances, and :func:`vgs_rl.particle_figures.particle_figures`; else
      ``std_error`` and ``sinkhorn``, which relabelling and rotation would drown.
    - Against known masses: ``mode_weight_error``. Against a known log Z: ``log_z_error``,
      |log mean w - log Z|; where it is not known, ``log_z``, the estimate itself.
    - From the log-weights of independent paths: ``elbo``; ``ess``, the effective sample size of
      all n paths; the share of the ``largest_weight`` and the tail index ``k_hat``, which say
      whether ess and log Z can be believed; ``path_ess``, the median ESS over batches. Of particles
      that have been resampled on the way (SMC) only log Z is left.
    - ``eubo`` on paths drawn backwards from exact samples, which have to exist, and its ``gap`` to
      the ELBO, which bounds how wrong the sampler is without knowing log Z.

    A path whose log-weight is NaN or -inf has weight 0. The ELBO is then -inf, as it is in truth;
    ``elbo_live`` is that of the sampler which throws such paths away, and the details count them.

    At the sampler's temperature, if it is not 1, neither exact samples nor log Z nor mode weights
    apply, whatever the sampler: what is left are figures of log-weights, at that temperature.

    The same arguments give the same numbers. The sampler, the reference, the floor and the
    backward paths have generators of their own, derived from `seed`, on the sampler's device. No
    counter of training moves.

    Args:
        sampler: what to judge.
        energy: its target.
        n: samples to draw.
        seed: seed of the evaluation.
        target_name: name for the report; the energy's class by default.
        agent_name: name for the report.
        resample: judge importance-resampled samples. The figures of log-weights then come from n
            further paths without resampling.
        batches: batches of the path-ESS, at most as many as n allows.
        batch_size: paths in each.
        split: which shipped samples: "validation" for choices, "test" for what is reported.
        protocol: repeats and sample counts of particle figures; all of it by default.
        training_seed: for the report.
        train_seconds: for the report.
        env_steps: for the report; those of training.
        energy_evaluations: for the report; those of training.
        on_samples: is called with the samples that are judged, for pictures of them.

    Raises:
        ValueError: if n is below 2, `resample` is asked of a sampler without log-weights, or a
            log-weight is +inf.
    """
    if n < 2:
        raise ValueError(f"n must be at least 2, got {n}")
    draw, paths_again, exact, second, backwards, repeats = _generators(seed, sampler.device)
    temperature = sampler.temperature
    samples = sampler.sample(n, draw, resample=resample)
    if on_samples is not None:
        on_samples(samples)
    paths = sampler.sample(n, paths_again) if resample else samples
    figures: dict[str, Figure] = {}
    reference = _reference(energy, n, split, exact, second) if temperature == 1.0 else None
    if reference is not None:
        protocol = protocol or ParticleProtocol()
        figures |= _sample_figures(samples.x, energy, reference, protocol, repeats)
    if temperature == 1.0 and energy.mode_probabilities is not None:
        figures["mode_weight_error"] = _mode_figure(samples.x, energy, reference)
    if paths.log_weight is not None:
        log_z = energy.log_z if temperature == 1.0 else None
        figures |= _log_z_figure(paths.log_weight, log_z, paths.independent)
        if paths.independent:
            figures |= _path_figures(paths.log_weight, log_z, batches, batch_size)
            if sampler.has_reverse_weights and reference is not None and reference.exact:
                log_weight = sampler.reverse_log_weight(reference.x.to(samples.x), backwards)
                figures |= _upper_figures(log_weight, log_z, figures["elbo"])
    order = [name for name in FIGURE_ORDER if name in figures]
    return Report(
        target=target_name or type(energy).__name__,
        agent=agent_name,
        seed=training_seed,
        n_samples=n,
        train_seconds=train_seconds,
        env_steps=env_steps,
        energy_evaluations=energy_evaluations,
        figures={name: figures[name] for name in order},
        details=_details(samples, paths, energy, seed, resample, temperature),
    )


@dataclass(kw_only=True)
class _Reference:
    """Two equally large sets: what samples are compared with, and what gives the floor."""

    x: Tensor
    second: Tensor
    kind: Literal["exact", "shipped", "shipped, validation"]

    @property
    def exact(self) -> bool:
        """Whether these are exact samples rather than shipped ones."""
        return self.kind == "exact"


def _reference(
    energy: Energy, n: int, split: Split, first: torch.Generator, second: torch.Generator
) -> _Reference | None:
    """Exact samples, or two random halves of the shipped ones, or None where there are neither."""
    if energy.can_sample:
        return _Reference(x=energy.sample(n, first), second=energy.sample(n, second), kind="exact")
    try:
        shipped = energy.reference(split)
    except NotImplementedError:
        return None
    order = torch.randperm(len(shipped), generator=first, device=first.device)
    half = min(n, len(shipped) // 2)
    shipped = shipped.to(first.device)[order]
    kind: Literal["shipped", "shipped, validation"]
    kind = "shipped" if split == "test" else "shipped, validation"
    return _Reference(x=shipped[:half], second=shipped[half : 2 * half], kind=kind)


@dataclass(kw_only=True)
class _Set:
    x: Tensor
    energies: Tensor


def _sample_figures(
    x: Tensor,
    energy: Energy,
    reference: _Reference,
    protocol: ParticleProtocol,
    repeats: torch.Generator,
) -> dict[str, Figure]:
    """Figures that compare samples with the reference, at equal counts."""
    count = len(reference.x)
    states = (metrics.spread_rows(x, count), reference.x.to(x), reference.second.to(x))
    judged, truth, second = (_Set(x=z, energies=_energies(energy, z)) for z in states)

    def figure(
        compare: Callable[[_Set, _Set], Tensor], n: int = count, note: str = "", **details: Any
    ) -> Figure:
        details = {"reference": reference.kind, "reference_n": n, **details}
        value, floor = float(compare(judged, truth)), float(compare(second, truth))
        return Figure(value=value, floor=floor, n=n, note=note, details=details)

    def tvd(a: _Set, b: _Set) -> Tensor:
        return metrics.total_variation(a.energies, b.energies, bins=BINS)

    figures = {"tvd_energy": figure(tvd, note=f"{BINS} bins", bins=BINS)}
    symmetry = energy.symmetry
    if symmetry is not None:

        def tvd_distance(a: _Set, b: _Set) -> Tensor:
            first, other = (pair_distances(z.x, symmetry).flatten() for z in (a, b))
            return metrics.total_variation(first, other, bins=BINS)

        figures["tvd_distance"] = figure(tvd_distance, note=f"{BINS} bins", bins=BINS)
        mixed = transformed(second.x, symmetry, repeats)
        return figures | particle_figures(
            (x, _energies(energy, x)),
            (truth.x, truth.energies),
            (mixed, second.energies),
            symmetry,
            protocol,
            repeats,
            reference=reference.kind,
        )
    few = min(count, SINKHORN_SAMPLES)
    reg = metrics.sinkhorn_regularisation(truth.x, few)

    def sinkhorn(a: _Set, b: _Set) -> Tensor:
        return metrics.sinkhorn(a.x, b.x, n=few, reg=reg)

    figures["std_error"] = figure(
        lambda a, b: metrics.std_error(a.x, b.x), note=f"mean over {x.shape[1]} coordinates"
    )
    figures["sinkhorn"] = figure(sinkhorn, few, f"debiased, reg {reg:.3g}", reg=reg)
    return figures


def _energies(energy: Energy, x: Tensor) -> Tensor:
    return torch.cat([energy(part) for part in x.split(CHUNK)])


def _mode_figure(x: Tensor, energy: Energy, reference: _Reference | None) -> Figure:
    assert energy.mode_probabilities is not None
    probabilities = energy.mode_probabilities

    def error(x: Tensor) -> float:
        indicators = torch.cat([energy.mode_indicators(part) for part in x.split(CHUNK)])
        return float(metrics.mode_weight_error(indicators, probabilities))

    floor = error(reference.second.to(x)) if reference is not None and reference.exact else None
    modes = len(probabilities)
    note = f"largest of {modes}"
    return Figure(value=error(x), floor=floor, n=len(x), note=note, details={"modes": modes})


def _log_z_figure(log_weight: Tensor, log_z: float | None, independent: bool) -> dict[str, Figure]:
    """The estimate of log Z, or its error where log Z is known, with a standard error if any.

    Raises:
        ValueError: if a log-weight is +inf.
    """
    n = len(log_weight)
    if infinite := int(torch.isposinf(log_weight).sum()):
        raise ValueError(
            f"log_weight must not be +inf, got {infinite:,} of {n:,}: the energy is -inf there"
        )
    log_weight = log_weight.double()
    estimate = float(log_mean_weight(log_weight))
    error = None
    if not independent:
        doubt = "no standard error: the particles interact"
    elif not math.isfinite(estimate):
        doubt = "every path has weight 0"
    else:
        error = log_z_standard_error(log_weight)
        doubt = "no standard error: too few paths carry the weight, see k_hat"
    details = {"log_z_estimate": estimate, "standard_error": error}
    if log_z is None:
        note = "log mean weight" if error is not None else f"log mean weight, {doubt}"
        return {"log_z": Figure(value=estimate, floor=None, n=n, note=note, details=details)}
    note = f"log Z = {log_z:.4f}" + ("" if error is not None else f", {doubt}")
    details["log_z"] = log_z
    value = abs(estimate - log_z)
    return {"log_z_error": Figure(value=value, floor=0.0, n=n, note=note, details=details)}


def _path_figures(
    log_weight: Tensor, log_z: float | None, batches: int, batch_size: int
) -> dict[str, Figure]:
    """Figures of the log-weights of independent paths."""
    log_weight = cleaned(log_weight.double())
    n, dead = len(log_weight), dead_paths(log_weight)
    size = min(batch_size, n)
    used = min(batches, n // size)
    ess = float(effective_share(log_weight))
    figures = {
        "elbo": _bound(log_weight, log_z, "at most log Z"),
        "ess": Figure(value=ess, floor=1.0, n=n, note="of all paths: (Σw)² / (n Σw²)"),
        "path_ess": Figure(
            value=float(metrics.path_ess(log_weight, batches, batch_size)),
            floor=1.0,
            n=used * size,
            note=f"median of {used} x {size:,}",
            details={"batches": used, "batch_size": size},
        ),
    }
    figures["elbo"].details["log_z_estimate"] = float(log_mean_weight(log_weight))
    if dead:
        figures["elbo"].note += f"; {dead:,} paths have weight 0"
        live = log_weight[torch.isfinite(log_weight)]
        figures["elbo_live"] = Figure(
            value=float(live_elbo(log_weight)),
            floor=log_z,
            n=len(live),
            note=f"of the sampler that throws the {dead:,} paths of weight 0 away",
            details={"dead_paths": dead, "standard_error": _standard_error(live)},
        )
    if dead == n:
        return figures
    k, most = pareto_k(log_weight), reliable_k(n)
    if k <= most:
        verdict = "weights can be believed"
    else:
        verdict = "too few paths" if math.isnan(k) else "ess and log Z cannot be believed"
        figures["ess"].note += ", not to be believed: see k_hat"
    figures["largest_weight"] = Figure(
        value=float(largest_weight(log_weight)), floor=1 / n, n=n, note="its share in the sum"
    )
    figures["k_hat"] = Figure(
        value=k,
        floor=None,
        n=n,
        note=f"{verdict} (limit {most:.2f}); modes that no path visits are not seen",
        details={"limit": most},
    )
    return figures


def _upper_figures(log_weight: Tensor, log_z: float | None, elbo: Figure) -> dict[str, Figure]:
    """The EUBO from paths drawn backwards, and its gap to the ELBO.

    +inf is a true value here: exact states that the sampler cannot reach. An energy that is not
    finite at its own exact samples leaves the EUBO unknown.
    """
    log_weight = log_weight.double()
    eubo = _bound(log_weight, log_z, "at least log Z")
    if unknown := int((log_weight.isnan() | torch.isneginf(log_weight)).sum()):
        eubo.value, eubo.details["standard_error"] = math.nan, None
        eubo.note = f"unknown: {unknown:,} exact samples have no finite energy or drift"
    elif unreached := int(torch.isposinf(log_weight).sum()):
        eubo.note += f"; {unreached:,} exact samples cannot be reached"
    errors = (elbo.details["standard_error"], eubo.details["standard_error"])
    error = None if None in errors else math.hypot(*errors)
    gap = Figure(
        value=eubo.value - elbo.value,
        floor=0.0,
        n=min(eubo.n, elbo.n),
        note="EUBO - ELBO [nats]",
        details={"standard_error": error},
    )
    return {"eubo": eubo, "gap": gap}


def _bound(log_weight: Tensor, log_z: float | None, note: str) -> Figure:
    """A mean log-weight: a bound of log Z, tight where it equals it."""
    details = {"standard_error": _standard_error(log_weight)}
    value = float(log_weight.mean())
    return Figure(value=value, floor=log_z, n=len(log_weight), note=note, details=details)


def _standard_error(values: Tensor) -> float | None:
    """That of the mean of independent numbers, or None where it is unknown."""
    if len(values) < 2 or not bool(torch.isfinite(values).all()):
        return None
    return float(values.double().std()) / math.sqrt(len(values))


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
    """Six independent streams of one seed."""
    seeds = np.random.SeedSequence(seed).generate_state(6, np.uint64)
    return [torch.Generator(device).manual_seed(int(state >> np.uint64(1))) for state in seeds]
