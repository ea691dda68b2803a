"""Supports: densities on parts of R^D and on circles keep their Z in coordinates on all of R^D."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_coordinates import check_map, check_pull_back, generator, normal, saved_and_loaded
from torch import Tensor, distributions
from torch.distributions import constraints

from vgs_rl import FunctionEnergy
from vgs_rl.exploration import MappedEnergy, MappedReference, Support, periodic, support_of


def grid(dim: int, reach: float, points: int) -> tuple[Tensor, float]:
    """Points of a cube (n, D) and the log of the volume of each."""
    axis = torch.linspace(-reach, reach, points, dtype=torch.float64)
    cells = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    return cells, dim * math.log(float(axis[1] - axis[0]))


def log_z(energy: MappedEnergy, reach: float = 40.0, points: int = 4001) -> float:
    z, log_volume = grid(energy.dim, reach, points)
    return float((-energy(z)).logsumexp(0)) + log_volume


BOUNDED: dict[str, tuple[int, dict[str, Any]]] = {
    "interval": (2, {"bounds": (-1, [2.0, 3.0])}),
    "mixed": (4, {"bounds": ([0, None, -math.inf, 1], [1, 5.0, None, math.inf])}),
    "positive": (3, {"support": constraints.positive}),
    "unit": (2, {"support": constraints.unit_interval}),
    "less": (2, {"support": [constraints.less_than(-3.0), None]}),
    "half open": (1, {"support": [constraints.half_open_interval(2.0, 4.0)]}),
    "vectors": (2, {"support": constraints.greater_than(torch.tensor([-1.0, 7.0]))}),
    "real": (2, {"support": constraints.real_vector}),
    "independent": (2, {"support": constraints.independent(constraints.nonnegative, 1)}),
    "nothing": (2, {}),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_supports_are_inverted_and_their_jacobian_and_gradients_are_right(name: str) -> None:
    dim, arguments = BOUNDED[name]
    check_map(support_of(dim, **arguments), 2 * normal(20, dim))


@pytest.mark.parametrize("name", BOUNDED)
def test_states_lie_in_the_support(name: str) -> None:
    dim, arguments = BOUNDED[name]
    coordinates = support_of(dim, **arguments)
    x = coordinates.to_x(5 * normal(200, dim))
    assert ((x > coordinates.low) & (x < coordinates.high)).all()


MIXED = [(constraints.simplex, 3), constraints.positive, (constraints.simplex, 2), None]


def test_a_simplex_has_the_density_of_all_but_its_last_coordinate() -> None:
    coordinates = support_of(7, support=MIXED)
    assert (coordinates.dim_z, coordinates.dim_x) == (5, 7)
    z = normal(20, 5)
    x, log_det = coordinates.with_log_det(z)
    torch.testing.assert_close(x[:, :3].sum(-1), torch.ones(20).double())
    torch.testing.assert_close(x[:, 4:6].sum(-1), torch.ones(20).double())
    torch.testing.assert_close(x[:, 6], z[:, 4])
    torch.testing.assert_close(coordinates.to_z(x), z)
    free = [0, 1, 3, 4, 6]
    jacobian = torch.autograd.functional.jacobian(lambda v: coordinates.to_x(v)[:, free].sum(0), z)
    torch.testing.assert_close(log_det, jacobian.movedim(1, 0).slogdet().logabsdet)
    check_pull_back(coordinates, z)
    torch.testing.assert_close(saved_and_loaded(coordinates).to_x(z), x, rtol=0, atol=0)


@pytest.mark.parametrize("alpha", [[2.0, 3.0], [1.5, 2.5, 4.0]])
def test_log_z_of_a_dirichlet_is_exact(alpha: list[float]) -> None:
    power = torch.tensor(alpha, dtype=torch.float64) - 1
    energy = FunctionEnergy(lambda x: -(power * x.log()).sum(-1), len(alpha))
    mapped = MappedEnergy(energy, support_of(len(alpha), support=constraints.simplex))
    exact = sum(math.lgamma(a) for a in alpha) - math.lgamma(sum(alpha))
    assert log_z(mapped, 25.0, 1001) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize(
    ("distribution", "support"),
    [
        (distributions.Gamma(2.5, 3.0), constraints.positive),
        (distributions.Beta(0.7, 3.0), constraints.unit_interval),
        (distributions.Uniform(-2.0, 5.0), constraints.interval(-2.0, 5.0)),
        (distributions.Pareto(1.5, 4.0), constraints.greater_than_eq(1.5)),
        (distributions.VonMises(1.0, 3.0), periodic(2 * math.pi, -math.pi)),
        (distributions.VonMises(3.0, 9.0), periodic(low=-1.0)),
    ],
    ids=lambda each: type(each).__name__,
)
def test_the_density_of_a_distribution_has_z_one(distribution: Any, support: Any) -> None:
    energy = FunctionEnergy(lambda x: -distribution.log_prob(x).squeeze(-1), 1)
    mapped = MappedEnergy(energy, support_of(1, support=support))
    assert log_z(mapped, 60.0, 120_001) == pytest.approx(0.0, abs=1e-5)


def test_z_is_the_same_on_a_cylinder() -> None:
    """exp(cos(θ) - h²/2 - ½ h sin(θ)) in θ on a circle and h on a line."""

    def energy(x: Tensor) -> Tensor:
        angle, h = x[:, 0], x[:, 1]
        return -angle.cos() + 0.5 * h.square() + 0.5 * h * angle.sin()

    mapped = MappedEnergy(FunctionEnergy(energy, 2), support_of(2, support=[periodic(), None]))
    angle = torch.arange(1000, dtype=torch.float64) * (2 * math.pi / 1000)
    of_angle = angle.cos() + 0.125 * angle.sin().square() + 0.5 * math.log(2 * math.pi)
    exact = float(of_angle.logsumexp(0)) + math.log(2 * math.pi / 1000)
    assert log_z(mapped, 20.0, 1001) == pytest.approx(exact, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.floats(-20, 20), st.floats(0.1, 50), st.floats(-5, 5))
def test_the_weights_of_all_windings_sum_to_one(u: float, period: float, low: float) -> None:
    circle = support_of(1, support=periodic(period, low))
    windings = u * period + period * torch.arange(-90, 91, dtype=torch.float64).unsqueeze(-1)
    x, log_weight = circle.with_log_det(windings)
    assert float(log_weight.logsumexp(0)) == pytest.approx(0.0, abs=1e-10)
    gap = (x - x[0]) / period
    torch.testing.assert_close(gap - gap.round(), torch.zeros_like(x), atol=1e-9, rtol=0)
    assert ((x >= low - 1e-9) & (x <= low + period + 1e-9)).all()


def test_a_winding_is_drawn_with_its_weight() -> None:
    """At a third of a period and near the end, where two windings share."""
    circle = support_of(2, support=periodic(3.0, 1.0))
    x = torch.tensor([2.0, 3.9], dtype=torch.float64).expand(40_000, 2)
    u = circle.to_z(x, generator())
    torch.testing.assert_close(circle.to_x(u), x)
    for i in range(2):
        at = x[0, i] + 3.0 * torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
        weight = support_of(1, support=periodic(3.0, 1.0)).with_log_det(at)[1].exp()
        share = torch.stack([(u[:, i] - a).abs().lt(1.0) for a in at[:, 0]]).double().mean(-1)
        torch.testing.assert_close(share, weight, atol=5 * math.sqrt(0.25 / 40_000), rtol=0)
    with pytest.raises(ValueError, match="to_z needs a generator where angles have many windings"):
        circle.to_z(x)


def test_angles_keep_gradients_and_their_state() -> None:
    circle = support_of(3, support=[periodic(), None, periodic(0.5, 3.0)])
    u = 2 * normal(20, 3)
    x = circle.to_x(u)

    def value(u: Tensor) -> Tensor:
        x, log_weight = circle.with_log_det(u)
        return x[:, 0].cos() + x[:, 1] * (4 * math.pi * x[:, 2]).sin() - log_weight

    leaf = x.clone().requires_grad_(True)
    energy = leaf[:, 0].cos() + leaf[:, 1] * (4 * math.pi * leaf[:, 2]).sin()
    (gradient,) = torch.autograd.grad(energy.sum(), leaf)
    found = circle.pull_back(u, gradient)
    for i in range(3):
        step = torch.zeros_like(u)
        step[:, i] = 1e-6
        expected = (value(u + step) - value(u - step)) / 2e-6
        torch.testing.assert_close(found[:, i], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(saved_and_loaded(circle).to_x(u), x, rtol=0, atol=0)


def test_any_number_is_an_angle() -> None:
    circle = support_of(1, support=periodic())
    x = torch.tensor([[-1.0], [7.0], [100.0]], dtype=torch.float64)
    back = circle.to_x(circle.to_z(x, generator()))
    torch.testing.assert_close(back.cos(), x.cos())
    torch.testing.assert_close(back.sin(), x.sin())


def test_a_prior_on_the_support_is_a_density_of_z() -> None:
    prior = distributions.Gamma(torch.tensor([2.0, 5.0]), torch.tensor([1.0, 2.0]))
    reference = MappedReference(prior, support_of(2, support=prior.support))
    z, log_volume = grid(2, 25.0, 1001)
    assert float((-reference.level(z)[0]).logsumexp(0)) + log_volume == pytest.approx(0, abs=1e-5)


def test_a_prior_of_angles_is_sampled_over_all_windings() -> None:
    """The mean cosine of a von Mises of concentration 1 is I_1(1)/I_0(1)."""
    circle = support_of(1, support=periodic())
    prior = distributions.VonMises(torch.zeros(1), torch.ones(1))
    u = MappedReference(prior, circle).sample(4_000, generator())
    assert float(circle.to_x(u).cos().mean()) == pytest.approx(0.4464, abs=0.05)
    assert (u < 0).any() and (u > 2 * math.pi).any()


def test_a_bound_itself_is_the_nearest_number_within() -> None:
    coordinates = support_of(4, bounds=([0, 0, None, None], [1, None, 2, None]))
    x = torch.tensor([[1.0, 0.0, 2.0, 9.0], [0.0, 1.0, 1.0, 0.0]])
    z = coordinates.to_z(x)
    assert z.isfinite().all()
    torch.testing.assert_close(coordinates.to_x(z), x.double())
    corner = torch.tensor([[1.0, 0.0, 0.0]])
    simplex = support_of(3, support=constraints.simplex)
    torch.testing.assert_close(simplex.to_x(simplex.to_z(corner)), corner.double())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bounds": (0, 1), "support": constraints.real}, "give either bounds or support"),
        ({"bounds": 3}, r"bounds must be a pair \(low, high\), got 3"),
        ({"bounds": (0, [1, 2])}, "bounds high must be a number or 3 of them, got 2"),
        ({"bounds": ([0, 2, 0], 1)}, "low must be below high in coordinate 1, got 2, 1"),
        ({"bounds": (math.inf, math.inf)}, "low must be below high in coordinate 0, got inf, inf"),
        ({"bounds": (math.nan, 1)}, "bounds low must not be NaN"),
        ({"bounds": ("zero", 1)}, "bounds low must be a number or a sequence of them, got 'zero'"),
        ({"support": constraints.interval(1.0, 0.0)}, "support: bounds must be .* got 1, 0"),
        ({"support": [None] * 2}, "support must cover the 3 coordinates, got 2"),
        ({"support": [(constraints.simplex, 2)]}, "support must cover the 3 coordinates, got 2"),
        (
            {"support": [None, (constraints.simplex, 1), None]},
            r"support\[1\] is a simplex, which needs at least 2 coordinates, got 1",
        ),
        (
            {"support": [None, None, constraints.simplex]},
            r"support\[2\] is a simplex of what is left, at least 2 of the 3 coordinates, got 1",
        ),
        ({"support": [constraints.simplex] * 2}, r"only one simplex may be without its size"),
        ({"support": constraints.corr_cholesky}, r"support must be None, .* got CorrCholesky\(\)"),
        ({"support": [None, None, constraints.boolean]}, r"support\[2\] must be .* got Boolean"),
        ({"support": [None, ("positive", 2)]}, r"support\[1\] must be None, .* got 'positive'"),
        ({"support": [None, (None, 0)]}, r"support\[1\] k must be at least 1, got 0"),
    ],
)
def test_what_is_no_support_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        support_of(3, **arguments)


def test_a_period_is_positive() -> None:
    with pytest.raises(ValueError, match=r"periodic.period must be a positive number, got 0"):
        periodic(0)
    with pytest.raises(ValueError, match=r"periodic.low must be finite, got nan"):
        periodic(1.0, math.nan)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1.3, 1.0, 0.5, 0.5], r"coordinate 0 must lie in \[0, 1\], got 1.3 in row 1"),
        ([0.5, -2.0, 0.5, 0.5], r"coordinate 1 must lie in \[0, inf\], got -2 in row 1"),
        ([0.5, math.nan, 0.5, 0.5], r"coordinate 1 must lie in \[0, inf\], got nan in row 1"),
        ([0.5, 1.0, 0.6, 0.5], r"coordinates 2 to 3 must sum to 1, got 1.1 in row 1"),
    ],
)
def test_states_outside_the_support_are_refused(row: list[float], message: str) -> None:
    kinds = [constraints.unit_interval, constraints.positive, constraints.simplex]
    coordinates = support_of(4, support=kinds)
    with pytest.raises(ValueError, match=message):
        coordinates.to_z(torch.tensor([[0.5, 1.0, 0.5, 0.5], row]))
    with pytest.raises(ValueError, match=r"x must have shape \(B, 4\), got \(2, 3\)"):
        coordinates.to_z(torch.zeros(2, 3))


def test_a_state_whose_bounds_do_not_fit_is_refused() -> None:
    state = support_of(2, bounds=(0, 1)).state_dict()
    with pytest.raises(ValueError, match="coordinates.sizes must fit names, low and high"):
        Support.from_state({**state, "sizes": [1]})
    with pytest.raises(ValueError, match="coordinates.sizes must be positive numbers, got"):
        Support.from_state({**state, "sizes": ["2"]})
    with pytest.raises(ValueError, match="a block must be one of real, .* got 'os.system'"):
        Support.from_state({**state, "names": ["os.system"]})
    with pytest.raises(ValueError, match="bounds of real do not fit it"):
        Support.from_state({**state, "names": ["real"]})
