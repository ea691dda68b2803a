"""Coordinates that undo funnels, bananas and hierarchies, and leave modes alone."""

import pytest
import torch
from test_coordinates import check_map, normal
from torch import Tensor

from vgs_rl.envs import GMM9, GMM40, FortyModes, Funnel10, ManyWell32
from vgs_rl.exploration import AffineMap, LocationScale, fit_location_scale, load_coordinates


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def trees() -> LocationScale:
    """2 depends on 0, 1 on 2, and 3 on 0."""
    location = torch.tensor([[0, 0, 0], [0.3, -1.0, 0.5], [0, 0.2, 0], [1.0, 0, 0.1]])
    log_scale = torch.tensor([[0, 0, 0], [0.1, 0.2, 0], [-1.0, 0.5, 0.3], [0.3, 0, -0.4]])
    return LocationScale(torch.tensor([-1, 2, 0, 0]), location, log_scale)


def cross_moments(z: Tensor) -> Tensor:
    """What Gaussian coordinates have not: how squares and products go with other coordinates."""
    z = (z - z.mean(0)) / z.std(0)
    squares = z.square() - 1
    moments = z.T @ squares / len(z)
    return moments - moments.diagonal().diag()


def test_a_map_is_inverted_and_its_jacobian_and_gradients_are_right() -> None:
    check_map(trees(), normal(20, 4))


@pytest.mark.parametrize(
    ("parents", "message"),
    [([1, 0], "must form trees"), ([0, -1], "must form trees"), ([2, -1], "must be from -1 to 1")],
)
def test_parents_that_are_no_trees_are_refused(parents: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LocationScale(torch.tensor(parents), torch.zeros(2, 3), torch.zeros(2, 3))


def test_a_state_of_another_shape_is_refused() -> None:
    state = trees().state_dict()
    with pytest.raises(ValueError, match=r"location must have shape \(4, 3\), got \(4, 2\)"):
        load_coordinates({**state, "location": torch.zeros(4, 2)})


def test_a_funnel_is_a_gaussian_however_it_was_stretched_and_turned() -> None:
    x = Funnel10().sample(4_000, generator()).double()
    factor = torch.eye(10).double() + torch.randn(10, 10, generator=generator()).tril(-1).double()
    for states in (x, AffineMap(torch.full((10,), 5.0), factor * 3).to_x(x)):
        found = fit_location_scale(states, generator())
        assert found is not None
        assert float(cross_moments(found.to_z(states)).abs().max()) < 0.25
        assert float(cross_moments(states).abs().max()) > 1.0 or states is not x


def test_a_funnel_is_undone_where_no_state_was() -> None:
    """The neck is what exploration misses; what is learned in the mouth has to hold there."""
    x = Funnel10().sample(8_000, generator()).double()
    found = fit_location_scale(x[x[:, 0] > -2], generator())
    assert found is not None
    neck = x[x[:, 0] < -5]
    z = found.to_z(neck)[:, 1:]
    assert len(neck) > 200 and 0.7 < float(z.std()) < 1.4


def test_a_banana_is_straightened() -> None:
    z = normal(4_000, 4)
    x = z.clone()
    x[:, 1] = 0.1 * z[:, 1] + z[:, 0].square()
    x[:, 3] = 0.1 * z[:, 3] - z[:, 2].square()
    found = fit_location_scale(x, generator())
    assert found is not None
    assert float(cross_moments(found.to_z(x)).abs().max()) < 0.2


def test_effects_that_are_equal_in_the_neck_are_told_apart() -> None:
    """A hierarchy: a scale, a mean, and effects around it."""
    z = normal(4_000, 6)
    x = z.clone()
    x[:, 1] = 5 * z[:, 1]
    x[:, 2:] = x[:, 1:2] + (1 + z[:, :1]).exp() * z[:, 2:]
    order = [3, 1, 0, 5, 4, 2]
    found = fit_location_scale(x[:, order], generator())
    assert found is not None
    log_det = found.with_log_det(found.to_z(x[:, order]))[1]
    # Four scales of exp(1 + z): the entropy of the target, up to the maps of each half.
    slope = torch.linalg.lstsq(
        torch.stack([torch.ones(len(z)).double(), z[:, 0]], -1), log_det.unsqueeze(-1)
    ).solution[1]
    assert float(slope) == pytest.approx(4.0, abs=0.4)


@pytest.mark.parametrize("target", [GMM9(), GMM40(), ManyWell32()], ids=lambda e: type(e).__name__)
def test_modes_are_no_bend(target: GMM9) -> None:
    x = target.sample(4_000, generator()).double()
    assert fit_location_scale(x, generator()) is None


def test_many_modes_are_no_bend_either() -> None:
    x = FortyModes(20).sample(1_500, generator()).double()
    assert fit_location_scale(x, generator()) is None


def test_heavy_tails_are_no_bend() -> None:
    x = normal(4_000, 4)
    assert fit_location_scale(x[:, :3] / x[:, 3:], generator()) is None


def test_weights_count() -> None:
    x = Funnel10().sample(4_000, generator()).double()
    x[:2_000] = normal(2_000, 10)
    normal_half = torch.arange(4_000) < 2_000
    on_funnel, on_normal = (
        torch.where(rows, 0.0, -torch.inf) for rows in (~normal_half, normal_half)
    )
    assert fit_location_scale(x, generator(), on_funnel) is not None
    assert fit_location_scale(x, generator(), on_normal) is None


def _odd() -> dict[str, Tensor]:
    constant, copies, infinite = normal(1_000, 3), normal(1_000, 3), normal(1_000, 3)
    constant[:, 0], copies[:, 1], infinite[5, 1] = 3.0, copies[:, 0], torch.inf
    return {
        "one constant": constant,
        "copies": copies,
        "infinite": infinite,
        "few different": normal(7, 3)[torch.arange(1_000) % 7],
        "all equal": torch.ones(1_000, 3).double(),
        "huge": 1e200 * normal(1_000, 3),
        "tiny": 1e-200 * normal(1_000, 3),
    }


@pytest.mark.parametrize("name", _odd())
def test_odd_states_have_no_bend(name: str) -> None:
    assert fit_location_scale(_odd()[name], generator()) is None


def test_too_few_states_say_nothing() -> None:
    assert fit_location_scale(normal(150, 3), generator()) is None
    assert fit_location_scale(normal(4_000, 1), generator()) is None
