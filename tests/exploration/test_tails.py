"""Tails: a Student-t target is a standard normal, any other stays exact, and a fit is careful."""

import math

import pytest
import torch
from test_coordinates import check_map, generator, normal
from torch import Tensor

from vgs_rl import FunctionEnergy
from vgs_rl.exploration import MappedEnergy, TailFit, Tails, fit_tails, load_coordinates

N = 2_000


def student(nu: float, dim: int) -> FunctionEnergy:
    """-log of a standard multivariate t, so that log Z = 0."""
    constant = (
        math.lgamma(nu / 2) - math.lgamma((nu + dim) / 2) + 0.5 * dim * math.log(nu * math.pi)
    )

    def energy(x: Tensor) -> Tensor:
        return 0.5 * (nu + dim) * (x.square().sum(-1) / nu).log1p() + constant

    return FunctionEnergy(energy, dim)


def student_samples(nu: float, dim: int, *, radial: bool) -> Tensor:
    source = torch.Generator().manual_seed(1)
    rows = torch.full((N, 1 if radial else dim), 0.5 * nu, dtype=torch.float64)
    chi2 = 2 * torch._standard_gamma(rows, generator=source)
    return normal(N, dim) * (nu / chi2).sqrt()


def correlated(x: Tensor) -> Tensor:
    factor = torch.eye(x.shape[-1], dtype=torch.float64)
    factor += 0.5 * normal(*factor.shape).tril(-1) / math.sqrt(len(factor))
    return 3 + x @ factor.T


def spread(dim: int) -> Tensor:
    """States from 1e-8 to 12 standard deviations out."""
    z = normal(200, dim)
    sizes = torch.logspace(-8, math.log10(12), 200, dtype=torch.float64).unsqueeze(-1)
    return z / z.norm(dim=-1, keepdim=True) * sizes


@pytest.mark.parametrize("nu", [0.5, 1.0, 3.0, 15.0])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_tails_are_inverted_and_their_jacobian_and_gradients_are_right(dim: int, nu: float) -> None:
    check_map(Tails(dim, nu), normal(20, dim))
    check_map(Tails(dim, torch.tensor([nu, math.inf, 2.0])[:dim]), normal(20, dim))


@pytest.mark.parametrize("nu", [0.5, 1.0, 3.0, 15.0])
@pytest.mark.parametrize("dim", [1, 2, 10, 100, 10_000])
def test_tails_are_inverted_near_and_far(dim: int, nu: float) -> None:
    tails = Tails(dim, nu)
    far = spread(dim) * (2 if nu >= 1 else 1)
    states = [normal(50, dim)] if dim > 100 else [normal(50, dim), far]
    for z in states:
        torch.testing.assert_close(tails.to_z(tails.to_x(z)), z, rtol=1e-10, atol=0)
    each = Tails(2, torch.tensor([nu, 4.0]))
    z = 2 * spread(2)
    torch.testing.assert_close(each.to_z(each.to_x(z)), z, rtol=1e-10, atol=0)


@pytest.mark.parametrize("nu", [0.5, 1.0, 3.0, 15.0])
@pytest.mark.parametrize("dim", [1, 2, 10, 100, 1_000])
def test_a_student_target_is_a_standard_normal(dim: int, nu: float) -> None:
    z = normal(200, dim) if dim > 100 else torch.cat([normal(200, dim), spread(dim)])
    energy = MappedEnergy(student(nu, dim), Tails(dim, nu))
    expected = 0.5 * z.square().sum(-1) + 0.5 * dim * math.log(2 * math.pi)
    value, slope = energy.with_gradient(z)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(energy(z), value)
    torch.testing.assert_close(slope, z, rtol=1e-2, atol=1e-2)


def test_a_product_of_students_is_a_standard_normal() -> None:
    nu = torch.tensor([1.0, 4.0])
    one, other = student(1.0, 1), student(4.0, 1)
    product = FunctionEnergy(lambda x: one(x[:, :1]) + other(x[:, 1:]), 2)
    z = spread(2)
    expected = 0.5 * z.square().sum(-1) + math.log(2 * math.pi)
    value = MappedEnergy(product, Tails(2, nu))(z)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-4)


def test_tails_take_normal_quantiles_to_those_of_the_student() -> None:
    """A Cauchy's are known: tan(pi (p - 1/2))."""
    z = torch.linspace(-5, 5, 41, dtype=torch.float64).unsqueeze(-1)
    cauchy = torch.tan(math.pi * 0.5 * torch.erf(z / math.sqrt(2)))
    torch.testing.assert_close(Tails(1, 1.0).to_x(z), cauchy, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dim", [1, 2])
def test_z_is_the_same_in_heavy_tailed_coordinates(dim: int) -> None:
    """Of a target that is no Student-t."""

    def energy(x: Tensor) -> Tensor:
        return 2.5 * (1 + (x - 0.7).square().sum(-1)).log() + x.sin().sum(-1)

    axis = torch.linspace(-9, 9, 601, dtype=torch.float64)
    width = float(axis[1] - axis[0])
    grid = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)

    def log_z(nu: float | Tensor) -> float:
        mapped = MappedEnergy(FunctionEnergy(energy, dim), Tails(dim, nu))
        return float((-mapped(grid)).logsumexp(0)) + dim * math.log(width)

    found = [log_z(1.0), log_z(2.0), log_z(torch.full((dim,), 1.0))]
    assert max(found) - min(found) < 1e-4
    x = torch.sinh(torch.linspace(-9, 9, 200_001, dtype=torch.float64)).unsqueeze(-1)
    if dim == 1:
        exact = torch.trapezoid((-energy(x)).exp(), x[:, 0]).log()
        assert found[0] == pytest.approx(float(exact), abs=1e-5)


