import json
import math
import os
from pathlib import Path

import pytest
import torch
from springs import ShippedSprings, Springs
from torch import Tensor

from vgs_rl import (
    ChainSampler,
    Energy,
    MDPConfig,
    Sampler,
    Samples,
    SamplingMDP,
    ScheduleConfig,
)
from vgs_rl.energy import Split
from vgs_rl.envs import GMM9, Gaussian
from vgs_rl.evaluation import metrics
from vgs_rl.evaluation.evaluate import (
    SINKHORN_SAMPLES,
    Metric,
    ParticleProtocol,
    Report,
    evaluate,
    format_comparison,
)
from vgs_rl.evaluation.report import format_value
from vgs_rl.weights import log_z_standard_error

PROVEN = ["log_z_low", "log_z_high", "tv_bound"]
OF_WEIGHTS = ["ess", "largest_weight", "k_hat", "path_ess"]


class Exact(Sampler):
    """Exact samples, moved by `shift`."""

    def __init__(self, energy: Energy, shift: float = 0.0) -> None:
        self.energy, self.shift = energy, shift

    def _draw(self, n: int, generator: torch.Generator) -> Samples:
        x = self.energy.sample(n, generator) + self.shift
        return Samples(x=x, log_weight=None, energy_evaluations=n)


class Ring(Energy):
    """Neither exact samples nor log Z."""

    dim = 2

    def energy(self, x: Tensor) -> Tensor:
        return 5.0 * (x.norm(dim=-1) - 3.0) ** 2


class Shipped(Gaussian):
    """Reference samples instead of an exact sampler."""

    @property
    def can_sample(self) -> bool:
        return False

    def reference(self, split: Split = "test") -> Tensor:
        return super().sample(1_000, torch.Generator().manual_seed(9))


def oracle(energy: Energy, *, num_steps: int = 20, temperature: float = 1.0) -> ChainSampler:
    """The exact value's posterior drift, on a start fitted to exactly noised states."""
    schedule = ScheduleConfig(kind="constant", first=0.2)
    config = MDPConfig(num_steps=num_steps, schedule=schedule, temperature=temperature)
    mdp = SamplingMDP(energy, config)
    if energy.can_sample:
        generator = mdp.generator(0)
        x, _ = mdp.noised_marginal(energy.sample(5_000, generator), 0, generator)
        mdp.start.fit(x, generator)

    def policy(x: Tensor, t: int) -> Tensor:
        if not energy.has_value:
            return torch.zeros_like(x)
        return -mdp.chain.s[t] * energy.value_gradient(x, t, mdp.chain)

    return ChainSampler(mdp, policy)


@pytest.fixture(scope="module")
def report() -> Report:
    """The oracle on the nine-mode mixture."""
    return evaluate(oracle(GMM9()), GMM9(), 4_000, agent_name="oracle", training_seed=3)


