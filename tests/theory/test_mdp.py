import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from vgs_rl import (
    ChainSampler,
    Energy,
    MDPConfig,
    Particles,
    SamplingMDP,
    ScheduleConfig,
    StartConfig,
)
from vgs_rl.envs import (
    GMM9,
    Gaussian,
    GaussianMixture,
    ManyWell,
)
from vgs_rl.geometry import CentreOfMassFree, Euclidean
from vgs_rl.starts import GaussianStart, MixtureStart, make_start
from vgs_rl.transitions import State
from vgs_rl.weights import log_z_estimate

DOUBLE = torch.float64


def config(num_steps=3, chain="vp", scale=1.0, noise=0.8, **arguments):
    return MDPConfig(
        chain=chain,
        num_steps=num_steps,
        schedule=ScheduleConfig(total_noise=noise),
        start=StartConfig(scale=scale),
        **arguments,
    )


def hermite(nodes):
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    return torch.from_numpy(x), torch.from_numpy(w / w.sum())


class OnNodes(SamplingMDP):
    """A two-step MDP in one dimension whose noise runs over the nodes of a quadrature.

    The mean under `weights` is then the expectation over x_0 and both noises, without sampling.
    """

    def __init__(self, energy, config, nodes=36):
        super().__init__(energy, config, dtype=DOUBLE)
        x, w = hermite(nodes)
        self.axes = torch.cartesian_prod(x, x, x).unbind(-1)
        self.weights = torch.cartesian_prod(w, w, w).prod(-1)
        self.turn = 0
        self.start.sample = lambda n, generator: self.noise(n, generator) * self.start.scale

    def noise(self, n, generator):
        self.turn += 1
        return self.axes[(self.turn - 1) % 3].unsqueeze(-1)

    def mean(self, values):
        return float((self.weights * values).sum())

    def __len__(self):
        return len(self.weights)


@torch.no_grad()
@given(
    st.floats(-0.6, 0.6),
    st.floats(-0.8, 0.8),
    st.floats(0.8, 1.2),
    st.floats(0.9, 1.2),
    st.sampled_from(["vp", "ve"]),
    st.sampled_from([1.0, 1.7]),
)
@settings(max_examples=15, deadline=None)
def test_log_weight_is_unbiased_for_z(slope, offset, rho, noise_scale, chain, temperature):
    energy = Gaussian((0.4,), (0.7,))
    mdp = OnNodes(energy, config(2, chain, scale=1.4, temperature=temperature))
    mdp.rho.fill_(rho)

    def policy(x, t):
        return slope * x + offset * torch.sin(2 * x + t)

    rollout = mdp.rollout(policy, len(mdp), torch.Generator(), noise_scale=noise_scale)
    z = math.sqrt(2 * math.pi * 0.7 * temperature)
    assert mdp.mean(rollout.log_weight.exp()) == pytest.approx(z, rel=2e-3)
    # Jensen; and the mean log-weight is the return over tau plus the entropy of the start.
    elbo = mdp.mean(rollout.log_weight)
    entropy = 0.5 * math.log(2 * math.pi * math.e) + math.log(1.4)
    assert elbo <= math.log(z) + 1e-9
    if noise_scale == 1.0:
        assert -mdp.mean(rollout.cost) / temperature + entropy == pytest.approx(elbo, abs=1e-6)


@torch.no_grad()
@given(st.floats(-0.2, 0.1), st.floats(-0.3, 0.3), st.floats(0.7, 0.85))
@settings(max_examples=15, deadline=None)
def test_reverse_log_weight_is_unbiased_for_one_over_z(slope, offset, rho):
    energy = Gaussian((0.0,), (0.7,))
    mdp = OnNodes(energy, config(2, scale=0.8))  # narrow: 1/w has light tails
    mdp.rho.fill_(rho)
    mdp.turn = 1
    x = mdp.axes[0].unsqueeze(-1) * math.sqrt(0.7)  # exact samples of the target

    def policy(x, t):
        return slope * x + offset

    log_w = mdp.reverse_log_weight(policy, x, torch.Generator())
    assert mdp.mean((-log_w).exp()) == pytest.approx(math.exp(-energy.log_z), rel=1e-3)
    assert mdp.mean(log_w) >= energy.log_z - 1e-9  # EUBO


