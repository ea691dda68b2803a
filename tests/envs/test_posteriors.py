"""Posteriors of statistical models: the model by independent formulas, log Z by other integrals."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from torch.distributions import HalfCauchy, Normal

from vgs_rl.envs import BrownianMotion, EightSchools, EightSchoolsNonCentred
from vgs_rl.envs.targets.posteriors import brownian, eight_schools


def states(n: int, dim: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return scale * torch.randn(n, dim, generator=generator, dtype=torch.float64)


def eight_schools_log_density(mu, log_tau, theta):
    """Of y, theta, mu and log tau."""
    tau = log_tau.exp()
    effects = torch.tensor(eight_schools.EFFECTS).double()
    errors = torch.tensor(eight_schools.ERRORS).double()
    scale = torch.tensor(5.0).double()
    return (
        Normal(theta, errors).log_prob(effects).sum(-1)
        + Normal(mu.unsqueeze(-1), tau.unsqueeze(-1)).log_prob(theta).sum(-1)
        + Normal(0.0, scale).log_prob(mu)
        + HalfCauchy(scale).log_prob(tau)
        + log_tau
    )


def test_eight_schools_is_the_model_in_both_parametrisations() -> None:
    x = states(40, 10)
    mu, log_tau = x[:, 0], x[:, 1]
    expected = -eight_schools_log_density(mu, log_tau, x[:, 2:])
    torch.testing.assert_close(EightSchools().energy(x), expected)
    theta = mu.unsqueeze(-1) + log_tau.exp().unsqueeze(-1) * x[:, 2:]
    expected = -eight_schools_log_density(mu, log_tau, theta) - 8 * log_tau
    torch.testing.assert_close(EightSchoolsNonCentred().energy(x), expected)


def test_log_z_of_eight_schools_is_the_integral_over_tau_of_a_multivariate_normal() -> None:
    effects, errors = np.array(eight_schools.EFFECTS), np.array(eight_schools.ERRORS)

    def integrand(tau: float) -> float:
        covariance = np.diag(errors**2 + tau**2) + 25.0
        p = stats.multivariate_normal(np.zeros(8), covariance).pdf(effects)
        return float(p * stats.halfcauchy(scale=5).pdf(tau))

    z = sum(quad(integrand, a, b, epsabs=0, epsrel=1e-9)[0] for a, b in ((0, 30), (30, np.inf)))
    assert EightSchools().log_z == pytest.approx(math.log(z), abs=1e-6)
    assert EightSchoolsNonCentred().log_z == EightSchools().log_z
    assert EightSchools().log_z == pytest.approx(-31.3113, abs=1e-4)


def test_samples_of_eight_schools_are_one_posterior_in_two_coordinates() -> None:
    draw = [
        energy.sample(50, torch.Generator().manual_seed(0))
        for energy in (EightSchools(), EightSchoolsNonCentred())
    ]
    tau = draw[1][:, 1:2].exp()
    torch.testing.assert_close(draw[0][:, 2:], draw[1][:, :1] + tau * draw[1][:, 2:])


def brownian_log_density(x: torch.Tensor) -> torch.Tensor:
    log_s, log_o, path = x[:, :1], x[:, 1:2], x[:, 2:]
    before = torch.cat([torch.zeros_like(log_s), path[:, :-1]], 1)
    prior = Normal(0.0, torch.tensor(2.0).double()).log_prob(x[:, :2]).sum(-1)
    seen = path[:, list(brownian.SEEN)]
    y = torch.tensor(brownian.OBSERVED).double()
    steps = Normal(before, log_s.exp()).log_prob(path).sum(-1)
    return prior + steps + Normal(seen, log_o.exp()).log_prob(y).sum(-1)


def kalman(s: np.ndarray, o: np.ndarray) -> np.ndarray:
    """Log p(y | s, o) by the Kalman filter."""
    observations = dict(zip(brownian.SEEN, brownian.OBSERVED, strict=True))
    mean, variance, result = np.zeros_like(s), np.zeros_like(s), np.zeros_like(s)
    for t in range(brownian.STEPS):
        variance = variance + s**2
        if t in observations:
            total = variance + o**2
            gap = observations[t] - mean
            result = result - 0.5 * (gap**2 / total + np.log(2 * np.pi * total))
            gain = variance / total
            mean, variance = mean + gain * gap, (1 - gain) * variance
    return result


def test_brownian_motion_is_the_model() -> None:
    x = states(40, 32, 0.5)
    torch.testing.assert_close(BrownianMotion().energy(x), -brownian_log_density(x))


def test_log_z_of_brownian_motion_is_the_integral_of_the_kalman_filter() -> None:
    axis = np.linspace(-14, 10, 401)
    log_s, log_o = np.meshgrid(axis, axis, indexing="ij")
    prior = stats.norm(0, 2).logpdf(log_s) + stats.norm(0, 2).logpdf(log_o)
    log_density = kalman(np.exp(log_s), np.exp(log_o)) + prior
    log_z = np.logaddexp.reduce(log_density.ravel()) + 2 * np.log(axis[1] - axis[0])
    assert BrownianMotion().log_z == pytest.approx(float(log_z), abs=1e-5)


def test_conditionals_of_a_brownian_path_weigh_to_log_z() -> None:
    """Energy = -log p(y, scales) - log p(path | y, scales), at whatever path was drawn."""
    energy = BrownianMotion()
    scales = states(20, 2, 0.3) - 2
    z = states(20, 30)
    x = torch.cat([scales, energy._paths(scales, z)], 1)
    mean = energy._paths(scales, torch.zeros_like(z))
    # log p(path | y, scales) = log N(z; 0, I) - log |det d path / dz|
    columns = torch.stack(
        [energy._paths(scales, torch.eye(30).double()[i].expand(20, 30)) - mean for i in range(30)],
        -1,
    )
    log_path = Normal(0.0, torch.ones(()).double()).log_prob(z).sum(-1)
    log_path = log_path - torch.linalg.slogdet(columns).logabsdet
    marginal = kalman(*scales.exp().numpy().T)
    prior = stats.norm(0, 2).logpdf(scales.numpy()).sum(-1)
    torch.testing.assert_close(-energy.energy(x), torch.from_numpy(marginal + prior) + log_path)
