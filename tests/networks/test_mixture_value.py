"""A value that begins as a mixture's, and what a guide adds to it."""

import copy

import pytest
import torch

from vgs_rl import Energy, MDPConfig, SamplingMDP
from vgs_rl.agents.value_gradient.agent import ValueGradientConfig
from vgs_rl.agents.value_gradient.objectives import GradientMatching
from vgs_rl.chain import ScheduleConfig
from vgs_rl.envs import GaussianMixture
from vgs_rl.networks.config import MixtureNetwork
from vgs_rl.networks.mixture import MixtureValue
from vgs_rl.starts import Mixture, NoisedMixtureStart, StartConfig


def source() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def chain(energy: Energy, components: int = 1, kind: str = "noised") -> SamplingMDP:
    start = StartConfig(kind=kind, components=components)  # type: ignore[arg-type]
    schedule = ScheduleConfig(kind="auto", total_noise=0.7)
    return SamplingMDP(energy, MDPConfig(num_steps=8, schedule=schedule, start=start))


def correlated() -> GaussianMixture:
    return GaussianMixture([[0.5, -0.5]], [[[1.5, 0.4], [0.4, 0.8]]])


@pytest.mark.parametrize("kind", ["noised", "noised_product"])
def test_untrained_it_is_the_value_of_the_start(kind: str) -> None:
    mdp = chain(correlated(), 3, kind)
    network = MixtureNetwork(width=8).build(mdp, prior_std=1.0, generator=source())
    x, t = torch.randn(20, 2, generator=source()), torch.arange(20) % 8
    start = mdp.start
    torch.testing.assert_close(network.value(x, t), start.value(x, t))  # type: ignore[operator]
    slope = start.value_gradient(x, t)  # type: ignore[operator]
    torch.testing.assert_close(network.gradient(x, t), slope)
    torch.testing.assert_close(network.gradient(x, 3), start.value_gradient(x, 3))  # type: ignore[operator]


def test_another_start_is_refused() -> None:
    mdp = chain(correlated(), 3, "mixture")
    with pytest.raises(ValueError, match="MixtureNetwork needs mdp.start.kind noised"):
        MixtureNetwork().build(mdp, prior_std=1.0, generator=source())


def test_a_guide_makes_up_for_a_start_that_is_off() -> None:
    """Of N(m, v) the value is linear in the field that the guide sees: least squares find it."""
    energy = GaussianMixture([[0.7, -0.4]], [[1.6, 0.6]])
    mdp = chain(energy)
    network = MixtureNetwork(width=8).build(mdp, prior_std=1.0, generator=source())
    assert isinstance(mdp.start, NoisedMixtureStart)
    t = torch.arange(4_000) % 8
    x = mdp.noised(energy.sample(4_000, source()), t, source())
    exact = torch.zeros_like(x)
    for step in range(8):
        exact[t == step] = energy.value_gradient(x[t == step], step, mdp.chain)
    before = (network.gradient(x, t) - exact).square().mean()
    network.fit_guide(x, t, exact)
    after = (network.gradient(x, t) - exact).square().mean()
    assert float(after.detach()) < 2e-2 * float(before.detach())


def test_copies_of_the_network_share_its_start() -> None:
    mdp = chain(correlated())
    network = MixtureNetwork(width=8).build(mdp, prior_std=1.0, generator=source())
    twin = copy.deepcopy(network)
    assert isinstance(mdp.start, NoisedMixtureStart) and isinstance(twin, MixtureValue)
    one = torch.ones(1, 2, dtype=torch.float64)
    mdp.start.become(
        Mixture(weights=one[0, :1], means=one, covariances=2 * torch.eye(2).double()[None])
    )
    x = torch.randn(5, 2, generator=source())
    torch.testing.assert_close(twin.gradient(x, 0), network.gradient(x, 0))


def test_it_is_learned_saved_and_loaded() -> None:
    energy = correlated()
    config = ValueGradientConfig(
        objective=GradientMatching(batch_size=64, first_size=512, start_size=512, refresh_size=256),
        network=MixtureNetwork(width=8),
    )
    agent = config.build(chain(energy), seed=1)
    agent.learn(updates=60, progress_bar=False)
    drawn = agent.sampler().sample(2_000, 3)
    assert drawn.ess > 0.9
    twin = config.build(chain(energy), seed=2)
    twin.load_state_dict(agent.state_dict())
    torch.testing.assert_close(twin.sampler().sample(100, 3).x, agent.sampler().sample(100, 3).x)