SILLY = {
    "nothing": lambda x, t: torch.zeros_like(x),
    "wave": lambda x, t: 0.5 * torch.sin(3 * x.flip(-1) + t),
    "constant": lambda x, t: torch.full_like(x, 0.3),
}


@pytest.mark.parametrize("name", SILLY)
@pytest.mark.parametrize("chain", ["vp", "ve"])
def test_silly_controls_keep_weights_and_bounds_right(name, chain):
    energy = GaussianMixture([[-0.5, 0.0], [0.8, 0.3]], [[0.5, 0.8], [0.9, 0.4]], [1, 2], log_z=1.3)
    mdp = SamplingMDP(energy, config(4, chain, scale=1.3))
    mdp.rho.copy_(torch.linspace(1.1, 0.9, 4))
    generator = mdp.generator(0)
    with torch.no_grad():
        log_w = mdp.rollout(SILLY[name], 20_000, generator).log_weight
        exact = energy.sample(20_000, generator)
        reverse = mdp.reverse_log_weight(SILLY[name], exact, generator)
    w = (log_w - energy.log_z).exp()
    assert abs(float(w.mean()) - 1) < 4.5 * float(w.std()) / math.sqrt(len(w))
    elbo, eubo = float(log_w.mean()), float(reverse.mean())
    assert elbo < energy.log_z < eubo  # strictly: these controls are not optimal


def test_exploration_noise_keeps_the_weights_exact():
    energy = Gaussian((0.0, 0.0), (0.8, 0.6))
    mdp = SamplingMDP(energy, config(4, scale=1.3))
    with torch.no_grad():
        rollouts = [
            mdp.rollout(SILLY["wave"], 20_000, mdp.generator(0), noise_scale=scale)
            for scale in (1.0, 1.3)
        ]
    assert float(rollouts[1].x.std()) > float(rollouts[0].x.std()) + 0.05
    for rollout in rollouts:
        w = (rollout.log_weight - energy.log_z).exp()
        assert abs(float(w.mean()) - 1) < 4.5 * float(w.std()) / math.sqrt(len(w))


def optimal(mdp, variance):
    """Makes start and rho exact for N(0, variance I); returns the posterior policy."""
    chain = mdp.chain
    noised = variance / chain.A**2 + chain.S  # variance of x_t
    with torch.no_grad():
        mdp.start.log_scale.copy_(0.5 * noised[0].log())
        mdp.rho.copy_((noised[1:] / (noised[1:] + chain.sigma**2)).sqrt())
    return lambda x, t: -chain.s[t] * x / noised[t]


@given(st.floats(0.2, 4.0), st.integers(1, 12), st.sampled_from(["vp", "ve"]), st.floats(0.2, 0.95))
@settings(max_examples=25, deadline=None)
def test_at_the_optimum_every_weight_is_z(variance, num_steps, chain, noise):
    energy = Gaussian((0.0, 0.0), (variance, variance))
    mdp = SamplingMDP(energy, config(num_steps, chain, noise=noise), dtype=DOUBLE)
    policy = optimal(mdp, variance)
    rollout = mdp.rollout(policy, 50, mdp.generator(0))
    expected = torch.full((50,), energy.log_z, dtype=DOUBLE)
    torch.testing.assert_close(rollout.log_weight.detach(), expected, atol=1e-6, rtol=0)
    x = energy.sample(50, mdp.generator(1)).double()
    reverse = mdp.reverse_log_weight(policy, x, mdp.generator(2))
    torch.testing.assert_close(reverse.detach(), expected, atol=1e-6, rtol=0)


