"""Whole trainings of shipped configurations, against bounds that users are promised."""

from pathlib import Path

import pytest

from vgs_rl.experiments.config import config_of, parse_run
from vgs_rl.experiments.run import train

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demo_learns_the_nine_mode_mixture(seed: int, tmp_path: Path) -> None:
    arguments = ["--config", str(ROOT / "configs/gmm9.yaml"), "--output", str(tmp_path)]
    arguments += ["--seed", str(seed)]
    config = config_of(parse_run(arguments))
    report = train(config, progress_bar=False)
    assert report is not None and report.n_samples == 20_000
    metrics = {name: metric.value for name, metric in report.metrics.items()}
    ideal = report.metrics["tvd_energy"].ideal
    assert ideal is not None and metrics["tvd_energy"] <= 2 * ideal
    assert metrics["std_error"] <= 0.06
    assert metrics["mode_weight_error"] <= 0.012
    assert metrics["log_z_error"] <= 0.02
    assert metrics["path_ess"] >= 0.4
    assert metrics["elbo"] <= 0 <= metrics["eubo"]
