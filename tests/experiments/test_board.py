"""What TensorBoard shows of a comparison, read back with TensorBoard's own readers."""

from pathlib import Path
from typing import Any

import pytest
import tiny as tiny_config
import torch
from commands import without_pictures
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata

from vgs_rl.experiments.comparison import board
from vgs_rl.experiments.comparison.board import CHARTS, PERCENT, write_board, write_layout
from vgs_rl.experiments.comparison.jobs import Job, make_jobs
from vgs_rl.experiments.comparison.worker import run_job
from vgs_rl.training.events import SESSION
from vgs_rl.training.folder import RunFolder
from vgs_rl.training.states import FILES, ROWS, load_states

TINY = (
    tiny_config.TINY
    + """\
evaluation: {n_samples: 200, validation_samples: 100, validate_every: 4, figures_every: 0}
"""
)
TABLE = "| agent | elbo |\n|---|---|\n| vgs | 1 |"
AXES = ("eval", "eval_by_energies", "eval_by_milliseconds")


def events_of(folder: Path) -> EventAccumulator:
    # Images are a reservoir of four by default; 0 keeps everything.
    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Job]]:
    root = tmp_path_factory.mktemp("board")
    (root / "tiny.yaml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        budget: dict[str, float | int] = {"energy_evaluations": 6000}
        jobs = make_jobs(
            ["tiny.yaml"], ["vgs", "pis", "pis-plain", "mala"], [0], budget, root, device="cpu"
        )
    with without_pictures():
        for job in jobs:
            assert run_job(job)
    for some, table in ((jobs[:1], "stale"), (jobs, TABLE)):  # the second in place of the first
        write_layout(root)
        write_board(root, some, table)
    return root, jobs


def test_the_layout_has_one_chart_a_metric_on_each_axis(compared: tuple[Path, list[Job]]) -> None:
    events = events_of(compared[0])
    (event,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    charts = [[chart.title for chart in category.chart] for category in layout.category]
    assert charts == [list(CHARTS)] * 3
    tags = [chart.multiline.tag[0] for category in layout.category for chart in category.chart]
    assert tags == [f"^{axis}/{name}$" for axis in AXES for name in CHARTS.values()]


def test_the_ideal_is_a_run_with_the_tags_of_the_others(compared: tuple[Path, list[Job]]) -> None:
    root, jobs = compared
    ideal = events_of(root / "FourGauss/ideal")
    runs = [events_of(job.folder) for job in jobs]
    others = {tag for run in runs for tag in run.Tags()["scalars"]}
    tags = set(ideal.Tags()["scalars"])
    assert tags <= others and not any(tag.endswith("_ideal") for tag in others)
    assert {f"{axis}/{name}" for axis in AXES for name in CHARTS.values()} <= tags
    heights = {"eval/elbo": 0.0, "eval/path_ess": 1.0}
    assert 0.05 < ideal.Scalars("eval/tvd_energy")[0].value < 0.5  # that of 100 exact samples
    for tag, height in heights.items():
        first, last = ideal.Scalars(tag)
        ends = [run.Scalars(tag)[-1].step for run in runs if tag in run.Tags()["scalars"]]
        assert first.value == last.value == pytest.approx(height, abs=1e-6)
        assert first.step == 0 and last.step == max(ends)


def test_hparams_name_agents_and_hold_only_what_tells_runs_apart(
    compared: tuple[Path, list[Job]],
) -> None:
    root, jobs = compared
    content = events_of(root).summary_metadata["_hparams_/experiment"].plugin_data.content
    experiment = metadata.parse_experiment_plugin_data(content)
    columns = {info.name for info in experiment.hparam_infos}
    seen: dict[str, set[str]] = {}
    for job in jobs:
        events = events_of(job.folder)
        content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        settings = metadata.parse_session_start_info_plugin_data(content).hparams
        assert settings["agent"].string_value == job.agent
        assert settings["target"].string_value == "FourGauss"
        assert set(settings) <= columns
        for name in settings:
            seen.setdefault(name, set()).add(str(settings[name]))
        assert "_hparams_/session_end_info" in events.summary_metadata
    assert set(seen) == columns > {"agent", "target", "seed"}
    assert all(len(seen[name]) > 1 for name in columns - {"target", "seed"})
    metrics = {info.name.tag for info in experiment.metric_infos}
    found = {f"report/{name}" for job in jobs if (r := job.report()) for name in r.metrics}
    assert metrics == found


def test_the_table_is_a_text_card_and_samples_are_images_over_the_budget(
    compared: tuple[Path, list[Job]],
) -> None:
    events = events_of(compared[0])
    (text,) = events.Tensors("comparison/text_summary")
    assert text.tensor_proto.string_val[0].decode() == TABLE
    images = events.Images("samples/FourGauss")
    assert [image.step for image in images] == list(PERCENT)
    assert all(image.encoded_image_string.startswith(b"\x89PNG") for image in images)
    assert len({image.encoded_image_string for image in images}) > 2


def test_baselines_have_the_histograms_and_states_of_trainings(
    compared: tuple[Path, list[Job]],
) -> None:
    for job in compared[1]:
        histograms = set(events_of(job.folder).Tags()["histograms"])
        assert "eval/energy" in histograms
        assert ("eval/log_weight" in histograms) == (job.agent != "mala")
        kept = [each.counters["env_steps"] for each in load_states(job.folder)]
        assert kept and kept == sorted(kept)


def test_a_picture_that_fails_is_a_warning_and_the_rest_is_written(
    compared: tuple[Path, list[Job]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(energy: Any) -> torch.Tensor:
        raise RuntimeError("no ink")

    monkeypatch.setattr(board, "exact_states", fail)
    write_board(tmp_path, compared[1], TABLE)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["warning: no picture samples/FourGauss: RuntimeError: no ink"]
    assert "comparison/text_summary" in events_of(tmp_path).Tags()["tensors"]
    assert (compared[1][0].folder / SESSION).is_file()


def test_kept_states_are_few_spread_over_the_run_and_cut_by_a_resume(tmp_path: Path) -> None:
    def validate(folder: RunFolder, updates: int) -> None:
        counters = {"env_steps": 10 * updates, "energy_evaluations": updates, "seconds": 1.0}
        folder.record({"eval/elbo": 0.0}, updates=updates, **counters)  # type: ignore[arg-type]
        folder.keep_states(torch.full((1000, 2), float(updates)))

    def kept() -> list[float]:
        return [each.counters["updates"] for each in load_states(tmp_path / "run")]

    with RunFolder(tmp_path / "run", "x: 1\n") as folder:
        for updates in range(50):
            validate(folder, updates)
    undisturbed = kept()
    assert undisturbed == list(range(0, 50, 4)) and len(undisturbed) <= FILES
    assert all(each.x.shape == (ROWS, 2) for each in load_states(tmp_path / "run"))
    with RunFolder(tmp_path / "run", "x: 1\n", resume_at=21) as folder:
        assert kept() == [0, 4, 8, 12, 16, 20]
        for updates in range(22, 50):
            validate(folder, updates)
    assert kept() == undisturbed
