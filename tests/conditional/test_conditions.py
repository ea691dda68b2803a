"""Parameters of an energy: ranges, hat functions, levels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vgs_rl.conditional import Conditions

RANGES = {"tau": (0.5, 2.0), "kappa": (-1.0, 3.0)}


def both() -> Conditions:
    return Conditions(RANGES, logarithmic=("tau",))


@given(st.integers(0, 2**32), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_hat_functions_are_a_partition_of_one(seed: int, size: int) -> None:
    conditions = Conditions({f"c{i}": (-1.0, float(i)) for i in range(size)})
    c = conditions.draw(50, torch.Generator().manual_seed(seed), torch.float64)
    hats = conditions.hats(c)
    assert hats.shape == (50, conditions.count) and float(hats.min()) >= 0
    assert torch.allclose(hats.sum(-1), torch.ones(50, dtype=torch.float64))


def test_units_and_values_are_inverse_and_training_draws_within_the_ranges() -> None:
    conditions = both()
    c = conditions.draw(500, torch.Generator().manual_seed(0), torch.float64)
    assert torch.allclose(conditions.at_unit(conditions.unit(c)), c)
    assert bool(((c >= conditions.low) & (c <= conditions.high)).all())
    # A logarithmic one is uniform in its logarithm: its median is the geometric mean.
    assert abs(float((c[:, 0] < 1.0).double().mean()) - 0.5) < 0.1


def test_interpolation_is_exact_for_what_is_linear_in_the_unit() -> None:
    conditions = both()
    c = conditions.draw(2_000, torch.Generator().manual_seed(0), torch.float64)
    values = conditions.unit(c) @ torch.tensor([2.0, -1.0], dtype=torch.float64) + 3
    knots = conditions.fit(c, values)
    assert torch.allclose(conditions.hats(c) @ knots, values, atol=1e-4)


@given(st.floats(-300, 300), st.floats(-300, 300))
@settings(max_examples=20, deadline=None)
def test_levels_undo_any_log_z_that_is_linear_in_the_unit(at_one: float, slope: float) -> None:
    conditions = Conditions({"c": (0.0, 1.0)})
    generator = torch.Generator().manual_seed(0)
    # On the knots, where the estimate of log Z has nothing to interpolate.
    c = torch.arange(400, dtype=torch.float64).remainder(5).unsqueeze(-1) / 4
    log_weight = torch.randn(400, generator=generator, dtype=torch.float64)
    moved = log_weight + at_one + slope * c[:, 0]
    level = conditions.levelled(c, log_weight)
    assert torch.allclose(conditions.levelled(c, moved), level, atol=1e-8)
    assert torch.allclose((level - log_weight)[::5], (level - log_weight)[0], atol=1e-8)


def test_every_value_keeps_its_share_though_log_z_bends_between_knots() -> None:
    conditions = Conditions({"tau": (0.5, 2.0)}, logarithmic={"tau"})
    generator = torch.Generator().manual_seed(0)
    tau = conditions.draw(4_000, generator, torch.float64)
    noise = torch.randn(4_000, generator=generator, dtype=torch.float64)
    bad = torch.rand(4_000, generator=generator) < 0.05  # paths that ended nowhere
    log_weight = 27 / tau[:, 0] + noise - torch.where(bad, 200.0, 0.0)
    level = conditions.levelled(tau, log_weight)
    order = tau[:, 0].argsort()
    shares = level[order].view(8, -1).logsumexp(1).softmax(0)
    assert float((8 * shares - 1).abs().max()) < 0.35


def test_few_values_fill_the_range() -> None:
    found = both().spread(16, torch.Generator().manual_seed(0))
    for column in both().unit(found).T:
        assert torch.equal(column.sort().values.add(1).mul(8).long(), torch.arange(16))


def test_dead_weights_stay_dead_when_levelled() -> None:
    conditions = Conditions({"c": (0.0, 1.0)})
    c = torch.rand(40, 1, generator=torch.Generator().manual_seed(0))
    log_weight = torch.where(c[:, 0] < 0.5, -torch.inf, 0.0)
    level = conditions.levelled(c, log_weight)
    assert torch.equal(torch.isneginf(level), torch.isneginf(log_weight))
    assert not bool(level.isnan().any())


def test_a_value_is_given_as_a_number_in_order_or_by_name() -> None:
    assert Conditions({"c": (0.0, 1.0)}).tensor(0.5).tolist() == [0.5]
    wanted = torch.tensor([0.7, 2.0], dtype=torch.float64)
    assert torch.equal(both().tensor({"kappa": 2.0, "tau": 0.7}), wanted)
    assert torch.equal(both().tensor([0.7, 2.0]), wanted)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([3.0, 0.0], r"tau must be in \[0.5, 2\], got 3"),
        ([1.0, float("nan")], "kappa must be in"),
        ({"tau": 1.0}, "condition must name tau, kappa, got tau"),
        ([1.0], "condition must be 2 numbers, tau, kappa, got 1 numbers"),
        ("hot", "condition must be 2 numbers, tau, kappa, got 'hot'"),
        ([1.0, "x"], "condition must be 2 numbers"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        both().tensor(value)


@pytest.mark.parametrize("ends", [(1.0, 1.0), (2.0, 1.0), (0.0, 1.0), (1.0,), (1.0, "2"), 3.0])
def test_a_range_that_is_none_is_refused_by_name(ends: object) -> None:
    with pytest.raises(ValueError, match="tau must be a range of two ascending numbers above 0"):
        Conditions({"tau": ends}, logarithmic=("tau",))