@given(
    st.floats(0.3, 3.0),
    st.lists(st.floats(-1.0, 1.5), min_size=3, max_size=3),
    st.lists(st.floats(0.6, 1.3), min_size=3, max_size=3),
    st.sampled_from(["vp", "ve"]),
)
@settings(max_examples=15, deadline=None)
def test_minus_the_return_bounds_the_kl_divergence(variance, gains, rho, chain):
    """Linear controls u = -k x of a Gaussian: x_T is Gaussian, KL and bound are known."""
    energy = Gaussian((0.0, 0.0), (variance, variance))
    mdp = SamplingMDP(energy, config(3, chain, scale=1.2), dtype=DOUBLE)
    mdp.rho.copy_(torch.tensor(rho))
    n = 20_000
    with torch.no_grad():
        rollout = mdp.rollout(lambda x, t: -gains[t] * x, n, mdp.generator(0))
    v, a, sigma = 1.2**2, mdp.chain.a.tolist(), mdp.chain.sigma.tolist()
    cost = 0.0
    for t in range(3):
        cost += gains[t] ** 2 * v + (mdp.rho[t] ** 2 - 1) - 2 * math.log(mdp.rho[t] * a[t])
        v = (a[t] - sigma[t] * gains[t]) ** 2 * v + (sigma[t] * float(mdp.rho[t])) ** 2
    cost = float(cost) + v / variance
    entropy = math.log(2 * math.pi * math.e) + 2 * math.log(1.2)
    bound = cost - entropy + energy.log_z
    kl = v / variance - 1 - math.log(v / variance)
    assert bound >= kl - 1e-9

    def agrees(values, expected):
        return abs(float(values.mean()) - expected) < 5 * float(values.std()) / math.sqrt(n) + 1e-9

    assert agrees(rollout.cost, cost)
    assert agrees(energy.log_z - rollout.log_weight, bound)
    assert agrees(rollout.x.square().sum(-1), 2 * v)


# docs/theory.md, "The value": ELBO of GMM9 with exact values, from 100,000 samples.
ORACLE = {
    "bellman": {5: -27.25, 10: -3.449, 20: -0.823, 40: -0.295},
    "posterior": {5: -2.48, 10: -1.061, 20: -0.488, 40: -0.236},
}


@pytest.mark.parametrize("drift", ORACLE)
@pytest.mark.parametrize("num_steps", [5, 10, 20, 40])
def test_oracle_reaches_the_published_ceiling(drift, num_steps):
    energy, noise = GMM9(), 0.9592
    step = 1 - (1 - noise) ** (1 / num_steps)
    variance = (0.3 + 50 / 3) * (1 - noise) + noise  # of the noised target, per coordinate
    mdp = SamplingMDP(
        energy,
        MDPConfig(
            num_steps=num_steps,
            schedule=ScheduleConfig(kind="constant", first=step),
            start=StartConfig(scale=math.sqrt(variance)),
        ),
    )
    chain = mdp.chain
    assert float(chain.S[0]) == pytest.approx(noise, rel=1e-3)

    def bellman(x, t):
        return -chain.sigma[t] * energy.value_gradient(chain.a[t] * x, t + 1, chain)

    def posterior(x, t):
        return -chain.s[t] * energy.value_gradient(x, t, chain)

    policy = {"bellman": bellman, "posterior": posterior}[drift]
    n = 16_000 if num_steps < 20 else 6_000
    with torch.no_grad():
        log_w = mdp.rollout(policy, n, mdp.generator(0)).log_weight
    error = float(log_w.std()) * math.sqrt(1 / n + 1 / 100_000)
    expected = ORACLE[drift][num_steps]
    assert abs(float(log_w.mean()) - expected) < 4 * error + 0.005
    assert error < 0.05 * abs(expected)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_expected_cost_is_minus_the_expected_log_ratio(temperature):
    energy = GMM9()
    mdp = SamplingMDP(energy, config(2, scale=1.2, temperature=temperature), dtype=DOUBLE)
    mdp.rho.copy_(torch.tensor([0.7, 1.1]))
    eps, w = hermite(60)
    mdp.noise = lambda n, generator: torch.cartesian_prod(eps, eps)
    weights = torch.cartesian_prod(w, w).prod(-1)
    x = torch.tensor([0.3, -0.8], dtype=DOUBLE).expand(3600, 2)
    u = torch.tensor([1.5, -0.4], dtype=DOUBLE).expand(3600, 2)
    for t in (0, 1):
        step = mdp.step(State(x, t), u, torch.Generator())
        cost = float((weights * step.cost).sum())
        log_ratio = float((weights * step.log_ratio).sum())
        assert cost == pytest.approx(-temperature * log_ratio, abs=1e-9)
        assert abs(cost) > 1e-3


