"""phi⁴ on a lattice: its action, its symmetries, and log Z where it is an integral."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from vgs_rl.envs import Phi4, check_energy


def fields(n: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, side * side, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("side", [2, 3, 8])
def test_the_action_is_the_sum_over_sites_and_links(side: int) -> None:
    kappa, lam = 0.27, 0.4
    x = fields(5, side)
    expected = torch.zeros(5, dtype=torch.float64)
    for i, j in itertools.product(range(side), repeat=2):
        site = x[:, i * side + j]
        right, below = x[:, i * side + (j + 1) % side], x[:, (i + 1) % side * side + j]
        expected += (1 - 2 * lam) * site**2 + lam * site**4 - 2 * kappa * site * (right + below)
    torch.testing.assert_close(Phi4(side, kappa, lam).energy(x), expected)


def test_the_action_has_the_continuums_couplings() -> None:
    kappa, lam, side = 0.27, 0.1, 6
    x = fields(5, side)
    field = (math.sqrt(2 * kappa) * x).unflatten(-1, (side, side))
    mass, coupling = (1 - 2 * lam) / kappa - 4, 6 * lam / kappa**2
    slopes = sum((field.roll(-1, axis) - field).square() for axis in (1, 2))
    action = 0.5 * slopes + 0.5 * mass * field**2 + coupling / 24 * field**4
    torch.testing.assert_close(Phi4(side, kappa, lam).energy(x), action.sum((1, 2)))


def test_the_action_is_symmetric() -> None:
    energy, x = Phi4(8, 0.3), fields(10, 8)
    field = x.unflatten(-1, (8, 8))
    images = [-field, field.roll((3, 5), (1, 2)), field.mT, field.flip(1)]
    for image in images:
        torch.testing.assert_close(energy.energy(image.flatten(1)), energy.energy(x))
    torch.testing.assert_close(energy.mode_indicators(-x), 1 - energy.mode_indicators(x))


def test_log_z_of_two_by_two_sites_is_the_integral_of_a_transfer_matrix() -> None:
    """Z = tr T², where T couples pairs of sites: against brute force over all four."""
    energy = Phi4(2, 0.15, 0.3)
    axis = torch.linspace(-3.5, 3.5, 29, dtype=torch.float64)
    h = float(axis[1] - axis[0])
    log_z = torch.logsumexp(-energy.energy(torch.cartesian_prod(*[axis] * 4)), 0) + 4 * math.log(h)
    a, b = torch.cartesian_prod(axis, axis).T
    row = sum(0.4 * s**2 + 0.3 * s**4 for s in (a, b)) - 4 * 0.15 * a * b
    link = -2 * 0.15 * (a[:, None] * a + b[:, None] * b)
    transfer = torch.exp(-0.5 * row[:, None] - 0.5 * row - link) * h**2
    assert float(log_z) == pytest.approx(math.log(float(torch.trace(transfer @ transfer))))


def test_without_coupling_sites_are_independent() -> None:
    lam = 0.022
    z, _ = quad(lambda s: math.exp(-(1 - 2 * lam) * s * s - lam * s**4), -8, 8, epsabs=1e-12)
    axis = np.linspace(-6, 6, 41)
    x = torch.from_numpy(np.stack(np.meshgrid(*[axis] * 4, indexing="ij"), -1).reshape(-1, 4))
    log_z = torch.logsumexp(-Phi4(2, 0.0, lam).energy(x), 0) + 4 * math.log(axis[1] - axis[0])
    assert float(log_z) == pytest.approx(4 * math.log(z), abs=1e-6)


def test_other_couplings_ship_nothing_and_wrong_ones_are_named() -> None:
    energy = Phi4(4, 0.25, 0.5)
    assert energy.log_z is None
    check_energy(energy)
    with pytest.raises(NotImplementedError, match=r"ships .* \(side, kappa, lam\) in .*\(4, 0.25"):
        energy.reference()
    for make, message in (
        (lambda: Phi4(1), "side must be at least 2, got 1"),
        (lambda: Phi4(kappa=-0.1), "Phi4.kappa must be at least 0, got -0.1"),
        (lambda: Phi4(lam=0.0), "Phi4.lam must be a positive number, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
