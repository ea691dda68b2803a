"""Bounds of means: they hold for every law, and how they may depend on the numbers."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vgs_rl.evaluation.confidence import FIRST_PART, log_mean_low, mean_interval

REPEATS = 200
# Of 200 bounds at level 0.95, more than 20 fail with a probability below 0.0012.
FAILURES = 20

log_values = st.lists(
    st.one_of(st.floats(-50, 50), st.just(-math.inf)), min_size=2, max_size=60
).map(lambda values: torch.tensor(values, dtype=torch.float64))
shares = st.lists(st.integers(0, 64), min_size=2, max_size=60).map(
    lambda values: torch.tensor(values, dtype=torch.float64) / 64
)


def rest(values: Tensor) -> Tensor:
    """The numbers that are bet on."""
    return values[max(1, int(FIRST_PART * len(values))) :]


def uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64)


def normal(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, generator=generator, dtype=torch.float64)


def pareto(shape: float) -> Callable[[int, torch.Generator], Tensor]:
    """Logarithms of numbers whose moments below order `shape` exist, of mean 1."""
    log_mean = math.log(shape / (shape - 1))
    return lambda n, generator: -uniform(n, generator).log() / shape - log_mean


def lognormal(std: float) -> Callable[[int, torch.Generator], Tensor]:
    return lambda n, generator: std * normal(n, generator) - 0.5 * std**2


def hidden_mode(n: int, generator: torch.Generator) -> Tensor:
    """A tenth of the mean is in numbers that 2,000 draws hold once in five times."""
    seen = 1e-4
    rare = uniform(n, generator) < seen
    return torch.where(rare, math.log(0.1 / seen), math.log(0.9 / (1 - seen)))


# Of each: logarithms of numbers of mean 1.
LAWS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "Pareto 3": pareto(3.0),
    "Pareto 2": pareto(2.0),
    "Pareto 1.5": pareto(1.5),
    "Pareto 1.2": pareto(1.2),
    "lognormal 1": lognormal(1.0),
    "lognormal 3": lognormal(3.0),
    "hidden mode": hidden_mode,
    "uniform": lambda n, generator: (2 * uniform(n, generator)).log(),
    "half are zero": lambda n, generator: (2 * (uniform(n, generator) < 0.5).double()).log(),
    "constant": lambda n, generator: torch.zeros(n, dtype=torch.float64),
}


def test_the_tolerance_of_coverage_is_what_it_says() -> None:
    def chance(k: int) -> float:
        return math.comb(REPEATS, k) * 0.05**k * 0.95 ** (REPEATS - k)

    assert 1 - sum(chance(k) for k in range(FAILURES + 1)) < 0.0012


@pytest.mark.parametrize("law", LAWS)
def test_the_lower_bound_holds_for_weights_of_any_law(law: str) -> None:
    generator = torch.Generator().manual_seed(0)
    bounds = [log_mean_low(LAWS[law](1_000, generator)) for _ in range(REPEATS)]
    assert sum(bound > 0.0 for bound in bounds) <= FAILURES
    assert min(bounds) > -math.inf  # and it says something


def test_the_same_test_would_see_that_the_usual_interval_does_not_hold() -> None:
    generator = torch.Generator().manual_seed(0)
    failures = 0
    for _ in range(REPEATS):
        value = LAWS["lognormal 3"](1_000, generator).exp()
        high = value.mean() + 1.96 * value.std() / math.sqrt(len(value))
        failures += int(high < 1.0)
    assert failures > 2 * FAILURES


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_the_chance_of_a_wrong_bound_is_below_the_level_in_every_case_counted(share: float) -> None:
    """All outcomes of 30 numbers of mean 1 that are 0 or 1/share, each with its probability."""

    def chance(n: int, ones: int) -> float:
        return math.comb(n, ones) * share**ones * (1 - share) ** (n - ones)

    wrong = 0.0
    for first in range(7):
        for second in range(25):
            ones = torch.cat([torch.arange(6) < first, torch.arange(24) < second])
            bound = log_mean_low((ones.double() / share).log(), 0.8)
            wrong += chance(6, first) * chance(24, second) * (bound > 0.0)
    assert wrong <= 0.2


@given(log_values, st.floats(-300, 300))
@settings(max_examples=60, deadline=None)
def test_the_bound_moves_with_the_scale(log_value: Tensor, shift: float) -> None:
    bound = log_mean_low(log_value)
    assert log_mean_low(log_value + shift) == pytest.approx(bound + shift, abs=1e-6)


@given(log_values)
@settings(max_examples=60, deadline=None)
def test_the_bound_is_below_the_mean_of_what_is_bet_on(log_value: Tensor) -> None:
    mean = torch.logsumexp(rest(log_value), 0) - math.log(len(rest(log_value)))
    bound = log_mean_low(log_value)
    assert bound < mean or bound == mean == -math.inf


@given(log_values, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_what_is_bet_on_does_not_matter(log_value: Tensor, random) -> None:
    last = rest(log_value)
    order = random.sample(range(len(last)), len(last))
    mixed = torch.cat([log_value[: len(log_value) - len(last)], last[order]])
    assert log_mean_low(mixed) == pytest.approx(log_mean_low(log_value), abs=1e-8)


@given(log_values, st.floats(0, 20))
@settings(max_examples=40, deadline=None)
def test_a_number_that_grows_never_lowers_the_bound(log_value: Tensor, more: float) -> None:
    grown = log_value.clone()
    grown[-1] += more
    assert log_mean_low(grown) >= log_mean_low(log_value) - 1e-8


def test_the_bound_rises_with_the_number_of_draws() -> None:
    generator = torch.Generator().manual_seed(1)
    for law in ("lognormal 1", "Pareto 1.5", "uniform"):
        means = [
            sum(log_mean_low(LAWS[law](n, generator)) for _ in range(20)) / 20
            for n in (100, 1_000, 10_000)
        ]
        assert means[0] < means[1] < means[2] < 0.0


def test_equal_numbers_are_bounded_almost_exactly() -> None:
    assert -1e-3 < log_mean_low(torch.zeros(20_000)) < 0.0


@pytest.mark.parametrize("scale", [1e3, 1e6])
def test_logarithms_of_any_size_give_a_bound(scale: float) -> None:
    log_value = scale * normal(500, torch.Generator().manual_seed(0))
    bound = log_mean_low(log_value)
    assert math.isfinite(bound) and bound < float(log_value.max())
    assert log_mean_low(log_value.float()) == pytest.approx(bound, rel=1e-5)


def test_zeros_and_unknown_numbers_are_zeros() -> None:
    log_value = torch.zeros(1_000)
    log_value[::2] = math.nan
    zeros = log_value.nan_to_num(-math.inf)
    assert log_mean_low(log_value) == log_mean_low(zeros) < math.log(0.5)
    assert log_mean_low(torch.full((9,), -math.inf)) == -math.inf


@given(shares)
@settings(max_examples=60, deadline=None)
def test_the_interval_holds_the_mean_of_what_is_bet_on_and_mirrors(value: Tensor) -> None:
    low, high = mean_interval(value)
    assert 0 <= low <= rest(value).mean() + 1e-12 and rest(value).mean() - 1e-12 <= high <= 1
    mirrored = mean_interval(1 - value)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)


@pytest.mark.parametrize("power", [0.0, 0.1, 1.0, 10.0, 100.0])
def test_the_interval_holds_for_numbers_between_zero_and_one(power: float) -> None:
    generator = torch.Generator().manual_seed(2)
    mean, failures = 1 / (1 + power), 0
    for _ in range(REPEATS):
        low, high = mean_interval(uniform(300, generator) ** power)
        failures += not low <= mean <= high
    assert failures <= FAILURES


def test_bad_input_is_refused_by_name() -> None:
    log_value = torch.zeros(10)
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 1.0"):
        log_mean_low(log_value, 1.0)
    with pytest.raises(ValueError, match=r"log_value must have shape \(n,\), n ≥ 2, got \(1,\)"):
        log_mean_low(torch.zeros(1))
    with pytest.raises(ValueError, match=r"must not be \+inf, got 1 of 10"):
        log_mean_low(torch.where(torch.arange(10) == 3, math.inf, 0.0))
    with pytest.raises(ValueError, match=r"value must be in \[0, 1\], got 2 of 10 outside"):
        mean_interval(torch.tensor([1.5, math.nan, *[0.5] * 8]))
