import math
from itertools import permutations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from springs import Springs
from torch import Tensor

from vgs_rl import Particles
from vgs_rl.evaluation import metrics, particles
from vgs_rl.evaluation.particle_metrics import ParticleProtocol, particle_metrics
from vgs_rl.evaluation.particles import (
    geometric_cost,
    geometric_wasserstein,
    pair_distances,
    positions,
    published_geometric_wasserstein,
    transformed,
)
from vgs_rl.evaluation.report import Metric

SYSTEMS = (Particles(2, 2), Particles(4, 2), Particles(6, 2), Particles(3, 3), Particles(7, 3))
systems = st.sampled_from(SYSTEMS)
seeds = st.integers(0, 2**31)


def clusters(n: int, symmetry: Particles, seed: int = 0) -> Tensor:
    """Random configurations, not centred."""
    generator = torch.Generator().manual_seed(seed)
    return 1.0 + torch.randn(n, math.prod(symmetry), generator=generator, dtype=torch.float64)


def mixed(x: Tensor, symmetry: Particles, seed: int = 0) -> Tensor:
    return transformed(x, symmetry, torch.Generator().manual_seed(seed))


class TestPairDistances:
    def test_a_square_has_four_sides_and_two_diagonals(self) -> None:
        square = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0]]) + 5.0
        distances = pair_distances(square, Particles(4, 2)).sort().values
        expected = torch.tensor([[1.0] * 4 + [math.sqrt(2.0)] * 2], dtype=torch.float64)
        torch.testing.assert_close(distances, expected)

    def test_they_are_the_same_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = clusters(50, Particles(7, 3))
        whole = pair_distances(x, Particles(7, 3))
        monkeypatch.setattr(particles, "VALUES", 100)
        assert torch.equal(pair_distances(x, Particles(7, 3)), whole)

    def test_a_wrong_shape_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"x must have shape \(B, 8\), got \(5, 6\)"):
            pair_distances(torch.zeros(5, 6), Particles(4, 2))


