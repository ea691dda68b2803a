import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vgs_rl import Chain, MDPConfig, ScheduleConfig
from vgs_rl.chain import step_variances

variances = st.lists(st.floats(1e-4, 0.9), min_size=1, max_size=30).map(
    lambda s2: torch.tensor(s2, dtype=torch.float64)
)


@given(variances)
@settings(max_examples=50, deadline=None)
def test_vp_chain_keeps_unit_variance(s2):
    chain = Chain(s2, "vp")
    torch.testing.assert_close(chain.A[:-1], (1 - s2).rsqrt().flip(0).cumprod(0).flip(0))
    torch.testing.assert_close(1 / chain.A**2 + chain.S, torch.ones(len(s2) + 1).double())


@given(variances)
@settings(max_examples=50, deadline=None)
def test_ve_chain_adds_variances(s2):
    chain = Chain(s2, "ve")
    assert bool((chain.A == 1).all()) and bool((chain.a == 1).all())
    torch.testing.assert_close(chain.S[:-1], s2.flip(0).cumsum(0).flip(0))


@given(variances)
@settings(max_examples=50, deadline=None)
def test_vp_chain_is_a_rescaled_ve_chain(s2):
    vp = Chain(s2, "vp")
    ve = Chain(vp.A[:-1] ** 2 * s2, "ve")  # y_t = A_t x_t
    torch.testing.assert_close(ve.S, vp.A**2 * vp.S)


@given(variances, st.sampled_from(["vp", "ve"]))
@settings(max_examples=50, deadline=None)
def test_marginal_moments_are_those_of_composed_kernels(s2, kind):
    chain = Chain(s2, kind)
    mean, variance = 1.0, 0.0
    for t in reversed(range(len(s2))):
        mean, variance = mean / float(chain.a[t]), variance / float(chain.a[t]) ** 2 + float(s2[t])
        assert float(1 / chain.A[t]) == pytest.approx(mean, rel=1e-9)
        assert float(chain.S[t]) == pytest.approx(variance, rel=1e-9)
    assert float(chain.A[-1]) == 1.0 and float(chain.S[-1]) == 0.0
    torch.testing.assert_close(chain.sigma, chain.a * chain.s)
    torch.testing.assert_close(chain.log_a.exp(), chain.a)


@given(st.integers(1, 60), st.floats(0.05, 0.99))
@settings(max_examples=50, deadline=None)
def test_auto_schedule_has_the_asked_total_noise(num_steps, noise):
    vp = Chain.build(ScheduleConfig(total_noise=noise), "vp", num_steps)
    assert float(vp.S[0]) == pytest.approx(noise)
    torch.testing.assert_close(vp.a, vp.a[0].expand(num_steps))  # equal shrink per step
    ve = Chain.build(ScheduleConfig(total_noise=10 * noise), "ve", num_steps)
    assert float(ve.S[0]) == pytest.approx(10 * noise)
    assert (ve.s.diff() < 0).all()


@given(
    st.sampled_from(["linear", "quadratic", "sigmoid", "geometric"]),
    st.floats(1e-3, 10.0),
    st.floats(1e-3, 10.0),
    st.integers(2, 50),
)
@settings(max_examples=80, deadline=None)
def test_schedules_run_monotonically_from_first_to_last(kind, first, last, num_steps):
    s2 = step_variances(ScheduleConfig(kind=kind, first=first, last=last), "ve", num_steps)
    assert float(s2[0]) == pytest.approx(first) and float(s2[-1]) == pytest.approx(last)
    change = s2.diff() * math.copysign(1.0, last - first)
    assert bool((change >= -1e-9).all())


@pytest.mark.parametrize(
    ("fraction", "kind", "expected"),
    [
        (0.5, "linear", 2.5),
        (0.5, "quadratic", 2.25),
        (0.5, "geometric", 2.0),
        (0.5, "sigmoid", 2.5),
        (0.25, "linear", 1.75),
        (0.25, "quadratic", 1.5625),
        (0.25, "geometric", math.sqrt(2)),
    ],
)
def test_each_kind_interpolates_as_it_says(fraction, kind, expected):
    s2 = step_variances(ScheduleConfig(kind=kind, first=1.0, last=4.0), "ve", 5)
    assert float(s2[int(4 * fraction)]) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["linear", "quadratic", "sigmoid", "geometric"])
def test_one_step_takes_the_first_variance(kind):
    s2 = step_variances(ScheduleConfig(kind=kind, first=0.3, last=0.1), "ve", 1)
    assert s2.tolist() == pytest.approx([0.3])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Chain(torch.tensor([0.5, 1.0]), "vp"),
            "s_t must be below 1 in a vp chain, got s_",
        ),
        (lambda: Chain(torch.tensor([0.5, 0.0]), "ve"), "must be positive and finite"),
        (lambda: Chain(torch.tensor([math.nan]), "ve"), "must be positive and finite"),
        (lambda: Chain(torch.zeros(0), "ve"), "shape"),
        (lambda: Chain.build(ScheduleConfig(), "vp", 0), "num_steps must be at least 1, got 0"),
        (lambda: Chain.build(ScheduleConfig(), "ve", 5), "total_noise is required"),
        (lambda: Chain.build(ScheduleConfig(total_noise=1.5), "vp", 5), "below 1 .*got 1.5"),
        (lambda: ScheduleConfig(kind="constant"), "schedule.first"),
        (lambda: ScheduleConfig(kind="constant", first=0.1, last=0.2), "schedule.last"),
        (lambda: ScheduleConfig(kind="linear", first=0.1), "schedule.last"),
        (lambda: ScheduleConfig(kind="linear", first=-0.1, last=0.1), "schedule.first"),
        (lambda: ScheduleConfig(first=0.1), "schedule.first"),
        (lambda: ScheduleConfig(kind="linear", first=1, last=1, total_noise=1), "total_noise"),
        (lambda: MDPConfig(num_steps=0), "num_steps must be at least 1, got 0"),
        (lambda: MDPConfig(temperature=0.0), "temperature must be a positive number, got 0"),
        (
            lambda: MDPConfig(schedule=ScheduleConfig(kind="constant", first=1.0)),
            "s_t must be below 1",
        ),
    ],
)
def test_impossible_values_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_moving_a_chain_keeps_its_numbers():
    chain = Chain.build(ScheduleConfig(), "vp", 7)
    moved = chain.to(torch.device("cpu"), torch.float32)
    assert moved.s.dtype == torch.float32 and moved.num_steps == 7 and moved.kind == "vp"
    torch.testing.assert_close(moved.S.double(), chain.S, atol=1e-6, rtol=1e-6)
    assert chain.s.dtype == torch.float64