@pytest.mark.parametrize("chain", ["vp", "ve"])
def test_one_t_for_all_and_one_t_per_row_agree(chain):
    energy = ManyWell(4)
    mdp = SamplingMDP(energy, config(3, chain, temperature=1.5), dtype=DOUBLE)
    mdp.rho.copy_(torch.tensor([1.0, 0.8, 0.6]))
    generator = mdp.generator(0)
    x, u = (torch.randn(6, 4, generator=generator, dtype=DOUBLE) for _ in range(2))
    single = [mdp.step(State(x, t), u, mdp.generator(1)) for t in range(3)]
    for t in range(3):
        rows = mdp.step(State(x, torch.full((6,), t)), u, mdp.generator(1))
        assert rows.state.t.tolist() == [t + 1] * 6 and single[t].state.t == t + 1
        for a, b in zip(
            (rows.state.x, *rows[1:]), (single[t].state.x, *single[t][1:]), strict=True
        ):
            torch.testing.assert_close(a, b)
    t = torch.tensor([0, 1, 2, 2, 1, 0])
    mixed = mdp.step(State(x, t), u, mdp.generator(1))
    for i in range(6):
        of = single[int(t[i])]
        torch.testing.assert_close(mixed.state.x[i], of.state.x[i])
        torch.testing.assert_close(mixed.cost[i], of.cost[i])
        torch.testing.assert_close(mixed.log_ratio[i], of.log_ratio[i])


def test_steps_add_up_to_a_rollout():
    energy = GMM9()
    mdp = SamplingMDP(energy, config(5, scale=1.3, temperature=2.0))
    mdp.rho.fill_(0.9)
    generator = mdp.generator(3)
    with torch.no_grad():
        rollout = mdp.rollout(SILLY["wave"], 10, mdp.generator(3), keep_states=True)
        state = mdp.reset(10, generator)
        log_w, cost = -mdp.start.log_prob(state.x), torch.zeros(10)
        for t in range(5):
            torch.testing.assert_close(rollout.states[t], state.x)
            control = SILLY["wave"](state.x, t)
            (state, step_cost, log_ratio), last = mdp.step_with_energy(state, control, generator)
            log_w, cost = log_w + log_ratio, cost + step_cost
            assert (last is None) == (t < 4)
        cost = cost + last
    torch.testing.assert_close(rollout.x, state.x)
    torch.testing.assert_close(rollout.states[-1], state.x)
    torch.testing.assert_close(rollout.log_weight, log_w)
    torch.testing.assert_close(rollout.cost, cost)
    torch.testing.assert_close(rollout.energy, last)
    assert mdp.rollout(SILLY["wave"], 2, generator).states is None


def test_energies_with_rows_at_different_steps_are_those_of_the_last():
    energy = GMM9()
    mdp = SamplingMDP(energy, config(2))
    x = torch.randn(4, 2, generator=mdp.generator(0))
    t = torch.tensor([0, 1, 1, 0])
    step, values = mdp.step_with_energy(State(x, t), torch.zeros(4, 2), mdp.generator(1))
    assert values.tolist() == [
        0.0,
        *energy.energy(step.state.x[1:3]).tolist(),
        0.0,
    ]
    assert mdp.energy_evaluations == 2


class Half(Energy):
    dim = 2

    def energy(self, x):
        return 0.5 * GMM9().energy(x)


def test_temperature_divides_the_energy():
    hot = SamplingMDP(GMM9(), config(4, temperature=2.0))
    half = SamplingMDP(Half(), config(4))
    with torch.no_grad():
        a = hot.rollout(SILLY["wave"], 20, hot.generator(0))
        b = half.rollout(SILLY["wave"], 20, half.generator(0))
    torch.testing.assert_close(a.log_weight, b.log_weight)
    torch.testing.assert_close(a.cost, 2 * b.cost)
    torch.testing.assert_close(
        hot.reverse_log_weight(SILLY["wave"], a.x, hot.generator(1)),
        half.reverse_log_weight(SILLY["wave"], a.x, half.generator(1)),
    )


