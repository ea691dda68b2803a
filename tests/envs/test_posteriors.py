"""Posteriors of statistical models: the model by independent formulas, log Z by other integrals."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from torch.distributions import (
    Bernoulli,
    Categorical,
    HalfCauchy,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Poisson,
)

from vgs_rl import find
from vgs_rl.envs import (
    BreastCancer,
    BrownianMotion,
    CoxProcess,
    EightSchools,
    EightSchoolsNonCentred,
    GermanCredit,
    Ionosphere,
    LogisticRegression,
    MixtureMeans,
    Sonar,
    check_energy,
)
from vgs_rl.envs.targets.posteriors import brownian, cox, eight_schools, mixture_means


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


def test_logistic_regression_is_the_model() -> None:
    features = 3 * states(20, 4) + 7
    features[:, 2] = 5.0  # constant
    labels = (states(20, 5)[:, 4] > 0).double()
    energy = LogisticRegression(features, labels, prior_std=1.5)
    z = np.zeros((20, 4))
    z[:, [0, 1, 3]] = stats.zscore(features.numpy()[:, [0, 1, 3]], axis=0)
    w = states(30, 5)
    logits = w[:, :1] + w[:, 1:] @ torch.from_numpy(z).T
    expected = Bernoulli(logits=logits).log_prob(labels).sum(-1)
    expected = expected + Normal(0.0, torch.tensor(1.5).double()).log_prob(w).sum(-1)
    torch.testing.assert_close(energy.energy(w), -expected)
    check_energy(energy)


def test_breast_cancer_has_31_weights_and_balanced_data() -> None:
    energy = BreastCancer()
    assert energy.dim == 31 and energy.rows.shape == (569, 31)
    assert int((energy.rows[:, 0] < 0).sum()) == 357  # label 1, benign
    assert float(energy.rows[:, 1:].square().mean()) == pytest.approx(1.0)


TABLES = {
    GermanCredit: ("1 2.5 -3", " ", 24, ("1", "2"), 1_000, 25),
    Sonar: ("0.02 0.5 0.1", ",", 60, ("M", "R"), 208, 61),
    Ionosphere: ("1 0 -0.5", ",", 34, ("g", "b"), 351, 35),
}


def write_table(path, target, replace=None):
    values, comma, width, labels, lines, _ = TABLES[target]
    rng = np.random.default_rng(0)
    rows = []
    for line in range(lines):
        numbers = rng.choice(values.split(), width)
        rows.append(comma.join([*numbers, labels[line % 2]]))
    if replace is not None:
        rows[replace[0]] = replace[1]
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize("target", TABLES)
def test_a_table_is_read_from_its_file(target, tmp_path) -> None:
    energy = target(write_table(tmp_path / "table", target))
    assert energy.dim == TABLES[target][-1] and len(energy.rows) == TABLES[target][-2]
    assert (energy.rows[::2, 0] == -1).all() and (energy.rows[1::2, 0] == 1).all()
    assert energy.log_z is None
    name = f"vgs_rl.envs:{target.__name__}"
    assert find(name).make_energy(path=tmp_path / "table").dim == energy.dim


@pytest.mark.parametrize("target", TABLES)
def test_a_wrong_table_is_refused_by_its_line(target, tmp_path) -> None:
    lines = TABLES[target][-2]
    with pytest.raises(FileNotFoundError, match=r"path: there is no file .*; get .*archive.ics"):
        target(tmp_path / "missing")
    with pytest.raises(ValueError, match=rf"must have {lines} lines of .*, got line 4: could not"):
        target(write_table(tmp_path / "a", target, (3, "1, x, 1")))
    with pytest.raises(ValueError, match=r"a label, .* or ., got 3 fields on line 5"):
        target(write_table(tmp_path / "b", target, (4, "1 2 3")))
    with pytest.raises(ValueError, match=rf"must have {lines} lines .*, got 1 lines; get"):
        (tmp_path / "c").write_text("1, 2, g\n")
        target(tmp_path / "c")
    good = write_table(tmp_path / "d", target).read_text().splitlines()[0]
    with pytest.raises(ValueError, match=r"got 'q' on line 1"):
        target(write_table(tmp_path / "e", target, (0, good[:-1] + "q")))


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.zeros(3), torch.zeros(3), r"features must be finite numbers of shape \(N, D - 1\)"),
        (torch.full((3, 1), math.nan), torch.zeros(3), "features must be finite numbers"),
        (torch.zeros(3, 1), torch.zeros(2), "labels must be 3 numbers that are 0 or 1"),
        (torch.zeros(3, 1), torch.full((3,), 2), "labels must be 3 numbers that are 0 or 1"),
    ],
)
def test_wrong_tables_are_refused(features, labels, message) -> None:
    with pytest.raises(ValueError, match=message):
        LogisticRegression(features, labels)


def test_the_posterior_of_mixture_means_is_the_model() -> None:
    x = states(30, 6, 3.0)
    y = torch.tensor(mixture_means.POINTS).double()
    parts = Independent(Normal(x.unflatten(-1, (3, 2)), 1.0), 1)
    mixture = MixtureSameFamily(Categorical(torch.ones(30, 3).double()), parts)
    expected = mixture.log_prob(y.unsqueeze(1)).sum(0)
    expected = expected + Normal(0.0, torch.tensor(5.0).double()).log_prob(x).sum(-1)
    torch.testing.assert_close(MixtureMeans().energy(x), -expected)


def test_log_z_of_mixture_means_agrees_with_importance_sampling() -> None:
    """From Student's t around one mode: with all 3! orders of the labels, six times its mass."""
    energy = MixtureMeans()
    x = torch.tensor(mixture_means.TRUE_MEANS).double().flatten()[None]
    for _ in range(200):
        x = x - 0.1 * energy.with_gradient(x)[1]
    generator = torch.Generator().manual_seed(0)
    scale, degrees, n = 0.7, 5, 100_000
    z = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    gamma = torch.randn(n, degrees, generator=generator, dtype=torch.float64).square().sum(-1)
    draws = scale * z / (gamma / degrees).sqrt().unsqueeze(-1)
    log_q = stats.multivariate_t(np.zeros(6), scale**2 * np.eye(6), df=degrees).logpdf(draws)
    log_weight = -energy.energy(x + draws) - torch.from_numpy(log_q)
    own = energy.mode_indicators(x + draws)[:, energy.mode_indicators(x)[0].argmax()]
    weight = log_weight.exp() * own * 6 / math.exp(energy.log_z)
    error = float(weight.std()) / math.sqrt(n)
    assert error < 0.04 and abs(float(weight.mean()) - 1) < 4.5 * error


