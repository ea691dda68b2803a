"""An anomaly detector trained as an energy-based model: watched, chosen by validation, evaluated.

Validation alone chooses the checkpoint; the test split is scored once, at the end.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from vgs_rl.agents.ebm.trainer import EBMTrainer
from vgs_rl.checks import require_at_least
from vgs_rl.evaluation.detection import (
    LabelledFeatures,
    detection_metrics,
    image_scores,
    score_features,
)
from vgs_rl.evaluation.report import Metric, Report
from vgs_rl.fields import settle
from vgs_rl.files.checkpoint import load_checkpoint
from vgs_rl.files.lock import FolderLock
from vgs_rl.files.restore import fitting, load_module
from vgs_rl.plots.detection import (
    plot_detections,
    plot_detector_curves,
    plot_projection,
    plot_scores,
)
from vgs_rl.plots.plots import Drawing
from vgs_rl.training.config import BudgetConfig
from vgs_rl.training.folder import RunFolder
from vgs_rl.training.identity import identity_details, identity_of, settings_of
from vgs_rl.training.resume import check_identity, chosen_checkpoint, notice
from vgs_rl.training.states import is_kept

Choice = Literal["image", "pixel", "mean"]


class DetectionData(Protocol):
    """What a detector is trained, chosen and evaluated on."""

    @property
    def rows(self) -> Tensor:
        """Normal features, shape (N, D)."""

    @property
    def validation(self) -> LabelledFeatures:
        """Chooses."""

    @property
    def test(self) -> LabelledFeatures:
        """Evaluates."""


@dataclass(kw_only=True)
class WatchConfig:
    """How a detector's training is watched.

    Args:
        choose_by: which validation AUROC chooses the best checkpoint; `pixel` and `mean` (of
            both) count images alone where there are no masks.
        validate_every: updates between validations.
        log_every: updates between scalar records.
        save_every: updates between checkpoints.
        save_seconds: most seconds between checkpoints: what a killed run loses at most.
        figures_every: validations between pictures in TensorBoard; 0 draws at the end only.
        projected: points of each kind in the projection.
    """

    changeable: ClassVar[tuple[str, ...]] = (
        "validate_every",
        "log_every",
        "save_every",
        "save_seconds",
        "figures_every",
        "projected",
    )

    choose_by: Choice = "image"
    validate_every: int = 50
    log_every: int = 10
    save_every: int = 250
    save_seconds: float = 60.0
    figures_every: int = 5
    projected: int = 400

    def __post_init__(self) -> None:
        settle(self, "watch")
        for name in ("validate_every", "log_every", "save_every", "projected"):
            require_at_least("watch", 1, **{name: getattr(self, name)})
        require_at_least("watch", 0, figures_every=self.figures_every)
        require_at_least("watch", 0, save_seconds=self.save_seconds)


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
        config: the same as a dataclass: what defines the run is kept in checkpoints and report.
        resume: whether to go on with the folder's run, from its last checkpoint if it has one.
        overwrite: whether to replace the folder's run.

    Raises:
        FileExistsError: if the folder holds another run.
        FolderInUse: if another process works in it.
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
        config: Any = None,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.trainer, self.data, self.watch, self.config = trainer, data, watch, config
        identity = None if config is None else identity_of(config)
        if resume:
            with ExitStack() as on_error:
                lock = on_error.enter_context(FolderLock(path))
                at = self._load_last(path)
                self.folder = RunFolder(path, yaml, identity=identity, resume_at=at, lock=lock)
                on_error.pop_all()
        else:
            self.folder = RunFolder(path, yaml, identity=identity, overwrite=overwrite)
        self.best = max(self._validated(), default=-1.0)
        if resume and not (path / "checkpoints" / "best.pt").is_file():
            self.best = -1.0

    def _load_last(self, path: Path) -> int:
        """Goes to the last checkpoint; returns its updates, -1 where there is none."""
        file = path / "checkpoints" / "last.pt"
        if not file.is_file():
            notice(f"{path} has no checkpoint yet: it starts from the beginning")
            return -1
        state = load_checkpoint(file, self.trainer.mdp.device)
        if self.config is not None:
            check_identity(file, state, self.config)
        try:
            self.trainer.load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        return self.trainer.counters.updates

    def run(
        self,
        budget: BudgetConfig,
        *,
        target: str,
        seed: int,
        progress_bar: bool = True,
    ) -> Report | None:
        """Trains, takes the best checkpoint, evaluates it on the test split, writes report.json.

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
            if self.config is not None:
                self.folder.hyper_parameters(settings_of(self.config))
            if not self.folder.records:
                self.validate(competes=False)
            finished = self.trainer.learn(
                budget,
                folder=self.folder,
                log_every=self.watch.log_every,
                save_every=self.watch.save_every,
                save_seconds=self.watch.save_seconds,
                progress_bar=progress_bar,
                callback=look,
            )
            return self._finish(target, seed) if finished else None
        finally:
            self.folder.close()

    # --- validation ---------------------------------------------------------------------------

    def validate(self, *, competes: bool = True) -> float:
        """Records metrics of the validation split; keeps the checkpoint if none was better.

        Args:
            competes: whether it may be kept; an untrained one may not.
        """
        trainer, folder, validation = self.trainer, self.folder, self.data.validation
        metrics = detection_metrics(trainer.score, validation)
        chosen = chosen_by(self.watch.choose_by, metrics)
        scores = image_scores(score_features(trainer.score, validation.x))
        scalars = {f"eval/{name}": metric.value for name, metric in metrics.items()}
        scalars |= {
            "eval/validation": chosen,
            "eval/energy_normal": float(scores[~validation.labels].mean()),
            "eval/energy_anomalies": float(scores[validation.labels].mean()),
        }
        if len(trainer.drawn):
            scalars["eval/energy_negatives"] = float(trainer.score(trainer.drawn).mean())
        count = len(self._validated()) + 1
        folder.record(scalars, **asdict(trainer.counters))
        if competes and chosen > self.best:
            self.best = chosen
            state = {"energy": trainer.energy.state_dict(), "counters": asdict(trainer.counters)}
            folder.save("best", state | {"validation": chosen})
        every = self.watch.figures_every
        if competes and every and count % every == 0 and is_kept(count // every):
            folder.draw(lambda: self.pictures(validation), trainer.counters.env_steps)
        return chosen

    def _validated(self) -> list[float]:
        """What competed so far."""
        records = [record for record in self.folder.records if record["updates"]]
        values = [record.get("eval/validation") for record in records]
        return [value for value in values if value is not None]

    def pictures(self, split: LabelledFeatures) -> dict[str, Drawing]:
        """Energies of every kind, negatives and data, and heat maps over images of grids."""
        trainer, data = self.trainer, self.data
        negatives = trainer.drawn.cpu()
        evaluated = image_scores(score_features(trainer.score, split.x))
        scores = {
            "data": trainer.score(_some(data.rows, 4_000)),
            "normal": evaluated[~split.labels],
            "anomalies": evaluated[split.labels],
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
        chosen = chosen_checkpoint(folder.path)
        if chosen != "best":
            notice(f"no validation of {folder.path} is a number: the last energy is evaluated")
        load_energy(folder.path, trainer, chosen)
        report = evaluate_detector(
            trainer, self.data.test, target=target, seed=seed, validation=self.best
        )
        report.details["checkpoint"] = chosen
        if self.config is not None:
            report.details |= identity_details(self.config)
            folder.hyper_parameters(settings_of(self.config), finished=True)
        step = counters.env_steps
        report.to_tensorboard(folder.writer, step)
        folder.draw(lambda: self.pictures(self.data.test), step, keep=True)
        curves: Drawing = lambda: plot_detector_curves(folder.records)  # noqa: E731
        folder.draw(lambda: {"learning_curves": curves}, step, keep=True)
        folder.finish(report)
        return report


def evaluate_detector(
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
        split: what to evaluate.
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
        metrics=detection_metrics(trainer.score, split),
        details=guards | {"updates": counters.updates, "validation": validation},
    )


def load_energy(
    path: Path, trainer: EBMTrainer, checkpoint: str | None = None, config: Any = None
) -> dict[str, Any]:
    """Puts a run's energy into a trainer; returns the checkpoint.

    Args:
        path: the run folder.
        trainer: of the run's configuration.
        checkpoint: `best` or `last`; by default the best, or the last if validation chose none.
        config: the run's configuration, to compare the checkpoint with.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if it is damaged or another configuration's.
    """
    file = path / "checkpoints" / f"{chosen_checkpoint(path, checkpoint)}.pt"
    state = load_checkpoint(file, trainer.mdp.device)
    if config is not None:
        check_identity(file, state, config)
    weights = state["energy"] if "energy" in state else state.get("learner", {}).get("energy", {})
    with fitting(str(file)):
        load_module(trainer.energy, weights, "energy")
    return state


def chosen_by(choice: Choice, metrics: dict[str, Metric]) -> float:
    """The number that chooses checkpoints: the AUROC of images, of pixels, or their mean."""
    image = metrics["auroc_image"].value
    pixel = metrics["auroc_pixel"].value if "auroc_pixel" in metrics else image
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
