import math
from random import Random

import numpy as np
import ot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vgs_rl.evaluation import metrics


def normal(n: int, dim: int | None = None, seed: int = 0) -> Tensor:
    shape = (n,) if dim is None else (n, dim)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


class TestTotalVariation:
    def test_identical_sets_give_zero(self) -> None:
        energies = normal(1_000)
        assert metrics.total_variation(energies, energies.flip(0)) == 0.0

    def test_disjoint_sets_give_one(self) -> None:
        energies = normal(1_000)
        assert metrics.total_variation(energies + 100.0, energies) == pytest.approx(1.0)
        assert metrics.total_variation(energies - 100.0, energies) == pytest.approx(1.0)

    def test_it_is_symmetric_where_the_ranges_agree(self) -> None:
        x, y = normal(500, seed=1).clamp(-2, 2), (0.5 + normal(500, seed=2)).clamp(-2, 2)
        x[:2] = y[:2] = torch.tensor([-2.0, 2.0])
        assert metrics.total_variation(x, y) == pytest.approx(float(metrics.total_variation(y, x)))

    def test_it_does_not_depend_on_order_or_energy_origin_and_unit(self) -> None:
        x, y = normal(1_000, seed=1), 1.3 * normal(1_000, seed=2)
        value = float(metrics.total_variation(x, y))
        assert metrics.total_variation(x.flip(0), y) == value
        assert metrics.total_variation(4 * x + 8, 4 * y + 8) == pytest.approx(value, abs=5e-3)

    def test_it_equals_the_total_variation_computed_by_hand(self) -> None:
        reference = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])  # bins [0, 2), [2, 4]: 2/5, 3/5
        energies = torch.tensor([0.5, 0.5, 0.5, 4.0, 5.0, -1.0])  # 3/6, 1/6; above 1/6, below 1/6
        expected = 0.5 * (abs(1 / 2 - 2 / 5) + abs(1 / 6 - 3 / 5) + 1 / 6 + 1 / 6)
        assert metrics.total_variation(energies, reference, bins=2) == pytest.approx(expected)

    def test_mass_outside_the_reference_range_counts_in_full(self) -> None:
        reference = normal(10_000)
        energies = reference.clone()
        energies[:3_000] = 1e6
        energies[3_000:4_000] = -1e6
        assert metrics.total_variation(energies, reference) == pytest.approx(0.4, abs=1e-3)

    @pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
    def test_non_finite_energies_count_as_overflow(self, bad: float) -> None:
        reference = normal(10_000)
        energies = reference.clone()
        energies[:2_500] = bad
        assert metrics.total_variation(energies, reference) == pytest.approx(0.25, abs=1e-3)

    def test_the_ideal_falls_as_one_over_root_n_and_stays_below_its_bound(self) -> None:
        def ideal(n: int) -> float:
            trials = [
                metrics.total_variation(normal(n, seed=2 * i), normal(n, seed=2 * i + 1))
                for i in range(10)
            ]
            return float(torch.stack(trials).mean())

        few, many = ideal(2_000), ideal(32_000)
        assert few / many == pytest.approx(4.0, rel=0.25)
        assert many < math.sqrt(200 / (math.pi * 32_000))

    def test_a_reference_of_equal_energies_is_one_bin(self) -> None:
        reference = torch.full((4,), 2.0)
        assert metrics.total_variation(reference, reference) == 0.0
        assert metrics.total_variation(torch.tensor([2.0, 3.0]), reference) == pytest.approx(0.5)

    def test_impossible_arguments_are_refused_by_name(self) -> None:
        energies = normal(10)
        with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
            metrics.total_variation(energies, energies, bins=0)
        with pytest.raises(ValueError, match="reference must hold a finite value"):
            metrics.total_variation(energies, energies * math.nan)
        with pytest.raises(ValueError, match=r"values must have shape \(n,\)"):
            metrics.total_variation(energies[:, None], energies)


