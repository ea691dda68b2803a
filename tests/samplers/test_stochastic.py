"""A stochastic policy as the kernel, the MDP's noise off; and what a policy observes."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vgs_rl import (
    ChainSampler,
    MDPConfig,
    SamplingMDP,
    ScheduleConfig,
    StartConfig,
)
from vgs_rl.agents import SB3Config, TianshouConfig
from vgs_rl.envs import (
    DW4,
    GMM9,
    FourGauss,
    Gaussian,
    GaussianMixture,
    SamplingEnv,
    SamplingVectorEnv,
)
from vgs_rl.envs.observation import Observation
from vgs_rl.samplers.stochastic import (
    GaussianKernel,
    SquashedGaussianKernel,
    log_tanh_slope,
)

BOUND = 8.0


def make_mdp(energy=None, num_steps=3, scale=1.6, temperature=1.0, dtype=torch.float32):
    schedule = ScheduleConfig(kind="auto", total_noise=0.8)
    start = StartConfig(scale=scale)
    config = MDPConfig(num_steps=num_steps, schedule=schedule, start=start, temperature=temperature)
    return SamplingMDP(energy or Gaussian((0.5, -0.3), (0.8, 1.1)), config, dtype=dtype)


class Network(nn.Module):
    """Some mean and log standard deviation, as an untrained policy has them."""

    def __init__(self, mdp, seed=0, size=0.2, std=1.2):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        shape = (mdp.dim + 1, 2 * mdp.dim)
        weight = size * torch.randn(shape, generator=generator, dtype=mdp.dtype)
        self.weight = nn.Parameter(weight)
        self.observed, self.std, self.dim = Observation(mdp), std, mdp.dim

    def forward(self, x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        output = torch.tanh(self.observed(x, t) @ self.weight)
        return output[:, : self.dim], 0.3 * output[:, self.dim :] + math.log(self.std)


def scaled(parameters, bound):
    """Parameters of z where those of b z are given."""

    def inner(x, t):
        mean, log_std = parameters(x, t)
        return mean / bound, log_std - math.log(bound)

    return inner


def policies(mdp, network):
    return {
        "mean": lambda x, t: network(x, t)[0],
        "clipped mean": lambda x, t: network(x, t)[0].clamp(-0.3, 0.3),
        "squashed mean": lambda x, t: network(x, t)[0].tanh(),
        "gaussian kernel": GaussianKernel(network),
        "squashed kernel": SquashedGaussianKernel(scaled(network, BOUND), BOUND),
    }


NAMES = ("mean", "clipped mean", "squashed mean", "gaussian kernel", "squashed kernel")


def check_unbiased(log_weight, log_z):
    weights = (log_weight.double() - log_z).exp()
    error = float(weights.std()) / math.sqrt(len(weights))
    assert error < 0.05
    assert float(weights.mean()) == pytest.approx(1.0, abs=4.5 * error)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_unbiased_for_z_with_untrained_policies(name):
    two_modes = GaussianMixture(torch.tensor([[1.2, 0.0], [-1.2, 0.5]]), torch.full((2, 2), 0.5))
    for energy in (Gaussian((0.5, -0.3), (0.8, 1.1)), two_modes):
        mdp = make_mdp(energy)
        policy = policies(mdp, Network(mdp))[name]
        samples = ChainSampler(mdp, policy).sample(60_000, 3)
        check_unbiased(samples.log_weight, mdp.energy.log_z or 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_unbiased_for_z_after_a_little_training(name):
    mdp = make_mdp()
    network = Network(mdp)
    policy = policies(mdp, network)[name]
    before = ChainSampler(mdp, policy).sample(20_000, 3).log_weight.mean()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    generator = mdp.generator(0)
    for _ in range(60):  # minus ELBO, by the reparametrised path
        loss = -mdp.rollout(policy, 256, generator).log_weight.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    log_weight = ChainSampler(mdp, policy).sample(60_000, 3).log_weight
    assert log_weight.mean() > before
    assert log_weight.mean() < mdp.energy.log_z
    check_unbiased(log_weight, mdp.energy.log_z)


def test_a_gaussian_kernel_is_the_mdp_with_its_noise_on():
    mdp = make_mdp(temperature=0.7)
    mdp.rho.copy_(torch.tensor([0.9, 0.6, 0.3]))
    network = Network(mdp)

    def parameters(x, t):
        mean, _ = network(x, t)
        return mean, mdp.rho[t].log().expand_as(mean)

    control = lambda x, t: network(x, t)[0]  # noqa: E731
    with torch.no_grad():
        noisy = mdp.rollout(control, 500, mdp.generator(1))
        kernel = mdp.rollout(GaussianKernel(parameters), 500, mdp.generator(1))
    torch.testing.assert_close(noisy.x, kernel.x)
    torch.testing.assert_close(noisy.log_weight, kernel.log_weight, rtol=1e-4, atol=1e-4)
    x = mdp.noise(200, mdp.generator(2))
    with torch.no_grad():
        backward = [
            mdp.reverse_log_weight(policy, x, mdp.generator(3))
            for policy in (control, GaussianKernel(parameters))
        ]
    torch.testing.assert_close(*backward, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["gaussian kernel", "squashed kernel"])
def test_return_plus_entropy_is_minus_the_kl_divergence(name):
    tau = 0.7
    mdp = make_mdp(temperature=tau)
    policy = policies(mdp, Network(mdp))[name]
    with torch.no_grad():
        rollout = mdp.rollout(policy, 300, mdp.generator(0), keep_states=True)
    start = mdp.start.log_prob(rollout.states[0])
    # cost = -return + tau Σ log pi, path by path: nothing but log w is being maximised
    torch.testing.assert_close(
        -rollout.cost / tau, (rollout.log_weight + start).detach(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["gaussian kernel", "squashed kernel"])
def test_bounds_enclose_log_z(name):
    mdp = make_mdp(FourGauss(), num_steps=5, scale=2.0)
    sampler = ChainSampler(mdp, policies(mdp, Network(mdp))[name])
    exact = mdp.energy.sample(4000, mdp.generator(1))
    eubo = sampler.reverse_log_weight(exact, mdp.generator(2)).mean()
    assert sampler.sample(4000, 3).log_weight.mean() < 0 < eubo < 1e3


def test_the_squashed_density_integrates_to_one_and_matches_its_draws():
    mdp = make_mdp(Gaussian((0.0,), (1.0,)), dtype=torch.float64)
    kernel = SquashedGaussianKernel(lambda x, t: (0.3 + 0 * x, math.log(0.8) + 0 * x), bound=2.0)
    v = torch.linspace(-2, 2, 40_001, dtype=torch.float64).unsqueeze(-1)
    density = kernel.log_density(v, torch.zeros_like(v), 0).exp()
    assert density[0] == density[-1] == 0  # at the bound and beyond nothing is drawn
    assert float(torch.trapezoid(density, v[:, 0])) == pytest.approx(1.0, abs=1e-4)
    x = torch.zeros(100_000, 1, dtype=torch.float64)
    drawn, log_density = kernel.draw(x, 0, mdp.generator(0))
    torch.testing.assert_close(log_density, kernel.log_density(drawn, x, 0), atol=1e-6, rtol=1e-6)
    mean = float((density * v[:, 0]).sum() / density.sum())
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.02)


def test_the_slope_of_tanh_is_exact_where_single_precision_rounds_to_one():
    z = torch.tensor([0.0, 1.0, -5.0, 20.0, -20.0])
    exact = -2 * torch.log(torch.cosh(z.double()))
    torch.testing.assert_close(log_tanh_slope(z).double(), exact, rtol=1e-6, atol=1e-6)


def test_a_squashed_kernel_misses_exactly_the_paths_beyond_its_bound():
    mdp = make_mdp(num_steps=2)
    bound = 1.5
    kernel = SquashedGaussianKernel(lambda x, t: (0 * x, 0 * x), bound)
    weights = ChainSampler(mdp, kernel).sample(200_000, 0).log_weight.double().exp()
    x = mdp.energy.sample(200_000, mdp.generator(1))
    backward = ChainSampler(mdp, kernel).reverse_log_weight(x, mdp.generator(2))
    inside = torch.isfinite(backward).double()
    z = math.exp(mdp.energy.log_z)
    assert 0.3 < float(inside.mean()) < 0.9
    assert float(weights.mean()) / z == pytest.approx(float(inside.mean()), abs=0.02)
    assert backward.mean() == torch.inf  # and the EUBO says so


# --- the environments ---------------------------------------------------------------------------


def test_the_environment_without_noise_leaves_only_the_density_to_the_policy():
    mdp = make_mdp(temperature=0.7)
    env = SamplingVectorEnv(mdp, num_envs=6, noise=False)
    kernel = GaussianKernel(Network(mdp))
    observation, _ = env.reset(seed=0)
    x = torch.from_numpy(observation[:, :2].copy())
    generator, log_density, total = mdp.generator(1), torch.zeros(6), np.zeros(6)
    start = mdp.start.log_prob(x).detach()
    for t in range(mdp.num_steps):
        with torch.no_grad():
            v, log_pi = kernel.draw(x, t, generator)
        log_density += log_pi
        expected = mdp.chain.a[t] * x + mdp.chain.sigma[t] * v
        observation, reward, _, _, infos = env.step(v.numpy())
        total += reward
        if t + 1 < mdp.num_steps:
            x = torch.from_numpy(observation[:, :2].copy())
            torch.testing.assert_close(x, expected)
    assert "log_weight" not in infos and infos["_log_path"].all()
    log_weight = torch.from_numpy(infos["log_path"]).float() - log_density
    # tau (log w + log pi_0) is the return plus tau times the sampled entropy
    torch.testing.assert_close(
        0.7 * (log_weight + start),
        torch.from_numpy(total).float() - 0.7 * log_density,
        rtol=1e-4,
        atol=1e-4,
    )


def test_the_same_pushes_give_the_kernels_own_weights():
    mdp = make_mdp()
    kernel = GaussianKernel(Network(mdp))
    with torch.no_grad():
        rollout = mdp.rollout(kernel, 5, mdp.generator(0), keep_states=True)
        env = SamplingVectorEnv(mdp, num_envs=5, noise=False, autoreset_mode="DISABLED")
        env.reset(seed=0)
        state = env.state_dict()
        x = rollout.states[0]
        env.load_state_dict(state | {"x": x, "log_weight": -mdp.start.log_prob(x)})
        log_density = torch.zeros(5)
        for t in range(mdp.num_steps):
            v = (rollout.states[t + 1] - mdp.chain.a[t] * rollout.states[t]) / mdp.chain.sigma[t]
            log_density += kernel.log_density(v, rollout.states[t], t)
            *_, infos = env.step(v.numpy())
    weight = torch.from_numpy(infos["log_path"]).float() - log_density
    torch.testing.assert_close(weight, rollout.log_weight, rtol=1e-4, atol=1e-3)


def test_a_single_environment_without_noise_is_deterministic_in_its_actions():
    env = SamplingEnv(Gaussian(), num_steps=2, noise=False)
    results = []
    for seed in (0, 1):
        env.reset(seed=seed)
        env._episodes.x.zero_()
        env.step(np.ones(2, np.float32))
        results.append(env.step(np.ones(2, np.float32)))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert "log_path" in results[0][4] and "log_weight" not in results[0][4]


def test_actions_of_particles_move_no_centre_of_mass():
    env = SamplingVectorEnv(DW4(), num_envs=3, num_steps=2)
    env.reset(seed=0)
    observation, *_ = env.step(np.ones((3, 8), np.float32))
    centre = observation[:, :8].reshape(3, 4, 2).mean(1)
    np.testing.assert_allclose(centre, 0.0, atol=1e-5)


def test_a_kernel_on_a_subspace_is_refused():
    mdp = SamplingMDP(DW4(), MDPConfig(num_steps=2))
    kernel = GaussianKernel(lambda x, t: (0 * x, 0 * x))
    with pytest.raises(ValueError, match="needs a Euclidean geometry; this one has 6 of 8"):
        mdp.rollout(kernel, 4, mdp.generator(0))


# --- features -----------------------------------------------------------------------------------


def test_features_are_the_same_in_the_environment_and_when_sampling():
    features = ("t", "score", "x", "energy")
    mdp = make_mdp(GMM9(), num_steps=4, temperature=0.5)
    env = SamplingVectorEnv(mdp, num_envs=5, features=features)
    observation, _ = env.reset(seed=0)
    assert env.single_observation_space.shape == (6,) and observation.shape == (5, 6)
    assert observation in env.observation_space
    observation, *_ = env.step(np.zeros((5, 2), np.float32))
    x = torch.from_numpy(observation[:, 3:5].copy())
    expected = Observation(mdp, features)(x, 1)
    np.testing.assert_allclose(observation, expected.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(observation[:, 0], 0.25)
    np.testing.assert_allclose(np.sinh(observation[:, 5]) * 0.5, GMM9()(x), rtol=1e-4, atol=1e-4)
    assert (np.linalg.norm(observation[:, 1:3], axis=1) < 10 * math.sqrt(2)).all()


@pytest.mark.parametrize(("features", "per_state"), [(("x", "t"), 0), (("energy",), 1)])
def test_energies_in_observations_are_counted(features, per_state):
    mdp = make_mdp(num_steps=3)
    env = SamplingVectorEnv(mdp, num_envs=4, features=features, autoreset_mode="DISABLED")
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.zeros((4, 2), np.float32))
    assert mdp.energy_evaluations == 4 * (1 + 4 * per_state)


@pytest.mark.parametrize("features", [(), ("x", "x"), ("x", "momentum")])
def test_unknown_features_are_refused_by_name(features):
    with pytest.raises(ValueError, match="features must be some of x, t, energy, score"):
        SamplingVectorEnv(Gaussian(), features=features)


def test_episodes_in_flight_go_on_from_a_saved_state():
    def make():
        return SamplingVectorEnv(Gaussian(), num_envs=3, num_steps=4)

    actions = np.ones((3, 2), np.float32)
    env, other = make(), make()
    env.reset(seed=0)
    env.step(actions)
    other.load_state_dict(env.state_dict())
    for _ in range(5):
        one, two = env.step(actions), other.step(actions)
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])


def test_a_ready_made_mdp_is_shared_and_takes_no_further_arguments():
    mdp = make_mdp()
    assert SamplingVectorEnv(mdp).mdp is mdp is SamplingEnv(mdp).mdp
    with pytest.raises(ValueError, match="SamplingMDP takes no energy_args"):
        SamplingVectorEnv(mdp, num_steps=5)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (SB3Config, r"needs stable_baselines3, .* pip install 'vgs-rl\[sb3\]'"),
        (TianshouConfig, r"needs tianshou, .* pip install 'vgs-rl\[tianshou\]'"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(kind, message, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=message):
        kind().build(make_mdp())