def test_energy_evaluations_are_counted():
    mdp = SamplingMDP(GMM9(), config(3))
    assert mdp.energy_evaluations == 0  # the probe is not counted
    mdp.rollout(SILLY["nothing"], 10, mdp.generator(0))
    assert mdp.energy_evaluations == 10
    mdp.evaluate_gradient(torch.zeros(7, 2))
    mdp.reverse_log_weight(SILLY["nothing"], torch.zeros(5, 2), mdp.generator(0))
    assert mdp.energy_evaluations == 22


def test_rows_of_a_batch_never_influence_each_other():
    mdp = SamplingMDP(GMM9(), config(3))
    x = torch.randn(5, 2, generator=mdp.generator(0))
    u = torch.zeros(5, 2)
    moved_x, moved_u = x.clone(), u.clone()
    moved_x[0] += 3.0
    moved_u[0] -= 2.0
    for t in (1, 2):
        a = mdp.step(State(x, t), u, mdp.generator(1))
        b = mdp.step(State(moved_x, t), moved_u, mdp.generator(1))
        assert torch.equal(a.state.x[1:], b.state.x[1:]) and torch.equal(a.cost[1:], b.cost[1:])
        assert torch.equal(a.log_ratio[1:], b.log_ratio[1:]) and a.cost[0] != b.cost[0]


@pytest.mark.parametrize("chain", ["vp", "ve"])
def test_noised_marginal_has_the_moments_of_the_backward_chain(chain):
    mdp = SamplingMDP(GMM9(), config(4, chain))
    n = 40_000
    x = torch.tensor([[2.0, -3.0]]).expand(n, 2)
    generator = mdp.generator(0)
    back = x
    for t in (3, 2, 1, 0):
        back = back / mdp.chain.a[t] + mdp.chain.s[t] * mdp.noise(n, generator)
        direct, z = mdp.noised_marginal(x, t, generator)
        torch.testing.assert_close(direct, x / mdp.chain.A[t] + mdp.chain.S[t].sqrt() * z)
        error = float(back.std(0).max()) / math.sqrt(n)
        assert bool(((back.mean(0) - direct.mean(0)).abs() < 7 * error).all())
        assert bool(((back.std(0) - direct.std(0)).abs() < 5 * error).all())
    rows = torch.arange(n) % 5
    mixed, z = mdp.noised_marginal(x, rows, mdp.generator(1))
    same, _ = mdp.noised_marginal(x, 2, mdp.generator(1))
    torch.testing.assert_close(mixed[rows == 2], same[rows == 2])
    torch.testing.assert_close(mixed[rows == 4], x[rows == 4])


@pytest.mark.parametrize("chain", ["vp", "ve"])
def test_fitted_noise_scale_is_the_exact_one(chain):
    energy = Gaussian((0.0, 0.0), (0.6, 0.6))
    mdp = SamplingMDP(energy, config(5, chain))
    policy = optimal(mdp, 0.6)
    exact = mdp.rho.clone()
    mdp.rho.fill_(1.0)
    x = energy.sample(20_000, mdp.generator(0))
    mdp.fit_noise_scale(policy, x, mdp.generator(1), rate=0.5)
    torch.testing.assert_close(mdp.rho, 0.5 + 0.5 * exact, atol=0.01, rtol=0)
    mdp.fit_noise_scale(policy, x, mdp.generator(1))
    torch.testing.assert_close(mdp.rho, exact, atol=0.02, rtol=0)
    point = lambda x, t: -x * mdp.chain.s[t] / mdp.chain.S[t]  # noqa: E731  of a point at 0
    mdp.fit_noise_scale(point, torch.zeros(500, mdp.dim), mdp.generator(1))
    assert float(mdp.rho[-1]) == pytest.approx(mdp.LEAST_RHO)


def test_gradients_flow_through_a_rollout():
    mdp = SamplingMDP(GMM9(), config(3))
    gain = torch.tensor(0.1, requires_grad=True)
    mdp.rollout(lambda x, t: -gain * x, 8, mdp.generator(0)).cost.mean().backward()
    assert gain.grad is not None and float(gain.grad.abs()) > 0


