"""Changes of coordinates keep densities: values, gradients, integrals and states on disk."""

import io
import math

import pytest
import torch
from torch import Tensor

from vgs_rl import FunctionEnergy
from vgs_rl.exploration import (
    AffineMap,
    Composed,
    Coordinates,
    GaussianReference,
    MappedEnergy,
    MappedReference,
    load_coordinates,
)
from vgs_rl.exploration.coordinates.affine import MOST_FULL

LOWER = AffineMap(torch.tensor([3.0, -1.0]), torch.tensor([[2.0, 0.0], [0.7, 0.5]]))
DIAGONAL = AffineMap(torch.tensor([0.5, 2.0]), torch.tensor([0.3, 4.0]))
AXES = torch.tensor([[0.6], [0.8]], dtype=torch.float64)
LONG = AffineMap(DIAGONAL.shift, DIAGONAL.factor, AXES, torch.tensor([7.0]))
MAPS = {
    "lower": LOWER,
    "diagonal": DIAGONAL,
    "long": LONG,
    "long and lower": AffineMap(LOWER.shift, LOWER.factor, AXES, torch.tensor([0.2])),
    "composed": Composed(LOWER, DIAGONAL),
}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(n: int, dim: int) -> Tensor:
    return torch.randn(n, dim, generator=generator(), dtype=torch.float64)


def check_map(coordinates: Coordinates, z: Tensor) -> None:
    """The laws of a bijection between R^D and a set of R^D, at states z."""
    x, log_det = coordinates.with_log_det(z)
    torch.testing.assert_close(coordinates.to_x(z), x)
    torch.testing.assert_close(coordinates.to_z(x), z, rtol=1e-9, atol=1e-9)
    jacobian = torch.autograd.functional.jacobian(lambda v: coordinates.to_x(v).sum(0), z)
    expected = jacobian.movedim(1, 0).slogdet().logabsdet
    torch.testing.assert_close(log_det, expected, rtol=1e-9, atol=1e-9)
    check_pull_back(coordinates, z)
    restored = saved_and_loaded(coordinates)
    torch.testing.assert_close(restored.to_x(z), x, rtol=0, atol=0)


def check_pull_back(coordinates: Coordinates, z: Tensor) -> None:
    """Gradients come back as central differences of E(x(z)) - log |det| say."""

    def energy(x: Tensor) -> Tensor:
        rates = torch.arange(1.0, x.shape[-1] + 1).to(x)
        return 3 * (1 + (rates * x - 0.3).square().sum(-1)).log()

    def value(z: Tensor) -> Tensor:
        x, log_det = coordinates.with_log_det(z)
        return energy(x) - log_det

    x = coordinates.to_x(z).requires_grad_(True)
    (gradient,) = torch.autograd.grad(energy(x).sum(), x)
    found = coordinates.pull_back(z, gradient)
    for i in range(z.shape[-1]):
        step = torch.zeros_like(z)
        step[:, i] = 1e-6
        expected = (value(z + step) - value(z - step)) / 2e-6
        torch.testing.assert_close(found[:, i], expected, rtol=1e-5, atol=1e-6)


def saved_and_loaded(coordinates: Coordinates) -> Coordinates:
    file = io.BytesIO()
    torch.save(coordinates.state_dict(), file)
    file.seek(0)
    return load_coordinates(torch.load(file, weights_only=True))


@pytest.mark.parametrize("name", MAPS)
def test_a_map_is_inverted_and_its_jacobian_and_gradients_are_right(name: str) -> None:
    check_map(MAPS[name], normal(20, 2))


def test_composition_applies_the_inner_map_first() -> None:
    z = normal(5, 2)
    torch.testing.assert_close(MAPS["composed"].to_x(z), LOWER.to_x(DIAGONAL.to_x(z)))


