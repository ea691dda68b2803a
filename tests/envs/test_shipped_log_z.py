"""Shipped log Z and samples of targets without closed forms agree with each other and the energy.

Log Z again, from the shipped test samples and a Gaussian, by bridge sampling (Meng and Wong, 1996).
"""

import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from vgs_rl import find
from vgs_rl.envs import CoxProcess, Phi4, ReferencedEnergy
from vgs_rl.envs.targets.posteriors import cox

TARGETS = ("BreastCancer", "Cox10", "Cox40", "Phi4L8", "Phi4L8Broken", "Phi4L16", "Phi4L16Broken")
LARGEST_ERROR = {"Cox40": 0.1}


class Fit:
    """A Gaussian near the target, or an equal mixture of it and its mirror image."""

    def __init__(self, mean: torch.Tensor, covariance: torch.Tensor, mirrored: bool) -> None:
        self.normal, self.mirrored = MultivariateNormal(mean, covariance), mirrored

    def sample(self, n: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(n, len(self.normal.loc), generator=generator, dtype=torch.float64)
        x = self.normal.loc + z @ self.normal.scale_tril.T
        x[::2] *= -1 if self.mirrored else 1
        return x

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        if not self.mirrored:
            return self.normal.log_prob(x)
        both = [self.normal.log_prob(sign * x) for sign in (1, -1)]
        return torch.logaddexp(*both) - math.log(2)


def fit(energy: ReferencedEnergy) -> Fit:
    if isinstance(energy, CoxProcess):
        return variational(energy)
    x = energy.reference("validation").double()
    if not isinstance(energy, Phi4):
        return Fit(x.mean(0), x.T.cov(), False)
    x = x * x.mean(1, keepdim=True).sign()
    mean = x.mean() if energy.kappa > 0.25 else torch.zeros(())
    shape = (energy.side, energy.side)
    power = torch.fft.fft2((x - mean).unflatten(1, shape)).abs().square().mean(0) / energy.dim
    power = (power + power.T) / 2
    row = torch.fft.ifft2(power).real  # covariance with the first site
    sites = [row.roll((i, j), (0, 1)).flatten() for i in range(shape[0]) for j in range(shape[1])]
    return Fit(mean.expand(energy.dim).double(), torch.stack(sites), True)


def variational(energy: CoxProcess) -> Fit:
    """The Gaussian N(m, C) of least KL divergence to the target, by Newton's method.

    Under it exp(x) has mean exp(m + diag(C)/2), so C⁻¹ = K⁻¹ + diag(exp(m + diag(C)/2)/D).
    """
    precision = torch.linalg.inv(cox.covariance(energy.side))
    mean = torch.full((energy.dim,), cox.MEAN, dtype=torch.float64)
    covariance = cox.covariance(energy.side)
    for _ in range(6):
        intensity = (mean + 0.5 * covariance.diagonal()).exp() / energy.dim
        covariance = torch.linalg.inv(precision + torch.diag(intensity))
        mean = mean - covariance @ (precision @ (mean - cox.MEAN) + intensity - energy.counts)
    return Fit(mean, 0.5 * (covariance + covariance.T), False)


def bridge(p_at_x: torch.Tensor, p_at_y: torch.Tensor) -> float:
    """Log Z of log ratios of target to Gaussian, at samples of the target and of the Gaussian."""
    n, m = len(p_at_x), len(p_at_y)
    log_share = math.log(n / m)
    log_z = float(p_at_y.max())
    for _ in range(500):
        up = torch.nn.functional.logsigmoid(p_at_y - log_z + log_share)
        down = torch.nn.functional.logsigmoid(log_z - log_share - p_at_x)
        step = float(torch.logsumexp(up, 0) - torch.logsumexp(down, 0))
        log_z += step
        if abs(step) < 1e-9:
            break
    return log_z


@pytest.mark.parametrize("name", TARGETS)
def test_bridge_sampling_finds_the_shipped_log_z(name: str) -> None:
    energy = find(name).make_energy()
    assert isinstance(energy, ReferencedEnergy) and energy.log_z is not None
    gaussian, x = fit(energy), energy.reference().double()
    y = gaussian.sample(4 * len(x))
    ratios = [-energy.energy(part) - gaussian.log_prob(part) for part in (x, y)]
    estimate = bridge(*ratios)
    parts = zip(ratios[0].chunk(10), ratios[1].chunk(10), strict=True)
    error = float(np.std([bridge(*part) for part in parts])) / math.sqrt(10)
    shipped = energy.reference_notes()["diagnostics"]["log_z"]
    assert shipped["mean"] == energy.log_z
    assert shipped["standard_error"] < LARGEST_ERROR.get(name, 0.05)
    error = math.hypot(error, shipped["standard_error"])
    assert error < 2 * LARGEST_ERROR.get(name, 0.05)
    assert abs(estimate - energy.log_z) < 4 * error


@pytest.mark.parametrize("name", TARGETS)
def test_independent_runs_agree(name: str) -> None:
    energy = find(name).make_energy()
    notes = energy.reference_notes()
    assert notes["provenance"]["command"].startswith(f"vgs-rl make-reference --target {name} ")
    found = notes["diagnostics"]
    assert all(each["split_r_hat"] < 1.02 for each in found["observables"].values())
    virial = found["observables"]["virial"]
    assert abs(virial["mean"] - energy.dim) < 5 * max(
        virial["standard_error"], virial["std"] / math.sqrt(2_000)
    )
    assert energy.reference("validation").dtype == torch.float32
    assert not torch.equal(energy.reference("validation")[:9], energy.reference("test")[:9])