def test_a_checkpoint_of_the_mdp_holds_start_and_noise_scale_not_the_target():
    mdp = SamplingMDP(GMM9(), config(3))
    assert set(mdp.state_dict()) == {"rho", "start.log_scale"}


# --------------------------------------------------------------------------- start


def test_gaussian_start_is_the_normal_density():
    start = GaussianStart(Euclidean(3), 1.7)
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    expected = Independent(Normal(torch.zeros(3), 1.7), 1).log_prob(x)
    torch.testing.assert_close(start.log_prob(x).detach(), expected)
    x = start.sample(20_000, torch.Generator().manual_seed(0))
    assert not x.requires_grad and x.std().item() == pytest.approx(1.7, abs=0.02)
    start.fit(3 * x / 1.7, torch.Generator(), rate=1.0)
    assert start.scale.item() == pytest.approx(3.0, abs=0.03)
    start.fit(x / 1.7, torch.Generator(), rate=0.25)
    assert start.scale.item() == pytest.approx(math.sqrt(0.75 * 9 + 0.25), abs=0.05)


def test_gaussian_start_in_a_subspace_is_normal_in_its_coordinates():
    geometry = CentreOfMassFree(3, 2)
    start = GaussianStart(geometry, 0.7)
    x = start.sample(40, torch.Generator().manual_seed(0))
    torch.testing.assert_close(geometry.project(x), x)
    projection = geometry.project(torch.eye(6))
    values, vectors = torch.linalg.eigh(projection)
    basis = vectors[:, values > 0.5]  # orthonormal, (6, 4)
    assert basis.shape == (6, geometry.effective_dim)
    expected = Independent(Normal(torch.zeros(4), 0.7), 1).log_prob(x @ basis)
    torch.testing.assert_close(start.log_prob(x).detach(), expected, atol=1e-5, rtol=1e-5)


def known_mixture():
    start = MixtureStart(Euclidean(2), 2, 1.0)
    start.weights.copy_(torch.tensor([0.3, 0.7]))
    start.means.copy_(torch.tensor([[-3.0, 0.0], [2.0, 1.0]]))
    start.variances.copy_(torch.tensor([[0.5, 1.0], [1.5, 0.2]]))
    return start


def test_mixture_start_is_the_mixture_density():
    start = known_mixture()
    exact = MixtureSameFamily(
        Categorical(start.weights), Independent(Normal(start.means, start.variances.sqrt()), 1)
    )
    x = start.sample(500, torch.Generator().manual_seed(0))
    torch.testing.assert_close(start.log_prob(x), exact.log_prob(x), atol=1e-4, rtol=1e-4)
    axis = torch.linspace(-9, 9, 601)
    mass = start.log_prob(torch.cartesian_prod(axis, axis)).double().exp().sum() * 0.03**2
    assert float(mass) == pytest.approx(1.0, abs=1e-4)


def test_fitting_recovers_a_mixture_and_repeats_itself():
    x = known_mixture().sample(8000, torch.Generator().manual_seed(0))
    fits = []
    for seed in (1, 1):
        start = MixtureStart(Euclidean(2), 2, 1.0)
        start.fit(x, torch.Generator().manual_seed(seed))
        fits.append(start)
    assert torch.equal(fits[0].means, fits[1].means)
    fit, known = fits[0], known_mixture()
    order = fit.means[:, 0].argsort()
    torch.testing.assert_close(fit.weights[order], known.weights, atol=0.03, rtol=0)
    torch.testing.assert_close(fit.means[order], known.means, atol=0.1, rtol=0)
    torch.testing.assert_close(fit.variances[order], known.variances, atol=0.12, rtol=0)
    assert float(fit.log_prob(x).mean()) >= float(known.log_prob(x).mean()) - 1e-3