class TestEvaluate:
    def test_exact_samples_are_at_every_ideal(self) -> None:
        report = evaluate(Exact(GMM9()), GMM9(), 1_000)
        assert list(report.metrics) == ["tvd_energy", "sinkhorn", "std_error", "mode_weight_error"]
        for name, metric in report.metrics.items():
            assert metric.ideal is not None
            assert metric.value < 2.5 * metric.ideal + 1e-3, name

    def test_a_wrong_sampler_is_far_above_every_ideal(self) -> None:
        report = evaluate(Exact(GMM9(), shift=2.5), GMM9(), 1_000)
        for name in ("tvd_energy", "sinkhorn"):
            metric = report.metrics[name]
            assert metric.ideal is not None
            assert metric.value > 4 * metric.ideal, name

    def test_a_narrow_sampler_is_seen_by_its_standard_deviations_and_modes(self) -> None:
        class OneMode(Exact):
            def _draw(self, n: int, generator: torch.Generator) -> Samples:
                x = 0.5 * torch.randn(n, 2, generator=generator)
                return Samples(x=x, log_weight=None, energy_evaluations=0)

        report = evaluate(OneMode(GMM9()), GMM9(), 1_000)
        assert report.metrics["std_error"].value > 3.0
        assert report.metrics["mode_weight_error"].value == pytest.approx(8 / 9, abs=0.01)

    def test_elbo_and_eubo_enclose_log_z(self, report: Report) -> None:
        elbo, eubo = report.metrics["elbo"], report.metrics["eubo"]
        assert elbo.value < elbo.ideal == GMM9().log_z == eubo.ideal < eubo.value
        assert eubo.value - elbo.value < 3.0
        gap = report.metrics["gap"]
        assert gap.value == eubo.value - elbo.value and gap.ideal == 0.0
        assert gap.error == pytest.approx(math.hypot(elbo.error or 0.0, eubo.error or 0.0))
        error = report.metrics["log_z_error"]
        assert error.value == pytest.approx(abs(elbo.details["log_z_estimate"]))
        assert error.value < 0.2
        assert 0.05 < report.metrics["path_ess"].value < 1.0

    def test_the_report_names_its_settings_and_costs(self, report: Report) -> None:
        assert (report.target, report.agent, report.seed) == ("GMM9", "oracle", 3)
        assert report.metrics["tvd_energy"].details["bins"] == 200
        assert report.metrics["sinkhorn"].n == SINKHORN_SAMPLES
        assert report.metrics["sinkhorn"].details["reg"] > 0
        assert report.metrics["path_ess"].details == {"batches": 2, "batch_size": 2_000}
        assert report.details["evaluation_seed"] == 0
        assert report.details["sampling_energy_evaluations"] == 4_000

    def test_the_same_seed_gives_the_same_numbers_and_another_does_not(self) -> None:
        energy = Gaussian()
        first, again, other = (
            evaluate(oracle(energy, num_steps=4), energy, 500, seed=seed) for seed in (5, 5, 6)
        )
        assert first == again
        assert first.metrics["tvd_energy"].value != other.metrics["tvd_energy"].value
        assert first.metrics["elbo"].value != other.metrics["elbo"].value

    def test_the_ideal_does_not_depend_on_the_sampler(self) -> None:
        energy = Gaussian()
        good, bad = (evaluate(Exact(energy, shift), energy, 500) for shift in (0.0, 3.0))
        for name, metric in good.metrics.items():
            assert metric.ideal == bad.metrics[name].ideal

    def test_an_ideal_is_the_mean_over_pairs_of_exact_sets_with_its_spread(self) -> None:
        report = evaluate(Exact(GMM9()), GMM9(), 500)
        pairs = {name: metric.details["ideal_pairs"] for name, metric in report.metrics.items()}
        assert pairs == {"tvd_energy": 5, "sinkhorn": 3, "std_error": 5, "mode_weight_error": 10}
        for name, metric in report.metrics.items():
            spread = metric.ideal_error
            assert metric.ideal is not None and spread is not None and spread > 0, name
            assert abs(metric.value - metric.ideal) < 5 * spread, name
            assert " ± " in metric.ideal_text(), name
        again = evaluate(Exact(GMM9()), GMM9(), 500, seed=1)
        tvd = [r.metrics["tvd_energy"] for r in (report, again)]
        assert abs((tvd[0].ideal or 0.0) - (tvd[1].ideal or 0.0)) < 4 * (tvd[0].ideal_error or 0.0)

    def test_neither_the_global_generator_nor_the_training_budget_is_touched(self) -> None:
        sampler = oracle(Gaussian(), num_steps=4)
        sampler.mdp.energy_evaluations = 17
        state = torch.get_rng_state()
        evaluate(sampler, Gaussian(), 500)
        assert torch.equal(torch.get_rng_state(), state)
        assert sampler.mdp.energy_evaluations == 17

    def test_metrics_that_the_target_does_not_admit_are_left_out(self) -> None:
        report = evaluate(oracle(Ring(), num_steps=4), Ring(), 500)
        assert list(report.metrics) == ["log_z", "log_z_low", "elbo", *OF_WEIGHTS]
        assert report.metrics["elbo"].ideal is report.metrics["log_z"].ideal is None
        assert report.metrics["log_z"].value == report.metrics["elbo"].details["log_z_estimate"]

    def test_a_shipped_reference_is_split_into_reference_and_ideal(self) -> None:
        energy = Shipped()
        report = evaluate(Exact(Gaussian()), energy, 2_000)
        metric = report.metrics["tvd_energy"]
        assert metric.n == metric.details["reference_n"] == 500
        assert metric.details["reference"] == "shipped"
        assert metric.ideal is not None
        assert metric.value < 1.5 * metric.ideal

    def test_paths_go_backwards_from_the_whole_shipped_reference_and_labels_say_so(self) -> None:
        energy = Shipped()
        report = evaluate(oracle(energy, num_steps=4), energy, 500)
        for name in ("eubo", "log_z_high"):
            metric = report.metrics[name]
            assert metric.n == 1_000 and metric.details["premise"] == "reference samples (MCMC)"
        for table in (report.to_table(), format_comparison({"this run": report})):
            for name in ("eubo", "gap", "log_z_high", "tv_bound"):
                assert f"\n{name} from reference samples (MCMC) " in table
            assert "\nlog_z_low  " in table

    def test_what_is_proven_is_in_the_report_and_in_its_file(self, report: Report) -> None:
        low, high, tv = (report.metrics[name] for name in PROVEN)
        assert low.value < 0.0 < high.value and 0 < tv.value < 1
        assert low.ideal == high.ideal == GMM9().log_z and tv.ideal == 0.0
        content = json.loads(report.as_json())
        certificate = content["details"]["certificate"]
        assert certificate["premise"] == "exact samples" and certificate["confidence"] == 0.95
        for name, metric in zip(PROVEN, (low, high, tv), strict=True):
            assert certificate[name] == metric.value == content["metrics"][name]["value"]

    def test_a_sampler_without_weights_has_no_certificate(self) -> None:
        report = evaluate(Exact(Gaussian()), Gaussian(), 100)
        assert report.details["certificate"] is None
        assert not set(PROVEN) & set(report.metrics)

    def test_another_temperature_leaves_only_bounds(self) -> None:
        report = evaluate(oracle(Gaussian(), num_steps=4, temperature=2.0), Gaussian(), 500)
        assert list(report.metrics) == ["log_z", "log_z_low", "elbo", *OF_WEIGHTS]
        assert report.metrics["elbo"].ideal is None
        assert report.details["temperature"] == 2.0

    def test_resampling_improves_samples_and_leaves_path_metrics_alone(self) -> None:
        energy = GMM9()
        plain, resampled = (
            evaluate(oracle(energy, num_steps=5), energy, 1_500, resample=resample)
            for resample in (False, True)
        )
        assert resampled.metrics["tvd_energy"].value < 0.6 * plain.metrics["tvd_energy"].value
        elbo = plain.metrics["elbo"]
        allowed = 8 * elbo.details["standard_error"]
        assert resampled.metrics["elbo"].value == pytest.approx(elbo.value, abs=allowed)
        assert resampled.details["sampling_energy_evaluations"] == 5 * 1_500

    def test_resampling_needs_weights(self) -> None:
        with pytest.raises(ValueError, match="log-weights"):
            evaluate(Exact(Gaussian()), Gaussian(), 100, resample=True)

    def test_too_few_samples_are_refused(self) -> None:
        with pytest.raises(ValueError, match="n must be at least 2, got 1"):
            evaluate(Exact(Gaussian()), Gaussian(), 1)

    def test_a_diverged_sampler_still_gets_a_report(self) -> None:
        report = evaluate(Exact(Gaussian(), shift=math.nan), Gaussian(), 100)
        assert report.metrics["tvd_energy"].value == 1.0
        assert report.metrics["sinkhorn"].value == math.inf
        assert report.details["non_finite_samples"] == 100
        assert json.loads(report.as_json())["metrics"]["sinkhorn"]["value"] is None


