import math

import pytest
import torch

from vgs_rl import SamplingMDP
from vgs_rl.agents import ValueGradientAgent
from vgs_rl.chain import Chain, ScheduleConfig
from vgs_rl.energy import Particles
from vgs_rl.experiments.config import config_of, parse_run
from vgs_rl.experiments.run import build
from vgs_rl.networks.paper import PublishedFeatures, PublishedForm, PublishedMLP


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
        form="multiplied",
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


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def published(name: str) -> tuple[PublishedMLP, SamplingMDP]:
    """The untrained network and the MDP of a file of configs/paper."""
    config = config_of(parse_run(["--config", f"configs/paper/{name}.yaml"]))
    agent = build(config)[1]
    assert isinstance(agent, ValueGradientAgent)
    assert isinstance(agent.network, PublishedMLP)
    return agent.network, agent.mdp


@pytest.mark.parametrize(
    ("name", "count"),
    [("funnel10", 3_160_065), ("lj13", 2_206_721), ("gmm9", 6_300_673), ("dw4", 1_579_521)],
)
def test_networks_have_as_many_parameters_as_the_authors_own(name: str, count: int) -> None:
    assert parameters(published(name)[0]) == count


@pytest.mark.parametrize(
    ("name", "scale"),
    [("funnel10", 2.499), ("dw4", 1.431), ("lj13", 1.349), ("gmm9", 1.0), ("gmm4", 1.0)],
)
def test_ve_chains_begin_at_the_noised_unit_gaussian(name: str, scale: float) -> None:
    mdp = published(name)[1]
    if mdp.config.chain == "ve":
        assert scale == pytest.approx(math.sqrt(1 + float(mdp.chain.s.square().sum())), abs=6e-4)
    assert mdp.start.scale.item() == pytest.approx(scale, abs=6e-4)


def sinusoids(t: int, count: int) -> torch.Tensor:
    """sin and cos of t at frequencies from 1 down to 1e-4, as transformers have them."""
    frequencies = torch.logspace(0, -4, count // 2, dtype=torch.float64)
    return torch.cat([(t * frequencies).sin(), (t * frequencies).cos()])


def by_hand(network: PublishedMLP, x: torch.Tensor, t: int) -> torch.Tensor:
    """V_t of one state, written from the paper's description."""
    weights = {name: value.detach() for name, value in network.named_parameters()}

    def affine(name: str, h: torch.Tensor) -> torch.Tensor:
        return weights[f"{name}.weight"] @ h + weights[f"{name}.bias"]

    time = sinusoids(t, network.embedding.shape[1])
    if network.form == "joined":
        h = torch.cat([x, time])
        for i in (0, 2, 4):
            h = affine(f"head.{i}", h).clamp_min(0)
        return network.scale * affine("head.6", h)
    if network.form == "embedded":
        for i in (0, 2):
            time = affine(f"time.{i}", time).clamp_min(0)
        h = torch.cat([affine("state", x), affine("time.4", time)])
        for i in (0, 2):
            h = affine(f"head.{i}", h).clamp_min(0)
        return network.scale * affine("head.4", h)
    time = affine("time", time)
    h = torch.cat([affine("state", x), affine("added", time)]).clamp_min(0)
    h = affine("body.0", h).clamp_min(0)
    h = affine("body.2", h) * affine("factor", time)
    return network.scale * affine("head.0", h)


@pytest.mark.parametrize("form", ["embedded", "joined", "multiplied"])
@pytest.mark.parametrize("count", [None, 6])
def test_every_form_is_the_published_formula(form: PublishedForm, count: int | None) -> None:
    chain = Chain.build(ScheduleConfig(kind="constant", first=0.1), "vp", 6)
    generator = torch.Generator().manual_seed(0)
    network = PublishedMLP(
        chain, 3, width=8, sinusoids=count, scale=2.0, form=form, generator=generator
    ).double()
    x = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    for t in (0, 5):
        expected = torch.cat([by_hand(network, row, t) for row in x])
        torch.testing.assert_close(network.value(x, t), expected, rtol=1e-5, atol=1e-6)
        rows = torch.full((4,), t)
        torch.testing.assert_close(network.value(x, rows), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("features", "form"), [("distances", "embedded"), ("reciprocals", "multiplied")]
)
def test_particle_features_are_distances_from_the_largest_down(
    features: PublishedFeatures, form: PublishedForm
) -> None:
    chain = Chain.build(ScheduleConfig(kind="constant", first=0.1), "ve", 6)
    generator = torch.Generator().manual_seed(0)
    network = PublishedMLP(
        chain, 6, width=8, particles=Particles(3, 2), features=features, form=form,
        generator=generator,
    ).double()  # fmt: skip
    x = torch.tensor([0.0, 0.0, 3.0, 4.0, 3.0, 0.0], dtype=torch.float64)  # distances 5, 3, 4
    seen = torch.tensor([26.0, 17.0, 10.0], dtype=torch.float64).sqrt()
    seen = 1 / seen if features == "reciprocals" else seen
    torch.testing.assert_close(network.value(x[None], 2), by_hand(network, seen, 2))
