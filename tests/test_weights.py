import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vgs_rl.weights import effective_sample_size, log_z_estimate, systematic_resample, temper

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


def test_tempering_gives_no_weight_to_what_is_not_finite():
    log_w = torch.tensor([0.0, 1.0, math.nan, -math.inf, math.inf])
    weights = temper(log_w, 0.1)
    assert weights[2:].tolist() == [0.0, 0.0, 0.0]
    assert float(weights.sum()) == pytest.approx(1.0)
    assert temper(torch.full((4,), math.nan), 0.5).tolist() == [0.25] * 4


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