SMALL = ParticleProtocol(n=100, repeats=3, geometric_n=50, geometric_repeats=1)
PARTICLE_METRICS = [
    "tvd_energy",
    "tvd_energy_published",
    "tvd_distance",
    "tvd_distance_published",
    "w2",
    "w2_energy",
    "w2_distance",
    "w2_geometric",
    "w2_geometric_published",
]


class Weighted(Sampler):
    """Standard normal states in the plane with log-weights as given."""

    def __init__(self, log_weight: Tensor, *, independent: bool = True) -> None:
        self.log_weight, self.independent = log_weight, independent
        self.chunk_size = len(log_weight)

    def _draw(self, n: int, generator: torch.Generator) -> Samples:
        return Samples(
            x=torch.randn(n, 2, generator=generator),
            log_weight=self.log_weight[:n],
            energy_evaluations=n,
            independent=self.independent,
        )


def weighted(log_weight: Tensor, **options: bool) -> dict[str, Metric]:
    return evaluate(Weighted(log_weight, **options), Ring(), len(log_weight)).metrics


NORMAL = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class TestWeights:
    """Metrics of log-weights say what they are worth."""

    def test_a_dead_path_makes_the_elbo_infinite_and_is_counted(self) -> None:
        log_weight = 0.1 * NORMAL
        log_weight[[1, 2]], log_weight[3] = math.nan, -math.inf
        report = evaluate(Weighted(log_weight), Ring(), 20_000)
        elbo, live = report.metrics["elbo"], report.metrics["elbo_live"]
        assert (
            elbo.value == -math.inf and elbo.error is None and "3 paths have weight 0" in elbo.note
        )
        kept = log_weight[torch.isfinite(log_weight)]
        assert live.value == pytest.approx(float(kept.mean()) + math.log(1 - 3 / 20_000))
        assert live.n == 19_997 and live.details["dead_paths"] == 3
        assert report.details["dead_paths"] == 3
        assert report.metrics["log_z"].value == pytest.approx(0.005, abs=0.01)
        assert report.metrics["ess"].value > 0.98

    def test_a_sampler_without_any_weight_still_gets_a_report(self) -> None:
        metrics = weighted(torch.full((100,), math.nan))
        assert metrics["log_z"].value == metrics["elbo"].value == -math.inf
        assert metrics["ess"].value == metrics["path_ess"].value == 0.0
        assert "every path has weight 0" in metrics["log_z"].note
        assert "k_hat" not in metrics

    def test_an_infinite_weight_is_an_error_that_counts(self) -> None:
        log_weight = NORMAL.clone()
        log_weight[:4] = math.inf
        with pytest.raises(ValueError, match=r"must not be \+inf, got 4 of 20,000"):
            weighted(log_weight)

    @pytest.mark.parametrize("scale", [10.0, 3000.0])
    def test_no_standard_error_is_given_where_it_means_nothing(self, scale: float) -> None:
        metrics = weighted(scale * NORMAL)
        log_z = metrics["log_z"]
        assert log_z.error is None and "no standard error" in log_z.note
        assert "±" not in log_z.text()
        assert metrics["k_hat"].value > 0.7 and "cannot be believed" in metrics["k_hat"].note
        assert "not to be believed" in metrics["ess"].note

    def test_a_standard_error_is_given_where_it_holds(self) -> None:
        metrics = weighted(0.5 * NORMAL)
        error = metrics["log_z"].error
        assert error == pytest.approx(log_z_standard_error(0.5 * NORMAL))
        assert abs(metrics["log_z"].value - 0.125) < 4 * (error or 0.0)
        assert metrics["elbo"].error == pytest.approx(0.5 / math.sqrt(20_000), rel=0.02)
        assert "modes that no path visits are not seen" in metrics["k_hat"].note

    def test_ess_is_that_of_all_paths_and_sees_what_batches_hide(self) -> None:
        log_weight = torch.zeros(20_000)
        log_weight[7] = 9.9 + 5  # a mode that one path in 20,000 visits
        metrics = weighted(log_weight)
        w = log_weight.double().exp()
        assert metrics["ess"].value == pytest.approx(
            float(w.sum() ** 2 / w.square().sum()) / 20_000
        )
        assert metrics["ess"].value < 0.001 and metrics["path_ess"].value > 0.999
        assert metrics["largest_weight"].value == pytest.approx(float(w[7] / w.sum()))
        assert metrics["log_z"].error is None

    def test_particles_that_interact_have_log_z_and_nothing_else(self) -> None:
        metrics = weighted(0.1 * NORMAL, independent=False)
        assert list(metrics) == ["log_z"]  # no certificate either: it needs independent weights
        assert metrics["log_z"].error is None and "particles interact" in metrics["log_z"].note