def test_maps_that_do_not_fit_are_refused() -> None:
    line = AffineMap(torch.zeros(1), torch.ones(1))
    with pytest.raises(ValueError, match="inner must map to the 2 coordinates of outer, got 1"):
        Composed(LOWER, line)
    with pytest.raises(ValueError, match="must map to the 2 coordinates of the energy, got 1"):
        MappedEnergy(FunctionEnergy(lambda x: x.sum(-1), 2), line)
    with pytest.raises(ValueError, match=r"factor must have shape \(2,\) or \(2, 2\), got \(3,\)"):
        AffineMap(torch.zeros(2), torch.ones(3))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "coordinates.kind must be a str, got a NoneType"),
        ({"kind": "torch.nn.Linear"}, "coordinates.kind must be one of affine, .*got 'torch"),
        ({"kind": "affine", "shift": [0.0]}, "coordinates.shift must be a Tensor, got a list"),
    ],
)
def test_a_state_that_is_none_is_refused(state: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_coordinates(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mapped_energy_has_the_type_of_its_states(dtype: torch.dtype) -> None:
    energy = MappedEnergy(FunctionEnergy(lambda x: x.square().sum(-1), 2), LOWER)
    z = normal(3, 2).to(dtype)
    value, slope = energy.with_gradient(z)
    assert value.dtype == slope.dtype == energy(z).dtype == energy.to_x(z).dtype == dtype


def test_a_mapped_reference_is_the_same_density_in_other_coordinates() -> None:
    reference = GaussianReference(torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.5]))
    mapped = MappedReference(reference, LOWER)
    prior = torch.distributions.Independent(
        torch.distributions.Normal(reference.mean, reference.std), 1
    )
    z = normal(10, 2)
    level, slope = mapped.level(z)
    torch.testing.assert_close(level, reference.level(LOWER.to_x(z))[0] - LOWER.log_det)
    for each, other in zip(MappedReference(prior, LOWER).level(z), (level, slope), strict=True):
        torch.testing.assert_close(each, other)
    # Its samples have its density: the cross-entropy is the entropy of the Gaussian.
    entropy = float(reference.std.log().sum()) + 1 + math.log(2 * math.pi) - LOWER.log_det
    found = mapped.level(mapped.sample(20_000, generator()))[0]
    assert float(found.mean()) == pytest.approx(entropy, abs=5 / math.sqrt(20_000))


def test_gradients_go_both_ways() -> None:
    slope = normal(5, 2)
    for name in ("lower", "diagonal", "long", "long and lower"):
        each = MAPS[name]
        assert isinstance(each, AffineMap)
        torch.testing.assert_close(each.gradient_of_x(each.gradient(slope)), slope)


@pytest.mark.parametrize("n", [400, 2_000])
def test_a_few_long_axes_are_found_in_many_dimensions(n: int) -> None:
    """Of three, 30, 10 and 4 times as wide as the rest; where there is none, none is."""
    dim = 600
    axes = torch.linalg.qr(normal(dim, 3)).Q
    scales = torch.logspace(-2, 2, dim, dtype=torch.float64)
    z = torch.randn(n, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = AffineMap(scales, scales, axes, torch.tensor([30.0, 10.0, 4.0]))
    found = AffineMap.whitening(truth.to_x(z))
    assert len(found.stretch) == 3
    again = torch.randn(4_000, dim, generator=torch.Generator().manual_seed(2)).double()
    inside = found.to_z(truth.to_x(again))
    widest = float(torch.linalg.eigvalsh(torch.cov(inside.T))[-1])
    assert widest < 3.5  # 900 before, 1.9 by chance
    plain = AffineMap.whitening(scales * z)
    assert len(plain.stretch) == 0
    with pytest.raises(ValueError, match="axes must be orthonormal"):
        AffineMap(scales, scales, 2 * axes, torch.ones(3))
    with pytest.raises(ValueError, match=r"axes must have shape \(600, r\), got \(600, 3\)"):
        AffineMap(scales, scales, axes, torch.ones(2))


@pytest.mark.parametrize("dim", [1, 3, MOST_FULL + 1])
def test_a_weight_of_two_whitens_as_a_state_that_is_there_twice(dim: int) -> None:
    x = normal(40, dim)
    weight = torch.ones(40)
    weight[:20] = 2.0
    found = AffineMap.whitening(x, weight)
    mean = (x.sum(0) + x[:20].sum(0)) / 60
    torch.testing.assert_close(found.shift, mean)
    equal = AffineMap.whitening(x, torch.full((40,), 7.0))
    torch.testing.assert_close(equal.factor, AffineMap.whitening(x).factor)
    diagonal = torch.cov(x.T, fweights=weight.int()).reshape(dim, dim).diagonal()
    factor = found.factor if found.factor.ndim == 2 else found.factor.diag()
    ratio = (factor @ factor.T).diagonal() / diagonal
    torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=0.02, rtol=0)