class TestTransformed:
    @settings(max_examples=20, deadline=None)
    @given(systems, seeds)
    def test_nothing_that_the_symmetry_keeps_is_changed(
        self, symmetry: Particles, seed: int
    ) -> None:
        x = clusters(5, symmetry, seed)
        y = mixed(x, symmetry, seed)
        before, after = (pair_distances(z, symmetry).sort().values for z in (x, y))
        torch.testing.assert_close(after, before)
        assert float(y.unflatten(1, symmetry).mean(1).abs().max()) < 1e-12

    def test_directions_and_labels_become_uniform(self) -> None:
        symmetry = Particles(3, 3)
        line = torch.tensor([[-1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
        x = mixed(line.expand(4_000, -1), symmetry).unflatten(1, symmetry)
        centre = x.norm(dim=-1).argmin(dim=1)
        shares = torch.bincount(centre, minlength=3) / 4_000
        assert float((shares - 1 / 3).abs().max()) < 0.03
        outer = x[centre == 0][:, 1]
        for axis in range(3):  # Archimedes: coordinates on the sphere are uniform
            assert kstest(outer[:, axis].numpy(), "uniform", (-1, 2)).pvalue > 1e-3

    def test_the_global_generator_is_not_touched(self) -> None:
        state = torch.get_rng_state()
        mixed(clusters(3, Particles(4, 2)), Particles(4, 2))
        assert torch.equal(torch.get_rng_state(), state)


class TestGeometricCost:
    @settings(max_examples=25, deadline=None)
    @given(systems, seeds)
    def test_images_of_one_configuration_are_at_distance_zero(
        self, symmetry: Particles, seed: int
    ) -> None:
        x = clusters(4, symmetry, seed)
        y = mixed(x, symmetry, seed + 1)
        cost = geometric_cost(positions(x, symmetry), positions(y, symmetry))
        assert float(cost.diagonal().max()) < 1e-10

    @settings(max_examples=25, deadline=None)
    @given(systems, seeds)
    def test_it_does_not_depend_on_orientation_or_labels(
        self, symmetry: Particles, seed: int
    ) -> None:
        x, y = (clusters(3, symmetry, seed + i) for i in (0, 1))
        plain, turned = (
            geometric_cost(positions(x, symmetry), positions(z, symmetry))
            for z in (y, mixed(y, symmetry, seed))
        )
        torch.testing.assert_close(turned, plain)

    @settings(max_examples=25, deadline=None)
    @given(systems, seeds)
    def test_where_exact_it_is_at_most_the_published_and_the_plain_cost(
        self, symmetry: Particles, seed: int
    ) -> None:
        assume(symmetry.n_particles <= particles.ENUMERATED)
        a, b = (positions(clusters(4, symmetry, seed + i), symmetry) for i in (0, 1))
        best = geometric_cost(a, b, starts=8)
        plain = (a.flatten(1)[:, None] - b.flatten(1)).square().sum(-1)
        assert bool((best <= particles.published_geometric_cost(a, b) + 1e-9).all())
        assert bool((best <= plain + 1e-9).all())

    @pytest.mark.parametrize("dims", [2, 3])
    def test_up_to_four_particles_it_is_exact(self, dims: int) -> None:
        x, y = (positions(clusters(3, Particles(4, dims), i), Particles(4, dims)) for i in (0, 1))
        expected = torch.full((3, 3), math.inf, dtype=torch.float64)
        for order in permutations(range(4)):
            for i in range(3):
                for j in range(3):
                    u, _, v = torch.linalg.svd(x[i].T @ y[j, list(order)])
                    turned = y[j, list(order)] @ (u @ v).T
                    cost = (x[i] - turned).square().sum()
                    expected[i, j] = torch.minimum(expected[i, j], cost)
        torch.testing.assert_close(geometric_cost(x, y), expected)

    def test_alternation_comes_close_to_the_exact_minimum(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        symmetry = Particles(4, 2)
        x, y = (positions(clusters(40, symmetry, i), symmetry) for i in (0, 1))
        exact = geometric_cost(x, y)
        monkeypatch.setattr(particles, "ENUMERATED", 0)
        once, often = (geometric_cost(x, y, starts) for starts in (1, 6))
        assert bool((once >= exact - 1e-9).all() & (often <= once + 1e-9).all())
        assert float(often.mean()) < 1.05 * float(exact.mean())
        assert float(once.mean()) < 1.4 * float(exact.mean())

    def test_blocks_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        symmetry = Particles(6, 2)
        x, y = (positions(clusters(9, symmetry, i), symmetry) for i in (0, 1))
        whole = geometric_cost(x, y[:5], 2)
        monkeypatch.setattr(particles, "PAIRS", 7)
        torch.testing.assert_close(geometric_cost(x, y[:5], 2), whole)

    def test_no_start_is_refused(self) -> None:
        x = positions(clusters(2, Particles(6, 2)), Particles(6, 2))
        with pytest.raises(ValueError, match="starts must be at least 1, got 0"):
            geometric_cost(x, x, 0)


class TestGeometricWasserstein:
    @settings(max_examples=15, deadline=None)
    @given(systems, seeds)
    def test_it_is_at_most_the_plain_distance_and_zero_for_images(
        self, symmetry: Particles, seed: int
    ) -> None:
        x, y = (clusters(6, symmetry, seed + i) for i in (0, 1))
        centred = [positions(z, symmetry).flatten(1) for z in (x, y)]
        plain = float(metrics.wasserstein(*centred))
        if symmetry.n_particles <= particles.ENUMERATED:
            assert float(geometric_wasserstein(x, y, symmetry)) <= plain + 1e-9
        shuffled = mixed(x, symmetry, seed).flip(0)
        assert float(geometric_wasserstein(x, shuffled, symmetry)) < 1e-5

    def test_the_published_one_sees_orientations(self) -> None:
        symmetry = Particles(7, 3)
        x = clusters(6, symmetry)
        assert float(published_geometric_wasserstein(x, mixed(x, symmetry), symmetry)) > 0.1

    def test_a_breathing_mode_is_measured_by_hand(self) -> None:
        """A square of another size: every particle moves by the difference of radii."""
        symmetry = Particles(4, 2)
        square = torch.tensor([[1.0, 0.0, 0.0, 1.0, -1.0, 0.0, 0.0, -1.0]])
        value = geometric_wasserstein(
            mixed(square.double(), symmetry), mixed(1.5 * square.double(), symmetry, 1), symmetry
        )
        assert float(value) == pytest.approx(math.sqrt(4 * 0.5**2))

    def test_samples_that_are_not_finite_are_infinitely_far(self) -> None:
        symmetry = Particles(4, 2)
        x = clusters(5, symmetry)
        bad = x.clone()
        bad[2, 3] = math.nan
        for compare in (geometric_wasserstein, published_geometric_wasserstein):
            assert float(compare(bad, x, symmetry)) == math.inf


def found_metrics(
    x: Tensor, *, protocol: ParticleProtocol, energy: Springs, seed: int = 0
) -> dict[str, Metric]:
    generator = torch.Generator().manual_seed(seed)
    sets = [energy.sample(600, torch.Generator().manual_seed(90 + i)) for i in (0, 1)]
    return particle_metrics(
        *((z, energy(z)) for z in (x, *sets)),
        symmetry=energy.symmetry,
        protocol=protocol,
        generator=generator,
        reference="exact",
    )


SMALL = ParticleProtocol(n=100, repeats=5, geometric_n=50, geometric_repeats=2)


class TestMetrics:
    def test_exact_samples_are_at_every_ideal(self) -> None:
        energy = Springs()
        found = found_metrics(
            energy.sample(600, torch.Generator().manual_seed(5)), protocol=SMALL, energy=energy
        )
        assert list(found) == [
            "tvd_energy_published",
            "tvd_distance_published",
            "w2",
            "w2_energy",
            "w2_distance",
            "w2_geometric",
            "w2_geometric_published",
        ]
        for name, metric in found.items():
            assert metric.ideal is not None
            assert 0.4 * metric.ideal < metric.value < 2.5 * metric.ideal, name

    def test_sizes_and_repeats_are_those_of_the_protocol(self) -> None:
        energy = Springs()
        found = found_metrics(
            energy.sample(230, torch.Generator().manual_seed(5)), protocol=SMALL, energy=energy
        )
        sizes = {name: (metric.n, metric.details["repeats"]) for name, metric in found.items()}
        assert sizes["w2"] == sizes["tvd_distance_published"] == (100, 2)
        assert sizes["w2_geometric"] == (50, 2)
        assert sizes["w2_geometric_published"] == (100, 1)
        assert found["w2"].details["reference_n"] == 100
        assert found["w2_geometric_published"].details["std"] is None
        assert found["w2"].note == "mean of 2"

    def test_a_swollen_sampler_is_above_every_ideal(self) -> None:
        energy = Springs()
        x = 1.6 * energy.sample(600, torch.Generator().manual_seed(5))
        for name, metric in found_metrics(x, protocol=SMALL, energy=energy).items():
            assert metric.ideal is not None
            assert metric.value > 1.2 * metric.ideal, name

    def test_costly_metrics_are_cut_short_for_many_particles_unless_asked(self) -> None:
        energy = Springs(21, 2)
        x = energy.sample(40, torch.Generator().manual_seed(5))
        usual = found_metrics(x, protocol=ParticleProtocol(n=20, geometric_n=8), energy=energy)
        assert usual["w2_geometric"].n == 2 and usual["w2_geometric"].details["repeats"] == 10
        assert "w2_geometric_published" not in usual
        asked = ParticleProtocol(n=20, geometric_n=8, geometric_repeats=1)
        assert found_metrics(x, protocol=asked, energy=energy)["w2_geometric"].n == 8

    def test_a_published_range_that_misses_the_reference_is_left_out(self) -> None:
        class Deep(Springs):
            def energy(self, x: Tensor) -> Tensor:
                return super().energy(x) - 400.0

        x = Springs().sample(200, torch.Generator().manual_seed(5))
        found = found_metrics(x, protocol=SMALL, energy=Deep())
        assert "tvd_energy_published" not in found and "tvd_distance_published" in found

    @pytest.mark.parametrize("wrong", [{"n": 0}, {"geometric_n": 0}, {"repeats": -1}])
    def test_impossible_protocols_are_refused_by_name(self, wrong: dict[str, int]) -> None:
        with pytest.raises(ValueError, match=f"protocol.{next(iter(wrong))}"):
            ParticleProtocol(**wrong)