class TestParticles:
    """Targets with a particle symmetry have metrics of their own."""

    @pytest.mark.parametrize("energy", [Springs(), ShippedSprings()], ids=["exact", "shipped"])
    def test_exact_samples_are_at_every_ideal(self, energy: Springs) -> None:
        report = evaluate(Exact(Springs()), energy, 600, protocol=SMALL)
        assert list(report.metrics) == PARTICLE_METRICS
        for name, metric in report.metrics.items():
            assert metric.ideal is not None
            assert 0.4 * metric.ideal < metric.value < 2.5 * metric.ideal, name

    def test_the_ideal_is_mixed_over_the_symmetry_and_the_reference_is_not(self) -> None:
        energy = ShippedSprings()
        value = evaluate(Exact(Springs()), energy, 600, protocol=SMALL).metrics["w2"].ideal
        x = energy.reference()
        own = float(metrics.wasserstein(x[:100], x[600:700]))
        assert value is not None
        assert value > 1.2 * own

    def test_samples_need_not_be_centred(self) -> None:
        energy = Springs()
        plain, moved = (
            evaluate(Exact(energy, shift), energy, 400, protocol=SMALL).metrics
            for shift in (0.0, 5.0)
        )
        for name in PARTICLE_METRICS:
            assert moved[name].value == pytest.approx(plain[name].value, abs=0.02), name

    def test_the_validation_split_is_used_when_asked(self) -> None:
        class Guarded(ShippedSprings):
            def reference(self, split: Split = "test") -> Tensor:
                assert split == "validation"
                return super().reference(split)

        report = evaluate(Exact(Springs()), Guarded(), 400, split="validation", protocol=SMALL)
        kinds = {metric.details["reference"] for metric in report.metrics.values()}
        assert kinds == {"shipped, validation"}

    def test_the_same_seed_gives_the_same_numbers_and_the_global_generator_stays(self) -> None:
        state = torch.get_rng_state()
        first, again = (
            evaluate(Exact(Springs()), ShippedSprings(), 400, protocol=SMALL) for _ in range(2)
        )
        assert first == again
        assert torch.equal(torch.get_rng_state(), state)

    def test_ideals_do_not_depend_on_the_sampler(self) -> None:
        good, bad = (
            evaluate(Exact(Springs(), shift), ShippedSprings(), 400, protocol=SMALL).metrics
            for shift in (0.0, math.nan)
        )
        for name in PARTICLE_METRICS:
            assert good[name].ideal == bad[name].ideal

    def test_a_diverged_sampler_still_gets_a_report(self) -> None:
        report = evaluate(Exact(Springs(), math.nan), Springs(), 400, protocol=SMALL)
        for name, metric in report.metrics.items():
            assert metric.value == (1.0 if name.startswith("tvd") else math.inf), name
        assert json.loads(report.as_json())["metrics"]["w2"]["value"] is None

    def test_one_huge_energy_is_seen_by_w2_of_energies_alone(self) -> None:
        class Outlier(Exact):
            def _draw(self, n: int, generator: torch.Generator) -> Samples:
                samples = super()._draw(n, generator)
                samples.x[0] = samples.x[0] * 1e3
                return samples

        metrics = evaluate(Outlier(Springs()), Springs(), 400, protocol=SMALL).metrics
        assert metrics["w2_energy"].value > 1e3
        assert metrics["tvd_energy"].value < 2 * (metrics["tvd_energy"].ideal or 0.0)

    def test_a_chain_of_particles_gets_path_metrics_too(self) -> None:
        report = evaluate(oracle(Springs(), num_steps=3), Springs(), 400, protocol=SMALL)
        names = [*PARTICLE_METRICS, "log_z", *PROVEN, "elbo", "eubo", "gap", *OF_WEIGHTS]
        assert list(report.metrics) == names


