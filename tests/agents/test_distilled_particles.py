"""Students of particles: kernels that turn and exchange with them, and weights that are exact."""

import math
import sys

import pytest
import torch
from springs import Springs
from torch.distributions import MultivariateNormal

import vgs_rl
from vgs_rl import MDPConfig, SamplingMDP, ScheduleConfig, StartConfig
from vgs_rl.agents import DistilledAgent, DistilledConfig, ExactSampler
from vgs_rl.agents.distilled.clusters import ClusterStudent
from vgs_rl.agents.distilled.orbits import OrbitStudent


def student(n: int = 3, d: int = 2, steps: int = 2, seed: int = 1) -> DistilledAgent:
    """A student whose weights are stirred, so that it is not what it begins as."""
    config = MDPConfig(
        chain="ve",
        num_steps=steps,
        schedule=ScheduleConfig(total_noise=2.0),
        start=StartConfig(scale=1.8, learned=False),
    )
    mdp = SamplingMDP(Springs(n, d), config)
    agent = DistilledConfig(width=8, depth=2, components=3).build(mdp, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in agent.average.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return agent


def states(agent: DistilledAgent, count: int) -> torch.Tensor:
    return 1.5 * agent.mdp.noise(count, torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("n", "d"), [(2, 1), (3, 2), (4, 3)])
def test_the_density_is_that_of_gaussians_on_centred_states(n: int, d: int) -> None:
    agent = student(n, d)
    network, x = agent.average, states(agent, 20)
    assert isinstance(network, ClusterStudent)
    with torch.no_grad():
        kernel = network.components(x, 1)
        v = kernel.sample(torch.Generator().manual_seed(4))
        found = kernel.log_density(v)
    precision = (kernel.factor @ kernel.factor.mT).double()
    each = MultivariateNormal(kernel.mean.double(), precision_matrix=precision)
    inside = (v @ kernel.basis).double().unsqueeze(1)
    expected = torch.logsumexp(each.log_prob(inside) + kernel.log_weight.double(), 1)
    assert torch.allclose(found.double(), expected, atol=1e-3)
    assert torch.allclose(v.unflatten(1, (n, d)).sum(1), torch.zeros(()), atol=1e-4)
    gram = kernel.basis.T @ kernel.basis
    assert torch.allclose(gram, torch.eye((n - 1) * d), atol=1e-5)


@pytest.mark.parametrize("d", [2, 3])
def test_the_kernel_turns_mirrors_and_exchanges_with_the_particles(d: int) -> None:
    agent = student(4, d)
    network, x = agent.average, states(agent, 20)
    v = agent.mdp.noise(20, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(6)
    turn = torch.linalg.qr(torch.randn(d, d, generator=generator))[0]
    order = torch.randperm(4, generator=generator)

    def moved(y: torch.Tensor) -> torch.Tensor:
        return (y.unflatten(1, (4, d)) @ turn)[:, order].flatten(1)

    with torch.no_grad():
        one, other = network.components(x, 0), network.components(moved(x), 0)
        assert torch.allclose(one.log_density(v), other.log_density(moved(v)), atol=1e-3)
        assert torch.allclose(moved(one.centre()), other.centre(), atol=1e-4)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_mean_weight_is_z(steps: int) -> None:
    if steps == 1:
        pytest.importorskip("zuko")
    agent = student(steps=steps)
    log_weight = agent.sampler().sample(30_000, 0).log_weight
    assert log_weight is not None
    w = (log_weight.double() - 2 * math.log(2 * math.pi)).exp()  # four dimensions
    assert abs(float(w.mean()) - 1) < 4.5 * float(w.std()) / math.sqrt(len(w))


def test_weights_of_exact_states_are_those_of_paths_drawn_backwards() -> None:
    """E[1/w] over them is 1/Z."""
    agent = student()
    x = agent.mdp.energy.sample(30_000, torch.Generator().manual_seed(0))
    log_weight = agent.sampler().reverse_log_weight(x, torch.Generator().manual_seed(1))
    inverse = (2 * math.log(2 * math.pi) - log_weight.double()).exp()
    assert abs(float(inverse.mean()) - 1) < 4.5 * float(inverse.std()) / math.sqrt(len(x))


@pytest.mark.parametrize("n", [3, 4])
def test_a_density_averaged_over_orbits_is_invariant_and_that_of_its_draws(n: int) -> None:
    pytest.importorskip("zuko")
    agent = student(n, 2, steps=1)
    network = agent.average
    assert isinstance(network, OrbitStudent)
    generator = torch.Generator().manual_seed(6)
    turn = torch.linalg.qr(torch.randn(2, 2, generator=generator))[0]
    x = states(agent, 50)
    moved = (x.unflatten(1, (n, 2)) @ turn)[:, torch.randperm(n, generator=generator)].flatten(1)
    with torch.no_grad():
        found = network.log_prob(agent.mdp, x)
        assert torch.allclose(found, network.log_prob(agent.mdp, moved), atol=1e-3)
        drawn, log_weight = network.draw(agent.mdp, 50, generator)
        again = -agent.mdp.evaluate_energy(drawn) - network.log_prob(agent.mdp, drawn)
    assert torch.allclose(log_weight, again, atol=1e-4)
    assert torch.allclose(drawn.unflatten(1, (n, 2)).sum(1), torch.zeros(()), atol=1e-4)


def test_coordinates_without_a_frame_give_their_states_back() -> None:
    pytest.importorskip("zuko")
    agent = student(4, 2, steps=1)
    network = agent.average
    assert isinstance(network, OrbitStudent)
    u = 0.5 * torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    x = network.states(u, torch.Generator().manual_seed(1))
    images, log_square = network.images(x)
    assert images.shape == (30, 48, 5)
    gap = (images - u.unsqueeze(1)).abs().amax(-1)
    assert float(gap.min(1).values.max()) < 1e-4
    assert torch.allclose(log_square, 2 * images[..., 0], atol=1e-5)


def test_one_step_of_few_particles_needs_zuko(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zuko", None)
    energy = Springs(3, 2)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'vgs-rl\[flows\]'"):
        vgs_rl.distill(ExactSampler(energy), energy, steps=1)


@pytest.mark.slow
def test_one_step_of_four_wells_has_half_of_its_samples() -> None:
    teacher = vgs_rl.load_sampler("DW4")
    agent = vgs_rl.distill(teacher, steps=1, states=4_000, updates=0)
    drawn = agent.sample(10_000)
    assert drawn.ess > 0.5 and drawn.log_weight is not None
    log_z = torch.logsumexp(drawn.log_weight.double(), 0) - math.log(10_000)
    assert float(log_z) == pytest.approx(29.6672, abs=0.05)  # by quadrature


def test_a_student_of_particles_learns_and_one_step_in_space_needs_no_library() -> None:
    energy = Springs(3, 3)
    exact = ExactSampler(energy)

    def ess(updates: int) -> float:
        with pytest.warns(UserWarning, match="no log-weights"):
            agent = vgs_rl.distill(
                exact, energy, steps=1, updates=updates, states=2_000, progress_bar=False
            )
        return agent.sample(4_000).ess

    assert ess(60) > 0.95