def test_a_gaussian_tail_is_no_change() -> None:
    z = spread(3)
    for tails in (Tails(3, math.inf), Tails(3, torch.full((3,), math.inf))):
        x, log_det = tails.with_log_det(z)
        assert torch.equal(x, z) and not log_det.any()
        torch.testing.assert_close(tails.to_z(3 * x), 3 * z)


@pytest.mark.parametrize(
    ("nu", "message"),
    [
        (0.3, "nu must be at least 0.5, got 0.3"),
        (math.nan, "nu must be at least 0.5, got nan"),
        (torch.ones(3), r"nu must be a number or of shape \(2,\), got \(3,\)"),
    ],
)
def test_tails_that_are_none_are_refused(nu: float | Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tails(2, nu)


def mixture(dim: int, share: float, distance: float, std: float = 1.0) -> Tensor:
    x = normal(N, dim)
    other = slice(0, int(share * N))
    x[other] *= std
    x[other, 0] += distance
    return x


LIGHT = {
    "gaussian": lambda dim: normal(N, dim),
    "correlated": lambda dim: correlated(normal(N, dim)),
    "a tenth far away": lambda dim: mixture(dim, 0.1, 20.0),
    "a wider mode": lambda dim: mixture(dim, 0.1, 6.0, 2.0),
    "five modes": lambda dim: normal(N, dim) + 5 * normal(5, dim).repeat(N // 5, 1),
}


@pytest.mark.parametrize("dim", [1, 2, 20, 100])
@pytest.mark.parametrize("name", LIGHT)
def test_gaussians_and_their_mixtures_have_no_tails(name: str, dim: int) -> None:
    found = fit_tails(LIGHT[name](dim))
    assert found.kind == "none" and found.gain == 0.0 and not found.nu.isfinite()
    z = found.coordinates.to_z(LIGHT[name](dim))
    torch.testing.assert_close(z.mean(0), torch.zeros(dim).double(), atol=1e-6, rtol=0)


def check_unit(found: TailFit, x: Tensor) -> None:
    """In the coordinates that were found, states have Gaussian moments."""
    z = found.coordinates.to_z(x)
    torch.testing.assert_close(z.var(0), torch.ones(x.shape[-1]).double(), atol=0.15, rtol=0)
    assert float(z.pow(4).mean()) == pytest.approx(3.0, abs=0.4)
    assert found.gain > 4 * found.error > 0
    restored = load_coordinates(found.coordinates.state_dict())
    torch.testing.assert_close(restored.to_x(z), found.coordinates.to_x(z), rtol=0, atol=0)


@pytest.mark.parametrize("nu", [1.0, 3.0])
@pytest.mark.parametrize("dim", [2, 20])
def test_a_multivariate_student_is_found(dim: int, nu: float) -> None:
    x = correlated(student_samples(nu, dim, radial=True))
    found = fit_tails(x)
    assert found.kind == "radial" and 0.6 * nu < float(found.nu) < 1.7 * nu
    check_unit(found, x)


@pytest.mark.parametrize("nu", [1.0, 3.0])
@pytest.mark.parametrize("dim", [1, 2, 20])
def test_a_product_of_students_is_found(dim: int, nu: float) -> None:
    x = 3 + 2 * student_samples(nu, dim, radial=False)
    found = fit_tails(x)
    assert found.kind == "coordinates" and found.nu.shape == (dim,)
    assert 0.6 * nu < float(found.nu.median()) < 1.7 * nu
    check_unit(found, x)


def test_the_coordinate_that_has_a_tail_is_found() -> None:
    x = normal(N, 5)
    x[:, 3] = student_samples(2.0, 1, radial=True)[:, 0]
    found = fit_tails(x)
    assert found.kind == "coordinates" and found.nu.isfinite().tolist() == [False] * 3 + [
        True,
        False,
    ]


def test_weights_tell_the_tail_of_the_target() -> None:
    """Cauchy samples weighted to a Gaussian have no tail; a wide uniform's to a t have one."""
    cauchy = student_samples(1.0, 1, radial=True)
    normal_over_cauchy = student(1.0, 1)(cauchy) - 0.5 * cauchy.square().sum(-1)
    assert fit_tails(cauchy, normal_over_cauchy).kind == "none"
    uniform = 60 * torch.rand(8_000, 1, generator=generator(), dtype=torch.float64) - 30
    found = fit_tails(uniform, -student(2.0, 1)(uniform))
    assert found.kind == "coordinates"
    one = fit_tails(cauchy, torch.full((N,), 5.0))
    torch.testing.assert_close(one.nu, fit_tails(cauchy).nu)


def test_few_states_show_no_tail() -> None:
    assert fit_tails(student_samples(1.0, 2, radial=True)[:100]).kind == "none"


@pytest.mark.parametrize(
    ("x", "log_weight", "message"),
    [
        (torch.zeros(5), None, r"x must have shape \(n, D\) with n at least 2, got \(5,\)"),
        (torch.tensor([[0.0], [math.nan]]), None, "x must be finite, got 1 numbers that are not"),
        (torch.zeros(5, 1), torch.zeros(4), r"log_weight must have shape \(5,\), got \(4,\)"),
    ],
)
def test_states_that_are_none_are_refused(
    x: Tensor, log_weight: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit_tails(x, log_weight)