class TestReport:
    def test_json_round_trip(self, report: Report) -> None:
        assert Report.from_json(report.as_json()) == report

    def test_json_has_the_documented_keys(self, report: Report) -> None:
        content = json.loads(report.as_json())
        keys = ["target", "agent", "seed", "n_samples", "train_seconds", "env_steps"]
        assert list(content) == [*keys, "energy_evaluations", "metrics", "details"]
        assert {"value", "ideal", "n", "bins"} <= content["metrics"]["tvd_energy"].keys()

    def test_what_is_no_report_is_refused_by_key(self, report: Report) -> None:
        content = json.loads(report.as_json())
        del content["target"]
        content["colour"] = "red"
        with pytest.raises(ValueError, match=r"missing keys \['target'\], unknown keys \['colour'"):
            Report.from_json(json.dumps(content))
        content = json.loads(report.as_json())
        del content["metrics"]["elbo"]["n"]
        with pytest.raises(ValueError, match="metric elbo must have the keys"):
            Report.from_json(json.dumps(content))

    def test_a_number_that_no_float_holds_is_refused(self, report: Report) -> None:
        text = report.as_json().replace('"n_samples": 4000', f'"n_samples": 1{"0" * 400}')
        with pytest.raises(ValueError, match=r"a whole number must be below 2\*\*63, got 1000"):
            Report.from_json(text)

    def test_saving_replaces_the_file_at_once(self, report: Report, tmp_path: Path) -> None:
        path = tmp_path / "report.json"
        path.write_text("old")
        report.save(path)
        assert Report.from_json(path.read_text()) == report
        assert os.listdir(tmp_path) == ["report.json"]

    def test_a_failed_save_leaves_the_old_file_and_nothing_else(
        self, report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "report.json"
        path.write_text("old")

        def fail(source: str, target: Path) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            report.save(path)
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["report.json"]

    def test_tensorboard_gets_values_and_ideals_have_the_same_tags(self, report: Report) -> None:
        class Writer:
            def __init__(self) -> None:
                self.scalars: dict[str, tuple[float, int]] = {}

            def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
                self.scalars[tag] = (scalar_value, global_step)

        writer = Writer()
        report.to_tensorboard(writer, 40)
        metric = report.metrics["tvd_energy"]
        assert writer.scalars["report/tvd_energy"] == (metric.value, 40)
        ideals = {tag: v for tag, v in report.ideals().items() if tag.startswith("report/")}
        assert ideals["report/tvd_energy"] == metric.ideal
        assert set(writer.scalars) - set(ideals) == {"report/k_hat"}  # which has no ideal


def small(value: float, ideal: float | None, name: str = "elbo") -> Report:
    return Report(
        target="Two",
        agent="vgs",
        seed=0,
        n_samples=1_000,
        train_seconds=1.0,
        env_steps=2,
        energy_evaluations=3,
        metrics={name: Metric(value=value, ideal=ideal, n=1_000, note="of ten")},
    )


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (163.15432, 0.0123, "163.1543 ± 0.0123"),  # the gap to 164.6957 is seen
        (259.0, 4.91e-18, "259.0000"),
        (3933.123, 41.0, "3,933.12 ± 41.00"),
        (5e-5, 1e-21, "5.0e-05"),
        (0.0, None, "0.0000"),
        (None, None, ""),
        (-math.inf, None, "-inf"),
        (1.5, math.nan, "1.5000"),
        (2.5e7, 1.0e5, "2.500e+07 ± 1.000e+05"),
    ],
)
def test_numbers_have_the_digits_that_gaps_need_and_no_error_below_them(
    value: float | None, error: float | None, text: str
) -> None:
    assert format_value(value, error) == text


