"""The guide towards the mode of the posterior: symmetric, bounded, learned, and at first silent."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_clusters import APART, CHAINS, ENERGIES, check_parameter_gradients, make_network, states
from torch import Tensor

from vgs_rl import MDPConfig, SamplingMDP, ScheduleConfig
from vgs_rl.agents import (
    TD0,
    ClusterNetwork,
    GradientMatching,
    ValueGradientConfig,
)
from vgs_rl.chain import Chain
from vgs_rl.envs.targets.particles import DW4, LennardJones, ParticleEnergy
from vgs_rl.networks.clusters import positions_first
from vgs_rl.networks.guide import GuidedValue, ModeGuide


def make_guided(
    energy: ParticleEnergy, chain: Chain = CHAINS["ve"], *, trained: bool = True
) -> GuidedValue:
    generator = torch.Generator().manual_seed(3)
    guide = ModeGuide(chain, energy, steps=8, width=10, knots=4, generator=generator)
    guided = GuidedValue(make_network(energy, chain), guide.double())
    if trained:
        with torch.no_grad():
            for parameter in guide.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return guided


@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 2**31), name=st.sampled_from(sorted(ENERGIES)))
def test_a_guided_gradient_is_equivariant_and_moves_no_centre_of_mass(seed: int, name: str) -> None:
    energy = ENERGIES[name]
    n, d = energy.symmetry  # type: ignore[misc]
    guided = make_guided(energy)
    generator = torch.Generator().manual_seed(seed)
    x = states(energy, 6, seed).view(6, n, d)
    matrix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(matrix).Q
    order = torch.randperm(n, generator=generator)
    shift = torch.randn(6, 1, d, generator=generator, dtype=torch.float64)
    moved = (x[:, order] @ rotation + shift).flatten(1)
    t = torch.randint(12, (6,), generator=generator)
    gradient = guided.gradient(x.flatten(1), t).view(6, n, d)
    torch.testing.assert_close(gradient.mean(1), torch.zeros(6, d).double(), atol=1e-8, rtol=0)
    torch.testing.assert_close(
        guided.gradient(moved, t), (gradient[:, order] @ rotation).flatten(1), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_an_untrained_guide_adds_nothing_and_the_value_is_the_networks(chain: Chain) -> None:
    guided = make_guided(ENERGIES["LJ"], chain, trained=False)
    x, t = states(ENERGIES["LJ"], 24), torch.arange(24) % 12
    torch.testing.assert_close(guided.gradient(x, t), guided.network.gradient(x, t))
    trained = make_guided(ENERGIES["LJ"], chain)
    assert not torch.allclose(trained.gradient(x, t), guided.gradient(x, t), rtol=0.01)
    torch.testing.assert_close(trained.value(x, t), guided.value(x, t))


def test_the_descent_ends_near_a_mode_of_the_posterior() -> None:
    energy = LennardJones(6)
    chain = CHAINS["ve"]
    guide = ModeGuide(chain, energy, steps=400, knots=4, generator=torch.Generator()).double()
    generator = torch.Generator().manual_seed(1)
    x_T = 0.7 * states(energy, 64)
    for _ in range(3000):  # somewhere near the target
        x_T = x_T - 2e-4 * energy.energy_and_gradient(x_T)[1].clamp(-50, 50)
    t = torch.full((64,), 8)
    noise = guide.noise[8]
    x = x_T + noise.sqrt() * energy.geometry.project(
        torch.randn(x_T.shape, generator=generator, dtype=torch.float64)
    )
    y = positions_first(x, 6)
    fields = guide.fields(y, t)
    moved, force = fields[7], fields[8]  # of the last stage, in units of the noise
    pull = moved + force + noise.sqrt() * guide.trap * (y + noise.sqrt() * moved)
    assert float(pull.norm(dim=1).median()) < 0.02
    # The mode is nearer to where the particles came from than where they were found.
    m = y + noise.sqrt() * moved
    before = (y - positions_first(x_T, 6)).square().sum((0, 1))
    after = (m - positions_first(x_T, 6)).square().sum((0, 1))
    assert float((after / before).median()) < 0.7


def test_fields_are_bounded_where_particles_coincide() -> None:
    energy = ENERGIES["LJ"]
    guided = make_guided(energy)
    x = torch.zeros(12, energy.dim, dtype=torch.float64)
    x[:, 0], x[:, 3] = 1e-6, -1e-6
    t = torch.arange(12)
    slope = torch.full_like(x, 1e9)
    fields = guided.guide._all_fields(x, t, slope)
    assert bool(torch.isfinite(fields).all())
    assert float(fields.square().sum(1).sqrt().max()) <= ModeGuide.LONGEST * (1 + 1e-6)


def test_batches_split_into_parts_and_whole_steps_mean_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    energy = ENERGIES["DW"]
    guided, x = make_guided(energy, CHAINS["vp"]), states(energy, 150)
    whole = guided.gradient(x, 5)
    torch.testing.assert_close(guided.gradient(x, torch.full((150,), 5)), whole)
    monkeypatch.setattr("vgs_rl.networks.clusters.ClusterValue.PART", 1)
    torch.testing.assert_close(guided.gradient(x, 5), whole)
    gradient, mixture = guided.gradient_and_mixture(x, torch.full((150,), 5))
    torch.testing.assert_close(gradient, whole)
    assert mixture.shape == (150, 1)


def test_the_guided_gradient_is_differentiable_by_every_parameter() -> None:
    energy = ENERGIES["LJ"]
    guided = make_guided(energy)
    x, t, weight = states(energy, 24), torch.arange(24) % 12, states(energy, 24, seed=4)

    def loss() -> Tensor:
        return (guided.gradient(x, t) * weight).sum()

    own = ("network.offset", "network.mixture_bias")
    check_parameter_gradients(guided, loss, own)


def test_calibration_scales_every_field() -> None:
    energy = ENERGIES["LJ"]
    guided = make_guided(energy, APART)
    x, t = states(energy, 600), torch.arange(600) % 12
    guided.calibrate(x, t)
    fields = guided.guide._all_fields(x, t, guided.network.gradient(x, t))
    rms = fields[..., t == 3].square().sum(1).mean((1, 2)).sqrt()
    torch.testing.assert_close(rms, guided.guide.field_scale[3], rtol=1e-3, atol=1e-6)


def test_a_guide_is_refused_where_it_cannot_serve() -> None:
    with pytest.raises(ValueError, match=r"network.guide must be at least 4, got 3"):
        ClusterNetwork(guide=3)
    with pytest.raises(ValueError, match="at least 4 steps, got 2"):
        ModeGuide(CHAINS["ve"], ENERGIES["LJ"], steps=2, generator=torch.Generator())
    with pytest.raises(ValueError, match="guide needs the objective GradientMatching, got TD0"):
        ValueGradientConfig(network=ClusterNetwork(guide=8), objective=TD0())


def test_a_guide_learns() -> None:
    schedule = ScheduleConfig(kind="geometric", first=1.0, last=0.005)
    mdp = SamplingMDP(DW4(), MDPConfig(chain="ve", num_steps=12, schedule=schedule))
    network = ClusterNetwork(near=1.0, reach=8.0, radial=8, width=16, knots=4, guide=4)
    objective = GradientMatching(batch_size=120, refine_steps=5, capacity=256, posterior_steps=2)
    agent = ValueGradientConfig(objective=objective, network=network, prior_std=2.0).build(mdp)
    loss, _ = agent.objective.loss(agent)
    loss.backward()
    guided = agent.network
    assert isinstance(guided, GuidedValue)
    assert float(guided.guide.linear.grad.abs().max()) > 0  # type: ignore[union-attr]