def test_permuted_means_have_one_energy_and_their_modes_are_permuted() -> None:
    energy, x = MixtureMeans(), states(50, 6, 3.0)
    swapped = torch.cat([x[:, 4:], x[:, :2], x[:, 2:4]], 1)
    torch.testing.assert_close(energy.energy(swapped), energy.energy(x))
    one, other = energy.mode_indicators(x), energy.mode_indicators(swapped)
    assert (one.sum(-1) == 1).all() and (other.sum(-1) == 1).all() and not (one * other).any()


def cox_log_density(energy: CoxProcess, x: torch.Tensor) -> torch.Tensor:
    """With the likelihood's own constants."""
    n = energy.side
    distance = np.array(
        [[math.dist(divmod(a, n), divmod(b, n)) for a in range(n * n)] for b in range(n * n)]
    )
    kernel = torch.from_numpy(1.91 * np.exp(-33 * distance / n))
    mean = torch.full((n * n,), math.log(126) - 0.955).double()
    likelihood = Poisson(x.exp() / n**2).log_prob(energy.counts).sum(-1)
    return MultivariateNormal(mean, kernel).log_prob(x) + likelihood


def test_the_cox_process_is_the_model_but_for_the_likelihoods_constant() -> None:
    energy = CoxProcess(5)
    x = states(20, 25) + 4
    counts = energy.counts
    constant = (counts * math.log(25) + torch.lgamma(counts + 1)).sum()
    torch.testing.assert_close(energy.energy(x), -cox_log_density(energy, x) - constant)


def test_whitened_intensities_are_a_change_of_coordinates() -> None:
    plain, white = CoxProcess(10), CoxProcess(10, whitened=True)
    z = states(20, 100)
    x = white.to_intensities(z)
    torch.testing.assert_close(plain.to_white(x), z)
    log_det = plain.factor.diagonal().log().sum()
    torch.testing.assert_close(white.energy(z), plain.energy(x) - log_det)
    expected = plain.energy_and_gradient(x)[1] @ plain.factor
    torch.testing.assert_close(white.energy_and_gradient(z)[1], expected)
    assert white.log_z == plain.log_z
    torch.testing.assert_close(
        white.to_intensities(white.reference().double()).float(), plain.reference()
    )
    check_energy(white)


def test_cox_points_fall_into_their_cells() -> None:
    assert int(CoxProcess(10).counts.sum()) == int(CoxProcess(7).counts.sum()) == len(cox.CELLS)
    energy = CoxProcess(2, points=torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.9, 0.1], [0.6, 0.2]]))
    assert energy.counts.tolist() == [1, 0, 2, 1] and energy.log_z is None
    assert CoxProcess(3, points=torch.zeros(0, 2)).counts.sum() == 0
    with pytest.raises(NotImplementedError, match="side in .* got side 10 and other points"):
        CoxProcess(10, points=torch.zeros(1, 2)).reference()
    with pytest.raises(
        ValueError, match=r"points must lie in the unit square .*, got \[2.0, 0.0\]"
    ):
        CoxProcess(2, points=torch.tensor([[0.5, 0.5], [2.0, 0.0]]))
    with pytest.raises(ValueError, match=r"points must have shape \(N, 2\), got \(3,\)"):
        CoxProcess(2, points=torch.zeros(3))


def test_shipped_points_are_a_likely_draw_of_the_model() -> None:
    """Counts of the model have mean 126/n² each; the field makes their sum spread more."""
    kernel = cox.covariance(10)
    mean = torch.full((100,), 1.26).double()
    of_sum = float((1.26**2 * (kernel.exp() - 1)).sum() + mean.sum())
    assert abs(len(cox.CELLS) - 126) < 3 * math.sqrt(of_sum)