class TestTables:
    def test_the_table_is_aligned_with_value_beside_ideal(self) -> None:
        report = small(-123.45678, 0.5)
        report.metrics["path_ess"] = Metric(value=0.25, ideal=1.0, n=20_000)
        assert report.to_table().splitlines() == [
            "metric        value   ideal       n  settings",
            "--------  ---------  ------  ------  --------",
            "elbo      -123.4568  0.5000   1,000  of ten",
            "path_ess     0.2500  1.0000  20,000",
        ]

    def test_markdown_tables_have_a_rule_of_equal_width(self) -> None:
        lines = small(1.0, None).to_table(markdown=True).splitlines()
        assert [len(line) for line in lines] == [len(lines[0])] * 3
        assert lines[1] == "| ------ | -----: | ----: | ----: | -------- |"
        assert lines[2] == "| elbo   | 1.0000 |       | 1,000 | of ten   |"

    def test_comparison_takes_the_ideal_of_the_first_report(self) -> None:
        reports = {"this run": small(1.0, 0.25), "oracle bellman": small(3.0, 0.75)}
        reports["other"] = small(7.0, None, name="eubo")
        header, _, elbo, eubo = format_comparison(reports).splitlines()[1:]
        assert header.split() == ["metric", "this", "run", "ideal", "oracle", "bellman", "other"]
        assert elbo.split() == ["elbo", "1.0000", "0.2500", "3.0000", "(0.7500)"]
        assert eubo.split() == ["eubo", "7.0000"]
        assert "in brackets: a sampler's own ideal" in format_comparison(reports)
        assert "| this run |" in format_comparison(reports, markdown=True)

    def test_equal_ideals_are_shown_once(self) -> None:
        text = format_comparison({"this run": small(1.0, 0.25), "again": small(3.0, 0.25)})
        assert "(" not in text and "brackets" not in text

    def test_an_empty_comparison_is_refused(self) -> None:
        with pytest.raises(ValueError, match="reports must not be empty"):
            format_comparison({})
