import pytest
import torch

from vgs_rl.chain import Chain, ScheduleConfig
from vgs_rl.envs import GMM9, GaussianMixture
from vgs_rl.networks.base import ExactValue, SiluPair, TimeConditionedMLP

# Every optional part of the network in turn.
PARTS = [{}, {"radii": 5}, {"splines": 9}, {"radii": 2, "splines": 4}]


def make_network(
    chain: Chain, dim: int = 3, *, trained: bool = True, **parts: int
) -> TimeConditionedMLP:
    generator = torch.Generator().manual_seed(0)
    network = TimeConditionedMLP(
        chain, dim, prior_std=2.0, width=16, depth=3, generator=generator, **parts
    ).double()
    if trained:  # the read-out starts at zero: move it, so that the MLP matters
        with torch.no_grad():
            network.readout.copy_(torch.randn(16, generator=generator))
            network.offset.copy_(torch.randn(chain.num_steps, generator=generator))
            if network.splines:
                network.heights.copy_(torch.randn(network.heights.shape, generator=generator))
    return network


@pytest.fixture
def chain() -> Chain:
    return Chain.build(ScheduleConfig(kind="geometric", first=1.0, last=0.01), "ve", 7)


def test_silu_pair_is_silu_with_its_derivative_and_backward_passes() -> None:
    z = torch.linspace(-6, 6, 25, dtype=torch.float64, requires_grad=True)
    activation, slope = SiluPair.apply(z)
    (expected,) = torch.autograd.grad(torch.nn.functional.silu(z).sum(), z)
    torch.testing.assert_close(activation, torch.nn.functional.silu(z))
    torch.testing.assert_close(slope, expected)
    assert torch.autograd.gradcheck(SiluPair.apply, (z,))


@pytest.mark.parametrize("parts", PARTS)
def test_analytic_gradient_is_the_gradient_of_the_value(
    chain: Chain, parts: dict[str, int]
) -> None:
    network = make_network(chain, **parts)
    x = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 5
    x.requires_grad_(True)
    t = torch.arange(20) % chain.num_steps
    (expected,) = torch.autograd.grad(network.value(x, t).sum(), x)
    torch.testing.assert_close(network.gradient(x, t), expected)


@pytest.mark.parametrize("parts", PARTS)
def test_parameter_gradients_of_the_analytic_gradient_match_double_backward(
    chain: Chain, parts: dict[str, int]
) -> None:
    network = make_network(chain, **parts)
    x = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t = torch.arange(20) % chain.num_steps
    parameters = [*network.weights, network.embedding, network.readout]
    parameters += [network.radius] if network.radii else []
    parameters += [network.heights] if network.splines else []
    ours = torch.autograd.grad(network.gradient(x, t).square().sum(), parameters)
    x.requires_grad_(True)
    (slope,) = torch.autograd.grad(network.value(x, t).sum(), x, create_graph=True)
    expected = torch.autograd.grad(slope.square().sum(), parameters)
    for left, right in zip(ours, expected, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("parts", PARTS)
def test_one_step_for_all_rows_equals_one_step_per_row(chain: Chain, parts: dict[str, int]) -> None:
    network = make_network(chain, **parts)
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for t in (0, chain.num_steps - 1):
        per_row = torch.full((5,), t)
        torch.testing.assert_close(network.value(x, t), network.value(x, per_row))
        torch.testing.assert_close(network.gradient(x, t), network.gradient(x, per_row))


@pytest.mark.parametrize("parts", PARTS)
def test_untrained_network_is_the_exact_value_of_its_prior_gaussian(
    chain: Chain, parts: dict[str, int]
) -> None:
    network = make_network(chain, trained=False, **parts)
    target = GaussianMixture(torch.zeros(1, 3), torch.full((1, 3), 4.0))
    x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 3
    for t in range(chain.num_steps):
        torch.testing.assert_close(
            network.value(x, t), target.value(x, t, chain), rtol=1e-6, atol=0
        )
        torch.testing.assert_close(
            network.gradient(x, t), target.value_gradient(x, t, chain), rtol=1e-6, atol=1e-9
        )


def test_same_seed_gives_the_same_network(chain: Chain) -> None:
    one, other = make_network(chain).state_dict(), make_network(chain).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_splines_are_additive_over_coordinates(chain: Chain) -> None:
    network = make_network(chain, trained=False, splines=12)
    with torch.no_grad():
        network.heights.normal_(generator=torch.Generator().manual_seed(2))
    x = torch.randn(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = x.clone()
    y[:, 1:] += 1.0  # the slope in the first coordinate knows nothing of the others
    for t in (0, 3):
        one, other = network.gradient(x, t), network.gradient(y, t)
        torch.testing.assert_close(one[:, 0], other[:, 0])
        assert not torch.allclose(one[:, 1:], other[:, 1:])


def test_mixture_coefficients_are_the_best_of_the_prior_gaussian_before_training(
    chain: Chain,
) -> None:
    network = make_network(chain, trained=False)
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradient, mixture = network.gradient_and_mixture(x, torch.arange(7))
    torch.testing.assert_close(gradient, network.gradient(x, torch.arange(7)))
    best = 4.0 / (4.0 + chain.S[:-1] * chain.A[:-1] ** 2)  # ve: A = 1
    torch.testing.assert_close(mixture, best.unsqueeze(-1).expand(7, 3), rtol=1e-5, atol=0)


def test_exact_value_refuses_a_target_without_values(chain: Chain) -> None:
    from vgs_rl.energy import Energy

    class Bowl(Energy):
        dim = 2

        def energy(self, x: torch.Tensor) -> torch.Tensor:
            return x.square().sum(-1)

    with pytest.raises(ValueError, match="Bowl has no exact values"):
        ExactValue(Bowl(), chain)
    assert ExactValue(GMM9(), chain).gradient(torch.zeros(2, 2), 3).shape == (2, 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 0),
        ("depth", 0),
        ("radii", -1),
        ("splines", 3),
        ("prior_std", -1.0),
        ("prior_std", float("nan")),
    ],
)
def test_impossible_sizes_are_refused_by_name(chain: Chain, field: str, value: float) -> None:
    arguments = {"prior_std": 1.0, "width": 8, "depth": 2, field: value}
    with pytest.raises(ValueError, match=field):
        TimeConditionedMLP(chain, 2, generator=torch.Generator(), **arguments)  # type: ignore[arg-type]