class TestPublishedTotalVariation:
    def test_it_equals_the_published_code(self) -> None:
        x, y = 30 * normal(1_000, seed=1), 40 * normal(900, seed=2) + 10
        counts = [np.histogram(z, bins=200, range=(-100, 100))[0] for z in (x, y)]
        shares = [count / count.sum() for count in counts]
        expected = 0.5 * np.abs(shares[0] - shares[1]).sum()
        assert metrics.published_total_variation(x, y) == pytest.approx(expected)

    def test_it_does_not_see_what_left_the_range(self) -> None:
        reference = normal(1_000)
        values = reference.clone()
        values[:300] = math.inf
        assert metrics.published_total_variation(values, reference) < 0.05
        assert metrics.total_variation(values, reference) == pytest.approx(0.3, abs=0.02)

    def test_it_is_one_where_most_samples_or_the_whole_reference_are_outside(self) -> None:
        inside, outside = normal(100), normal(100) + 300.0
        half = torch.cat([inside, outside])
        assert metrics.published_total_variation(half, inside) == 1.0
        assert metrics.published_total_variation(inside, outside) == 1.0
        assert metrics.published_total_variation(inside * math.nan, inside) == 1.0


class TestWasserstein:
    def test_a_shift_moves_every_point_by_its_length(self) -> None:
        x = normal(200, 3)
        shift = torch.tensor([1.0, -2.0, 2.0], dtype=torch.float64)
        assert metrics.wasserstein(x, x + shift) == pytest.approx(3.0)
        assert metrics.wasserstein(x.flip(0), x) == 0.0

    def test_it_equals_the_exact_transport_of_pot(self) -> None:
        x, y = normal(60, 5, seed=1), normal(60, 5, seed=2)
        expected = math.sqrt(ot.emd2([], [], torch.cdist(x, y).square().numpy()))
        assert metrics.wasserstein(x, y) == pytest.approx(expected)

    def test_samples_that_are_not_finite_are_infinitely_far(self) -> None:
        x = normal(20, 2)
        for bad in (math.nan, math.inf, 1e200):
            y = x.clone()
            y[3, 1] = bad
            assert metrics.wasserstein(y, x) == math.inf

    def test_unequal_counts_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"same shape \(n, D\), got \(5, 2\), \(6, 2\)"):
            metrics.wasserstein(normal(5, 2), normal(6, 2))


numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12)


class TestWasserstein1d:
    @given(numbers, st.randoms())
    def test_it_equals_the_general_distance(self, values: list[float], random: Random) -> None:
        x = torch.tensor(values, dtype=torch.float64)
        y = torch.tensor([random.uniform(-1e6, 1e6) for _ in values], dtype=torch.float64)
        expected = float(metrics.wasserstein(x[:, None], y[:, None]))
        assert metrics.wasserstein_1d(x, y) == pytest.approx(expected, rel=1e-9)

    @given(numbers, st.floats(-1e3, 1e3))
    def test_a_shift_counts_as_it_is_and_order_not_at_all(
        self, values: list[float], shift: float
    ) -> None:
        x = torch.tensor(values, dtype=torch.float64)
        moved = metrics.wasserstein_1d(x.flip(0) + shift, x)
        assert moved == pytest.approx(abs(shift), rel=1e-6, abs=1e-6)

    def test_one_huge_value_dominates_and_an_infinite_one_makes_it_infinite(self) -> None:
        x = normal(2_000)
        y = x.clone()
        y[0] = 1e6
        assert metrics.wasserstein_1d(y, x) == pytest.approx(1e6 / math.sqrt(2_000), rel=0.01)
        for bad in (math.inf, -math.inf, math.nan):
            y[0] = bad
            assert metrics.wasserstein_1d(y, x) == math.inf

    def test_unequal_counts_are_refused(self) -> None:
        with pytest.raises(ValueError, match="equally long, got 5 and 6"):
            metrics.wasserstein_1d(normal(5), normal(6))


