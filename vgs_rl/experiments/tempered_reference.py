"""Reference samples and log Z of an energy on R^D by independent runs of tempered SMC."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vgs_rl.energy import Energy
from vgs_rl.envs import Phi4, ReferencedEnergy
from vgs_rl.evaluation.diagnostics import split_r_hat
from vgs_rl.experiments.bridge import GaussianFit, bridge_log_z
from vgs_rl.exploration import MappedEnergy
from vgs_rl.exploration.coordinates.affine import AffineMap
from vgs_rl.exploration.reference import GaussianReference
from vgs_rl.exploration.tempered import Island, tempered_smc
from vgs_rl.files.unfinished import Work
from vgs_rl.samplers.mcmc.kernels import FiniteEnergy
from vgs_rl.weights import log_mean_weight

METHOD = (
    "Independent runs of adaptive tempered SMC (vgs_rl.exploration.tempered), in float64. They "
    "start from a Gaussian: N(0, std² I), or the target's Laplace approximation, std times as "
    "wide. log Z is the mean over runs of bridge sampling (vgs_rl.experiments.bridge) between a "
    "run's particles and a Gaussian with the other runs' mean and covariance, for fields under the "
    "lattice's symmetries; where these are fewer than 20 D particles, it is log_z_smc, SMC's own: "
    "the log of the runs' mean Z. Errors are standard deviations between runs over the root of "
    "their number. Validation and test set come from disjoint runs; rows are particles without "
    "replacement. Of a field each row has a random sign, which the density is invariant to."
)


@dataclass(kw_only=True, frozen=True)
class TemperedRecipe:
    """Settings of the runs.

    Args:
        runs: number of them.
        validation_runs: the first so many give the validation set, the others the test set.
        particles: of a run.
        validation: rows of the validation set.
        test: rows of the test set.
        leapfrog_steps: of a trajectory.
        most_moves: trajectories at a temperature, at most.
        forgotten: correlation of levels, before and after, at which moves are enough.
        laplace: whether runs start from the Laplace approximation, else from N(0, I).
        std: how much wider they start.
    """

    runs: int = 6
    validation_runs: int = 2
    particles: int = 1024
    validation: int = 1000
    test: int = 2000
    leapfrog_steps: int = 5
    most_moves: int = 30
    forgotten: float = 0.05
    laplace: bool = False
    std: float = 1.2


@dataclass(kw_only=True, frozen=True)
class Reference:
    """What the runs found.

    Attributes:
        validation: rows of the validation set, shape (n, D), float64.
        test: rows of the test set.
        diagnostics: log Z with its error, and whether the runs agree.
    """

    validation: Tensor
    test: Tensor
    diagnostics: dict[str, Any]


def tempered_reference(
    energy: ReferencedEnergy, recipe: TemperedRecipe, generator: torch.Generator, work: Work
) -> Reference:
    """Runs the recipe.

    Args:
        energy: the target, on R^D.
        recipe: the settings.
        generator: source of randomness.
        work: keeps runs that are done.
    """
    start = time.perf_counter()
    zeros = torch.zeros(energy.dim, dtype=torch.float64)
    near = laplace_approximation(energy) if recipe.laplace else AffineMap(zeros, zeros + 1)
    coordinates = AffineMap(near.shift, recipe.std * near.factor)
    finite = FiniteEnergy(MappedEnergy(energy, coordinates, dtype=torch.float64))
    islands = [Island(**each["island"]) for each in work.done]
    if work.done:
        finite.evaluations = work.done[-1]["energy_evaluations"]
        generator.set_state(work.done[-1]["generator"])
    for run in range(len(islands), recipe.runs):
        island = tempered_smc(
            finite,
            GaussianReference(zeros, zeros + 1),
            recipe.particles,
            generator,
            leapfrog_steps=recipe.leapfrog_steps,
            most_moves=recipe.most_moves,
            forgotten=recipe.forgotten,
        )
        islands.append(island)
        state = {"island": vars(island), "energy_evaluations": finite.evaluations}
        work.add(state | {"generator": generator.get_state()})
        seconds = time.perf_counter() - start
        print(f"run {run + 1}: log Z {island.log_z:.3f} after {seconds:.0f} s", flush=True)
    x = torch.stack([coordinates.to_x(each.x) for each in islands])  # (runs, particles, D)
    bridged = _bridged(energy, x, generator)
    if isinstance(energy, Phi4):
        signs = torch.randint(2, x.shape[:2], generator=generator).unsqueeze(-1)
        x = x * (2 * signs - 1)
    first = recipe.validation_runs
    return Reference(
        validation=_rows(x[:first], recipe.validation, generator),
        test=_rows(x[first:], recipe.test, generator),
        diagnostics={
            **_diagnostics(energy, x, islands),
            **({} if bridged is None else {"log_z": _mean_of_runs(bridged)}),
            "energy_evaluations": finite.evaluations,
        },
    )


def _bridged(energy: Energy, x: Tensor, generator: torch.Generator) -> Tensor | None:
    """Log Z of each run (R, P, D) by bridge sampling; None where a Gaussian cannot be fitted."""
    estimates = []
    for run in range(len(x)):
        others = torch.cat([*x[:run], *x[run + 1 :]])
        if isinstance(energy, Phi4):
            fit = GaussianFit.of_field(energy, others)
        elif len(others) >= 20 * energy.dim:
            fit = GaussianFit.of_samples(others)
        else:
            return None
        estimates.append(bridge_log_z(energy, fit, x[run], generator))
    return torch.tensor(estimates, dtype=torch.float64)


def laplace_approximation(energy: Energy) -> AffineMap:
    """The map from N(0, I) to the Gaussian at the mode with the mode's inverse Hessian.

    Newton's method from 0, halving steps that climb: for an energy that is convex, as those are
    that it is used for.
    """
    x = torch.zeros(energy.dim, dtype=torch.float64)

    def value(state: Tensor) -> Tensor:
        return energy.energy(state.unsqueeze(0))[0]

    for _ in range(100):
        _, gradient = energy.with_gradient(x.unsqueeze(0))
        factor = torch.linalg.cholesky(_hessian(value, x))
        step = torch.cholesky_solve(gradient.T, factor)[:, 0]
        while value(x - step) > value(x) + 1e-9:
            step = 0.5 * step
        x = x - step
        if float(step.norm()) < 1e-8 * (1 + float(x.norm())):
            break
    covariance = torch.cholesky_inverse(factor)
    return AffineMap(x, torch.linalg.cholesky(covariance))


def _hessian(value: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        hessian: Tensor = torch.autograd.functional.hessian(value, x, vectorize=True)
    return 0.5 * (hessian + hessian.T)


def _rows(x: Tensor, n: int, generator: torch.Generator) -> Tensor:
    rows = x.flatten(0, 1)
    return rows[torch.randperm(len(rows), generator=generator)[:n]]


def _diagnostics(energy: Energy, x: Tensor, islands: list[Island]) -> dict[str, Any]:
    parts = energy.with_gradient(x.flatten(0, 1))
    values, gradient = (part.unflatten(0, x.shape[:2]) for part in parts)
    observables = {
        "energy": values,
        "mean": x.mean(-1),
        "square": x.square().mean(-1),
        "virial": (x * gradient).sum(-1),
    }
    estimates = torch.tensor([island.log_z for island in islands], dtype=torch.float64)
    of_smc = {**_mean_of_runs(estimates), "mean": float(log_mean_weight(estimates))}
    return {
        "log_z": of_smc,
        "log_z_smc": of_smc,
        "virial_expected": energy.dim,
        "observables": {name: _summary(each) for name, each in observables.items()},
        "temperatures": [island.levels for island in islands],
        "acceptance_rates": [island.acceptance for island in islands],
        "memory": [island.memory for island in islands],
        "ancestors": [island.ancestors for island in islands],
    }


def _mean_of_runs(estimates: Tensor) -> dict[str, Any]:
    error = float(estimates.std()) / math.sqrt(len(estimates))
    return {
        "mean": float(estimates.mean()),
        "standard_error": error,
        "of_runs": estimates.tolist(),
    }


def _summary(draws: Tensor) -> dict[str, float]:
    """Of one observable, shape (runs, particles); the error is that between runs."""
    means = draws.mean(1)
    return {
        "mean": float(means.mean()),
        "std": float(draws.std()),
        "standard_error": float(means.std()) / math.sqrt(len(means)),
        "split_r_hat": split_r_hat(draws),
    }
