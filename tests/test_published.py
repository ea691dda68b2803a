import pytest
import torch

from vgs_rl.chain import Chain, ScheduleConfig
from vgs_rl.energy import Particles
from vgs_rl.published import PublishedFeatures, PublishedMLP


def make(width: int = 16, scale: float = 1.0) -> PublishedMLP:
    chain = Chain.build(ScheduleConfig(kind="constant", first=0.1), "vp", 6)
    generator = torch.Generator().manual_seed(0)
    return PublishedMLP(chain, 3, width=width, scale=scale, generator=generator).double()


def test_gradient_is_that_of_the_value_and_steps_agree_with_rows() -> None:
    network = make(scale=3.0)
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows = torch.full((8,), 4)
    torch.testing.assert_close(network.value(x, 4), network.value(x, rows))
    step = 1e-6
    for i in range(3):
        shift = torch.zeros(3, dtype=torch.float64)
        shift[i] = step
        slope = (network.value(x + shift, 4) - network.value(x - shift, 4)) / (2 * step)
        torch.testing.assert_close(network.gradient(x, 4)[:, i], slope, atol=1e-6, rtol=1e-5)
    assert not network.gradient(x, 4).requires_grad


def test_time_changes_the_value_and_scale_multiplies_it() -> None:
    x = torch.ones(1, 3, dtype=torch.float64)
    assert not torch.allclose(make().value(x, 0), make().value(x, 5))
    torch.testing.assert_close(make(scale=3.0).value(x, 2), 3 * make().value(x, 2))


def test_initialisation_is_seeded_and_leaves_the_global_rng_alone() -> None:
    state = torch.get_rng_state()
    one, other = make().state_dict(), make().state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(state, torch.get_rng_state())


def test_an_impossible_width_is_refused() -> None:
    with pytest.raises(ValueError, match="width must be even and at least 4, got 3"):
        make(width=3)


@pytest.mark.parametrize("features", ["distances", "reciprocals"])
def test_particle_features_make_it_invariant(features: PublishedFeatures) -> None:
    chain = Chain.build(ScheduleConfig(kind="constant", first=0.1), "ve", 6)
    network = PublishedMLP(
        chain,
        12,
        width=16,
        particles=Particles(4, 3),
        features=features,
        multiply_time=True,
        generator=torch.Generator().manual_seed(0),
    ).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 4, 3, dtype=torch.float64, generator=generator)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator)).Q
    moved = (x[:, [2, 0, 3, 1]] @ rotation + 0.7).flatten(1)
    torch.testing.assert_close(network.value(moved, 2), network.value(x.flatten(1), 2))
    assert not torch.allclose(network.value(moved, 2), network.value(1.1 * moved, 2))


def test_particle_features_need_particles() -> None:
    chain = Chain.build(ScheduleConfig(kind="constant", first=0.1), "ve", 6)
    with pytest.raises(ValueError, match="features 'distances' needs a target of particles"):
        PublishedMLP(chain, 2, width=16, features="distances", generator=torch.Generator())