class TestSinkhorn:
    def test_identical_sets_give_zero(self) -> None:
        x = normal(300, 4)
        assert metrics.sinkhorn(x, x) == pytest.approx(0.0, abs=1e-3)

    @pytest.mark.parametrize("dim", [1, 3, 32])
    def test_a_translated_set_is_at_the_squared_shift(self, dim: int) -> None:
        x, shift = normal(300, dim), torch.linspace(-1.0, 2.0, dim, dtype=torch.float64)
        expected = float(shift.square().sum())
        assert metrics.sinkhorn(x + shift, x) == pytest.approx(expected, rel=0.01)

    def test_two_point_masses_are_at_their_squared_distance(self) -> None:
        x, y = torch.zeros(5, 2), torch.tensor([[3.0, 4.0]]).expand(7, 2)
        assert metrics.sinkhorn(x, y) == pytest.approx(25.0, rel=1e-4)

    def test_it_is_symmetric_at_equal_regularisation(self) -> None:
        x, y = normal(200, 2, seed=1), 1.5 * normal(300, 2, seed=2)
        there, back = metrics.sinkhorn(x, y, reg=0.2), metrics.sinkhorn(y, x, reg=0.2)
        assert there == pytest.approx(float(back), rel=0.02)

    def test_it_scales_with_squared_length_and_ignores_rigid_motion(self) -> None:
        x, y = normal(300, 2, seed=1), 0.5 + normal(300, 2, seed=2)
        value = float(metrics.sinkhorn(x, y))
        turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
        assert metrics.sinkhorn(10 * x, 10 * y) == pytest.approx(100 * value, rel=0.01)
        assert metrics.sinkhorn(x @ turn + 7, y @ turn + 7) == pytest.approx(value, rel=0.01)

    def test_a_missing_mode_is_seen(self) -> None:
        modes = torch.tensor([[-5.0, 0.0], [5.0, 0.0]], dtype=torch.float64)
        both = modes.repeat(200, 1) + 0.3 * normal(400, 2, seed=1)
        again = modes.repeat(200, 1) + 0.3 * normal(400, 2, seed=2)
        one = modes[:1].repeat(400, 1) + 0.3 * normal(400, 2, seed=3)
        assert metrics.sinkhorn(again, both) < 0.1
        assert metrics.sinkhorn(one, both) == pytest.approx(50.0, rel=0.1)  # half moves by 10

    def test_outliers_and_tiny_regularisation_stay_finite(self) -> None:
        x, y = normal(200, 3, seed=1), normal(200, 3, seed=2)
        x[0], y[0] = 1e4, -1e4
        assert torch.isfinite(metrics.sinkhorn(x, y))
        assert torch.isfinite(metrics.sinkhorn(x, y, reg=1e-4))

    def test_non_finite_samples_are_infinitely_far(self) -> None:
        x, y = normal(50, 2, seed=1), normal(50, 2, seed=2)
        x[3, 1] = math.nan
        assert metrics.sinkhorn(x, y) == math.inf
        x[3, 1] = 1e200
        assert metrics.sinkhorn(x, y) == math.inf

    def test_the_regularisation_is_a_share_of_the_references_mean_cost(self) -> None:
        y = normal(200, 3)
        mean_cost = float(torch.cdist(y, y).square().mean())
        assert metrics.sinkhorn_regularisation(y, 200, 0.05) == pytest.approx(0.05 * mean_cost)
        assert metrics.sinkhorn_regularisation(torch.zeros(3, 2)) > 0

    def test_impossible_arguments_are_refused_by_name(self) -> None:
        x = normal(10, 2)
        with pytest.raises(ValueError, match="x and y must have shapes"):
            metrics.sinkhorn(x, normal(10, 3))
        with pytest.raises(ValueError, match="n must be at least 1, got 0"):
            metrics.sinkhorn(x, x, n=0)
        with pytest.raises(ValueError, match="reg must be a positive number, got 0"):
            metrics.sinkhorn(x, x, reg=0.0)


