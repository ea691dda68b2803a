import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vgs_rl.weights import (
    dead_paths,
    effective_sample_size,
    effective_share,
    largest_weight,
    live_elbo,
    log_mean_weight,
    log_z_estimate,
    log_z_standard_error,
    pareto_k,
    reliable_k,
    rows_at,
    systematic_resample,
    temper,
)

log_weights = st.lists(st.floats(-50, 50), min_size=2, max_size=60).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


@given(log_weights, st.floats(-300, 300))
@settings(max_examples=60, deadline=None)
def test_log_z_estimate_is_the_log_of_the_mean_weight(log_w, shift):
    expected = math.log(float(log_w.exp().mean()))
    assert float(log_z_estimate(log_w + shift)) == pytest.approx(expected + shift, abs=1e-8)


@given(log_weights, st.floats(-300, 300))
@settings(max_examples=60, deadline=None)
def test_effective_sample_size_is_kishs_and_ignores_the_scale(log_w, shift):
    w = (log_w - log_w.max()).exp()
    expected = float(w.sum() ** 2 / (len(w) * w.square().sum()))
    assert float(effective_sample_size(log_w + shift)) == pytest.approx(expected, rel=1e-6)
    assert 1 / len(log_w) - 1e-9 <= expected <= 1 + 1e-9


@given(log_weights, st.floats(0.0, 0.99))
@settings(max_examples=80, deadline=None)
def test_tempering_keeps_the_asked_sample_size_with_the_largest_power(log_w, least):
    weights = temper(log_w, least)
    assert float(weights.sum()) == pytest.approx(1.0)
    size = 1 / (len(weights) * float(weights.square().sum()))
    assert size >= least - 1e-6
    spread = float(log_w.max() - log_w.min())
    if spread < 1e-3:
        return
    i, j = int(log_w.argmax()), int(log_w.argmin())
    if float(weights[j]) < 1e-300:
        return
    beta = math.log(float(weights[i]) / float(weights[j])) / spread
    assert beta <= 1 + 1e-6
    if beta < 1 - 1e-6:  # a larger power would have kept too few
        assert float(effective_sample_size((beta + 1e-4) * log_w)) <= least + 1e-3


def test_tempering_leaves_good_weights_alone():
    log_w = torch.tensor([0.0, 0.1, -0.1])
    torch.testing.assert_close(temper(log_w, 0.5), torch.softmax(log_w, 0))


def test_tempering_gives_no_weight_to_what_has_none():
    log_w = torch.tensor([0.0, 1.0, math.nan, -math.inf])
    weights = temper(log_w, 0.1)
    assert weights[2:].tolist() == [0.0, 0.0]
    assert float(weights.sum()) == pytest.approx(1.0)


def resampled(log_w: torch.Tensor) -> torch.Tensor:
    return systematic_resample(log_w, 1_000, torch.Generator().manual_seed(0))


def tempered(log_w: torch.Tensor) -> torch.Tensor:
    return temper(log_w, 0.5)


CHECKED = [resampled, tempered, effective_sample_size, log_z_estimate, largest_weight, pareto_k]


