"""An anomaly detector trained as an energy-based model: watched, chosen by validation, judged.

Validation alone chooses the checkpoint; the test split is scored once, at the end.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from vgs_rl.agents.ebm import EBMTrainer
from vgs_rl.checkpoint import load_checkpoint
from vgs_rl.checks import require_at_least
from vgs_rl.config import BudgetConfig
from vgs_rl.detection import (
    LabelledFeatures,
    detection_figures,
    image_scores,
    score_features,
)
from vgs_rl.detection_plots import (
    plot_detections,
    plot_detector_curves,
    plot_projection,
    plot_scores,
)
from vgs_rl.fields import settle
from vgs_rl.plots import Drawing
from vgs_rl.report import Figure, Report
from vgs_rl.restore import fitting, load_module
from vgs_rl.run import RunFolder

Choice = Literal["image", "pixel", "mean"]


class DetectionData(Protocol):
    """What a detector is trained, chosen and judged on."""

    @property
    def rows(self) -> Tensor:
        """Normal features, shape (N, D)."""

    @property
    def validation(self) -> LabelledFeatures:
        """Chooses."""

    @property
    def test(self) -> LabelledFeatures:
        """Judges."""


@dataclass(kw_only=True)
class WatchConfig:
    """How a detector's training is watched.

    Args:
        choose_by: which validation AUROC chooses the best checkpoint; `pixel` and `mean` (of
            both) count images alone where there are no masks.
        validate_every: updates between validations.
        log_every: updates between scalar records.
        save_every: updates between checkpoints.
        figures_every: validations between pictures in TensorBoard; 0 draws at the end only.
        projected: points of each kind in the projection.
    """

    choose_by: Choice = "image"
    validate_every: int = 50
    log_every: int = 10
    save_every: int = 250
    figures_every: int = 5
    projected: int = 400

    def __post_init__(self) -> None:
        settle(self, "watch")
        for name in ("validate_every", "log_every", "save_every", "projected"):
            require_at_least("watch", 1, **{name: getattr(self, name)})
        require_at_least("watch", 0, figures_every=self.figures_every)


class DetectorTraining:
    """One training in its run folder, from the first update to report.json.

    Attributes:
        trainer: what is trained; after :meth:`run`, its energy is the chosen one.
        best: the validation AUROC of the chosen checkpoint.

    Args:
        trainer: untrained; its data are `data.rows`.
        data: all three splits.
        watch: how often to look, and what chooses.
        path: the run folder.
        yaml: the run's configuration, for the folder.
        resume: whether to go on from the folder's last checkpoint.

    Raises:
        FileExistsError: if the folder holds another run.
        ValueError: if its checkpoint is damaged or another configuration's.
    """

    def __init__(
        self,
        trainer: EBMTrainer,
        data: DetectionData,
        watch: WatchConfig,
        *,
        path: Path,
        yaml: str,
        resume: bool = False,
    ) -> None:
        self.trainer, self.data, self.watch = trainer, data, watch
        at = None
        if resume:
            file = path / "checkpoints" / "last.pt"
            try:
                trainer.load_state_dict(load_checkpoint(file, trainer.mdp.device))
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from error
            at = trainer.counters.updates
        self.folder = RunFolder(path, yaml, resume_at=at)
        self.best = max(self._validated(), default=-1.0)
        if resume and not (path / "checkpoints" / "best.pt").is_file():
            self.best = -1.0

    def run(
        self,
        budget: BudgetConfig,
        *,
        target: str,
        seed: int,
        progress_bar: bool = True,
    ) -> Report | None:
        """Trains, takes the best checkpoint, judges it on the test split, writes report.json.

        Args:
            budget: when training ends.
            target: the data's name in the report.
            seed: training seed, for the report.
            progress_bar: whether to show one.

        Returns:
            The report, or None after Ctrl-C.
        """

        def look(trainer: EBMTrainer) -> None:
            if trainer.counters.updates % self.watch.validate_every == 0:
                self.validate()

        try:
            finished = self.trainer.learn(
                budget,
                folder=self.folder,
                log_every=self.watch.log_every,
                save_every=self.watch.save_every,
                progress_bar=progress_bar,
                callback=look,
            )
            return self._finish(target, seed) if finished else None
        finally:
            self.folder.close()

    # --- validation ---------------------------------------------------------------------------

    def validate(self) -> float:
        """Records figures of the validation split; keeps the checkpoint if none was better."""
        trainer, folder, validation = self.trainer, self.folder, self.data.validation
        figures = detection_figures(trainer.score, validation)
        chosen = chosen_by(self.watch.choose_by, figures)
        scores = image_scores(score_features(trainer.score, validation.x))
        scalars = {f"eval/{name}": figure.value for name, figure in figures.items()}
        scalars |= {
            "eval/validation": chosen,
            "eval/energy_normal": float(scores[~validation.labels].mean()),
            "eval/energy_anomalies": float(scores[validation.labels].mean()),
        }
        if len(trainer.drawn):
            scalars["eval/energy_negatives"] = float(trainer.score(trainer.drawn).mean())
        count = len(self._validated()) + 1
        folder.record(scalars, **asdict(trainer.counters))
        if chosen > self.best:
            self.best = chosen
            state = {"energy": trainer.energy.state_dict(), "counters": asdict(trainer.counters)}
            folder.save("best", state | {"validation": chosen})
        if self.watch.figures_every and count % self.watch.figures_every == 0:
            folder.draw(lambda: self.pictures(validation), trainer.counters.env_steps)
        return chosen

    def _validated(self) -> list[float]:
        values = [record.get("eval/validation") for record in self.folder.records]
        return [value for value in values if value is not None]

    def pictures(self, split: LabelledFeatures) -> dict[str, Drawing]:
        """Energies of every kind, negatives beside data, and heat maps over images of grids."""
        trainer, data = self.trainer, self.data
        negatives = trainer.drawn.cpu()
        judged = image_scores(score_features(trainer.score, split.x))
        scores = {
            "data": trainer.score(_some(data.rows, 4_000)),
            "normal": judged[~split.labels],
            "anomalies": judged[split.labels],
        }
        clouds = {
            "data": _some(data.rows, self.watch.projected),
            "anomalies": _some(_anomalous_rows(split), self.watch.projected),
        }
        if len(negatives):
            scores["negatives"] = trainer.score(negatives)
            clouds["negatives"] = negatives[: self.watch.projected]
        pictures: dict[str, Drawing] = {
            "energies": lambda: plot_scores(scores),
            "projection": lambda: plot_projection(clouds),
        }
        if split.is_grid and split.images is not None and split.masks is not None:
            pictures["heat_maps"] = lambda: plot_detections(trainer.score, split)
        return pictures

    # --- the end ------------------------------------------------------------------------------

    def _finish(self, target: str, seed: int) -> Report:
        trainer, folder = self.trainer, self.folder
        if not (folder.path / "checkpoints" / "best.pt").is_file():
            self.validate()  # a budget shorter than the first interval
        counters = trainer.counters
        load_energy(folder.path, trainer)
        report = judge_detector(
            trainer, self.data.test, target=target, seed=seed, validation=self.best
        )
        step = counters.env_steps
        report.to_tensorboard(folder.writer, step)
        folder.draw(lambda: self.pictures(self.data.test), step, keep=True)
        curves: Drawing = lambda: plot_detector_curves(folder.records)  # noqa: E731
        folder.draw(lambda: {"learning_curves": curves}, step, keep=True)
        report.save(folder.path / "report.json")  # the last file: with it, the run is finished
        return report


def judge_detector(
    trainer: EBMTrainer,
    split: LabelledFeatures,
    *,
    target: str,
    seed: int,
    validation: float | None = None,
) -> Report:
    """The report of a trainer's energy as a detector: AUROC of images and, with masks, of pixels.

    Args:
        trainer: whose energy scores.
        split: what to judge.
        target: the data's name in the report.
        seed: training seed, for the report.
        validation: the validation AUROC by which the energy was chosen.
    """
    counters, learner = trainer.counters, trainer.learner.counters
    guards: dict[str, Any] = {
        "rollbacks": learner.rollbacks,
        "collapses": learner.collapses,
        "restarts": trainer.negatives.counters.restarts,
    }
    return Report(
        target=target,
        agent=trainer.config.negatives.name,
        seed=seed,
        n_samples=len(split),
        train_seconds=counters.seconds,
        env_steps=counters.env_steps,
        energy_evaluations=counters.energy_evaluations,
        figures=detection_figures(trainer.score, split),
        details=guards | {"updates": counters.updates, "validation": validation},
    )


def load_energy(path: Path, trainer: EBMTrainer, checkpoint: str = "best") -> dict[str, Any]:
    """Puts a run's energy into a trainer; returns the checkpoint.

    Args:
        path: the run folder.
        trainer: of the run's configuration.
        checkpoint: `best` or `last`.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if it is damaged or another configuration's.
    """
    file = path / "checkpoints" / f"{checkpoint}.pt"
    state = load_checkpoint(file, trainer.mdp.device)
    weights = state["energy"] if "energy" in state else state.get("learner", {}).get("energy", {})
    with fitting(str(file)):
        load_module(trainer.energy, weights, "energy")
    return state


def chosen_by(choice: Choice, figures: dict[str, Figure]) -> float:
    """The number that chooses checkpoints: the AUROC of images, of pixels, or their mean."""
    image = figures["auroc_image"].value
    pixel = figures["auroc_pixel"].value if "auroc_pixel" in figures else image
    return {"image": image, "pixel": pixel, "mean": 0.5 * (image + pixel)}[choice]


def _anomalous_rows(split: LabelledFeatures) -> Tensor:
    """Features of anomalies, shape (n, D); of grids, those at positions that are in the mask."""
    x = split.x[split.labels]
    if not split.is_grid:
        return x
    if split.masks is None:
        return x.reshape(-1, split.dim)
    masks = split.masks[split.labels].float()[:, None]
    size = (int(x.shape[1]), int(x.shape[2]))
    return x[torch.nn.functional.adaptive_avg_pool2d(masks, size)[:, 0] > 0.5]


def _some(rows: Tensor, most: int) -> Tensor:
    """At most so many rows, evenly spread."""
    return rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).long()]