def test_spread_rows_takes_an_equal_share_of_every_part() -> None:
    x = torch.arange(1_000)
    kept = metrics.evenly_spaced_rows(x, 100)
    assert kept.tolist() == list(range(0, 1_000, 10))
    assert metrics.evenly_spaced_rows(x, 2_000) is x


class TestStdError:
    def test_identical_and_translated_sets_give_zero(self) -> None:
        x = normal(500, 3)
        assert metrics.std_error(x, x) == 0.0
        assert metrics.std_error(x + 5.0, x) == pytest.approx(0.0, abs=1e-12)

    def test_it_is_the_mean_difference_of_standard_deviations(self) -> None:
        x = normal(500, 2)
        wider = x * torch.tensor([1.5, 3.0])
        std = x.std(dim=0)
        expected = float(0.5 * (0.5 * std[0] + 2.0 * std[1]))
        assert metrics.std_error(wider, x) == pytest.approx(expected)
        assert metrics.std_error(x, wider) == pytest.approx(expected)

    def test_a_sample_that_is_not_finite_shows(self) -> None:
        x = normal(10, 2)
        x[0, 0] = math.inf
        assert metrics.std_error(x, normal(10, 2)).isnan()

    def test_single_rows_are_refused(self) -> None:
        with pytest.raises(ValueError, match="at least 2 rows"):
            metrics.std_error(normal(1, 2), normal(10, 2))


class TestModeWeightError:
    def test_it_is_the_largest_deviation(self) -> None:
        indicators = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1, 0, 0]])
        probabilities = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
        assert metrics.mode_weight_error(indicators, probabilities) == pytest.approx(0.25)
        assert metrics.mode_weight_error(indicators, indicators.mean(dim=0)) == 0.0

    def test_shapes_must_fit(self) -> None:
        with pytest.raises(ValueError, match=r"got \(4, 3\), \(2,\)"):
            metrics.mode_weight_error(torch.zeros(4, 3), torch.zeros(2))


class TestPathEss:
    def test_equal_weights_give_one(self) -> None:
        assert metrics.path_ess(torch.full((5_000,), 123.4)) == pytest.approx(1.0)

    def test_it_is_one_over_batch_size_where_one_path_rules_each_batch(self) -> None:
        log_weight = torch.zeros(1_000)
        log_weight[::100] = 50.0
        assert metrics.path_ess(log_weight, 10, 100) == pytest.approx(0.01)

    def test_one_huge_weight_does_not_move_the_median(self) -> None:
        log_weight = 0.3 * normal(20_000)
        before = float(metrics.path_ess(log_weight))
        log_weight[7] = 100.0
        assert metrics.path_ess(log_weight) == pytest.approx(before, rel=0.01)
        assert metrics.path_ess(log_weight, 1, 20_000) < 1e-3

    def test_it_equals_the_known_value_for_log_normal_weights(self) -> None:
        # E[w]² / E[w²] = exp(-variance) for log w ~ N(., variance)
        assert metrics.path_ess(0.5 * normal(20_000)) == pytest.approx(math.exp(-0.25), rel=0.03)

    def test_nan_counts_as_no_weight_and_only_nan_as_no_samples(self) -> None:
        log_weight = torch.zeros(100)
        log_weight[:50] = math.nan
        assert metrics.path_ess(log_weight, 1, 100) == pytest.approx(0.5)
        assert metrics.path_ess(log_weight * math.nan, 1, 100) == 0.0

    def test_only_the_asked_batches_are_used(self) -> None:
        log_weight = torch.cat([torch.zeros(300), normal(700, seed=1) * 3])
        assert metrics.path_ess(log_weight, 3, 100) == pytest.approx(1.0)
        assert metrics.path_ess(log_weight, 10, 100) < 0.6