def test_mixture_start_keeps_the_weights_exact():
    energy = GaussianMixture([[-1.0, 0.0], [1.5, 0.5]], [[0.4, 0.5], [0.5, 0.3]], log_z=-0.4)
    settings = config(4)
    settings.start = StartConfig(kind="mixture", components=3)
    mdp = SamplingMDP(energy, settings)
    x, _ = mdp.noised_marginal(energy.sample(4000, mdp.generator(0)), 0, mdp.generator(1))
    mdp.start.fit(x, mdp.generator(2))

    def posterior(x, t):
        return -mdp.chain.s[t] * energy.value_gradient(x, t, mdp.chain)

    with torch.no_grad():
        log_w = mdp.rollout(posterior, 20_000, mdp.generator(3)).log_weight
    w = (log_w - energy.log_z).exp()
    assert abs(float(w.mean()) - 1) < 4.5 * float(w.std()) / math.sqrt(len(w))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StartConfig(scale=0.0), "start.scale must be a positive number, got 0.0"),
        (lambda: StartConfig(scale=math.inf), "start.scale must be a positive number, got inf"),
        (lambda: StartConfig(components=0), "start.components must be at least 1, got 0"),
        (
            lambda: make_start(StartConfig(kind="mixture"), CentreOfMassFree(3, 2)),
            "needs a Euclidean geometry; this one has 4 of 6 dimensions",
        ),
    ],
)
def test_impossible_starts_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ----------------------------------------------------------------------- subspaces


class Cluster(Energy):
    """½ Σ ‖x_i - mean‖²: standard normal in the centre-of-mass-free subspace."""

    dim, symmetry = 6, Particles(3, 2)
    log_z = 2 * math.log(2 * math.pi)

    @property
    def geometry(self):
        return CentreOfMassFree(3, 2)

    def energy(self, x):
        return 0.5 * self.geometry.project(x).square().sum(-1)


@given(st.integers(2, 6), st.integers(1, 3), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_projection_is_orthogonal_and_idempotent(n, d, seed):
    geometry = CentreOfMassFree(n, d)
    x, y = torch.randn(2, 5, n * d, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    p = geometry.project(x)
    torch.testing.assert_close(geometry.project(p), p)
    torch.testing.assert_close((p * y).sum(-1), (x * geometry.project(y)).sum(-1))
    torch.testing.assert_close(p.unflatten(-1, (n, d)).mean(-2), torch.zeros(5, d, dtype=DOUBLE))
    rank = torch.linalg.matrix_rank(geometry.project(torch.eye(n * d)))
    assert int(rank) == geometry.effective_dim == (n - 1) * d


@pytest.mark.parametrize("chain", ["vp", "ve"])
def test_weights_in_the_subspace_count_its_own_dimensions(chain):
    energy = Cluster()
    mdp = SamplingMDP(energy, config(3, chain, scale=1.3))
    with torch.no_grad():
        rollout = mdp.rollout(lambda x, t: -0.3 * x, 20_000, mdp.generator(0))
    torch.testing.assert_close(mdp.geometry.project(rollout.x), rollout.x, atol=1e-5, rtol=0)
    w = (rollout.log_weight - energy.log_z).exp()
    assert abs(float(w.mean()) - 1) < 4.5 * float(w.std()) / math.sqrt(len(w))
    assert float(log_z_estimate(rollout.log_weight)) == pytest.approx(energy.log_z, abs=0.1)
    mdp = SamplingMDP(energy, config(3, chain), dtype=DOUBLE)
    policy = optimal(mdp, 1.0)
    log_w = mdp.rollout(policy, 50, mdp.generator(0)).log_weight.detach()
    torch.testing.assert_close(log_w, torch.full_like(log_w, energy.log_z), atol=1e-6, rtol=0)


def test_samples_and_counts_do_not_depend_on_the_number_of_threads() -> None:
    mdp = SamplingMDP(GMM9(), MDPConfig(num_steps=5))
    sampler = ChainSampler(mdp, lambda x, t: -0.1 * x)
    sampler.chunk_size = 64
    threads = torch.get_num_threads()
    drawn = []
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            drawn.append(sampler.sample(1000, 3))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    one, four = drawn
    assert torch.equal(one.x, four.x) and torch.equal(one.log_weight, four.log_weight)
    assert one.energy_evaluations == four.energy_evaluations == 1000
    assert mdp.energy_evaluations == 0  # what draws cost is in the samples, not in training