@pytest.mark.parametrize("function", CHECKED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("nothing", [math.nan, -math.inf])
def test_nan_and_minus_infinity_are_weight_zero(function, nothing):
    log_w = torch.zeros(1_000)
    log_w[[0, 17, 999]] = nothing
    live = torch.where(torch.isfinite(log_w), log_w, -800.0)
    torch.testing.assert_close(torch.as_tensor(function(log_w)), torch.as_tensor(function(live)))


@pytest.mark.parametrize("function", CHECKED, ids=lambda f: f.__name__)
def test_infinite_weights_and_no_weights_are_errors_that_count_them(function):
    log_w = torch.zeros(1_000)
    log_w[[3, 5]] = math.inf
    with pytest.raises(ValueError, match=r"must not be \+inf, got 2 of 1,000"):
        function(log_w)
    for nothing in (math.nan, -math.inf):
        with pytest.raises(ValueError, match="must hold a finite value, got none of 1,000"):
            function(torch.full((1_000,), nothing))


def test_resampling_spreads_over_all_that_live():
    log_w = torch.zeros(1_000)
    log_w[::2] = math.nan
    assert resampled(log_w).unique().tolist() == list(range(1, 1_000, 2))
    assert bool((resampled(log_w).bincount(minlength=1_000)[1::2] == 2).all())


@pytest.mark.parametrize("point", [0.0, 1.0, 2.0])
def test_no_row_of_weight_zero_is_drawn_even_at_the_ends(point):
    edges = torch.tensor([0.0, 1.0, 1.0, 2.0, 2.0])
    assert int(rows_at(edges, torch.tensor([point]))) in (1, 3)


def test_estimates_on_the_device_give_the_limits():
    none = torch.full((10,), math.nan)
    assert float(effective_share(none)) == 0.0
    assert float(log_mean_weight(none)) == float(live_elbo(none)) == -math.inf
    assert dead_paths(none) == 10


def test_the_live_elbo_is_a_bound_that_counts_what_was_thrown_away():
    log_w = torch.tensor([-1.0, -3.0])
    assert float(live_elbo(log_w)) == -2.0
    more = torch.tensor([-1.0, -3.0, math.nan, -math.inf])
    assert float(live_elbo(more)) == pytest.approx(-2.0 + math.log(0.5))
    assert float(live_elbo(more)) <= float(log_z_estimate(more))


@pytest.mark.parametrize("alpha", [3.0, 2.0, 1.5, 1.2])
def test_k_hat_is_the_tail_index_of_pareto_weights(alpha):
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(20, 20_000, generator=generator, dtype=torch.float64)
    found = torch.tensor([pareto_k(-row.log() / alpha) for row in uniform])
    assert float(found.mean()) == pytest.approx(1 / alpha, abs=0.05)
    assert float(found.std()) < 0.12


def test_k_hat_of_light_and_heavy_tails():
    normal = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert pareto_k(0.1 * normal) < 0.1
    assert pareto_k(3 * normal) > 0.7
    assert pareto_k(300 * normal) > 10
    assert pareto_k(torch.zeros(1_000)) == 0.0
    one = torch.zeros(20_000)
    one[7] = 11.0
    assert pareto_k(one) == math.inf
    assert math.isnan(pareto_k(torch.zeros(24)))


def test_the_error_of_log_z_is_right_where_it_is_given():
    generator = torch.Generator().manual_seed(0)
    log_w = 0.5 * torch.randn(400, 2_000, generator=generator, dtype=torch.float64)
    errors = [log_z_standard_error(row) for row in log_w]
    spread = float(torch.stack([log_z_estimate(row) for row in log_w]).std())
    assert None not in errors
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize("scale", [3.0, 30.0, 300.0])
def test_no_error_of_log_z_is_given_where_few_weights_decide_it(scale):
    normal = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert log_z_standard_error(scale * normal) is None
    one = 1e-3 * normal
    one[7] = 11.0  # a mode that one path in 20,000 visits: 75 % of all weight
    assert log_z_standard_error(one) is None


def test_the_limit_of_k_hat_depends_on_the_sample_size():
    assert reliable_k(100) == pytest.approx(0.5)
    assert reliable_k(20_000) == 0.7
    assert reliable_k(1) == -math.inf


@given(log_weights, st.integers(1, 200), st.integers(0, 10))
@settings(max_examples=80, deadline=None)
def test_systematic_resampling_draws_within_one_of_the_expected_count(log_w, n, seed):
    chosen = systematic_resample(log_w, n, torch.Generator().manual_seed(seed))
    assert chosen.shape == (n,)
    counts = torch.bincount(chosen, minlength=len(log_w))
    expected = n * torch.softmax(log_w, 0)
    assert bool(((counts - expected).abs() < 1 + 1e-6).all())


def test_systematic_resampling_is_unbiased():
    log_w = torch.tensor([0.0, 1.0, 2.0, -1.0])
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(4)
    for _ in range(4000):
        counts += torch.bincount(systematic_resample(log_w, 3, generator), minlength=4)
    expected = 3 * torch.softmax(log_w, 0)
    assert bool(((counts / 4000 - expected).abs() < 4 * 0.5 / math.sqrt(4000)).all())
