"""Anomaly detection: how well scores tell anomalies from normal data, of images and of pixels.

A score is any function from features (B, D) to (B,), high where a row is anomalous: an energy, a
classical detector, a distance. Features are rows (N, D), or grids (N, H, W, D) that describe an
image position by position; then the image's score is the largest of its positions, and its pixel
map is the grid of scores, bilinearly upsampled to the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vgs_rl.evaluation.report import Metric

Score = Callable[[Tensor], Tensor]
CHUNK = 8_192  # rows scored at once


@dataclass(frozen=True, kw_only=True)
class LabelledFeatures:
    """Features of normal and anomalous images, with what is known about them.

    Attributes:
        x: features, shape (N, D) or (N, H, W, D), floating.
        labels: whether each is an anomaly, shape (N,), bool.
        classes: the class of each image, N names; metrics are computed by class.
        kinds: what each image is, N names: "good", or the kind of its defect.
        masks: which pixels are defective, shape (N, h, w), bool, or None.
        images: the images, shape (N, h, w) or (N, h, w, 3), uint8, or None.
    """

    x: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    kinds: tuple[str, ...]
    masks: Tensor | None = None
    images: Tensor | None = None

    def __post_init__(self) -> None:
        n = len(self.x)
        if self.x.ndim not in (2, 4) or not self.x.is_floating_point():
            raise ValueError(
                "x must be floating, of shape (N, D) or (N, H, W, D), "
                f"got {self.x.dtype} of shape {tuple(self.x.shape)}"
            )
        for name, size in (("labels", 1), ("masks", 3)):
            tensor = getattr(self, name)
            if tensor is None:
                continue
            if tensor.dtype != torch.bool or tensor.ndim != size or len(tensor) != n:
                expected = f"bool, of {size} dimensions and {n} rows as x"
                got = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
                raise ValueError(f"{name} must be {expected}, got {got}")
        for name in ("classes", "kinds", "images"):
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise ValueError(f"{name} must have {n} entries as x, got {len(value)}")

    def __len__(self) -> int:
        return len(self.x)

    @property
    def dim(self) -> int:
        """Dimension D of the features."""
        return int(self.x.shape[-1])

    @property
    def is_grid(self) -> bool:
        """Whether an image is a grid of features rather than one row."""
        return self.x.ndim == 4

    def select(self, chosen: Tensor) -> LabelledFeatures:
        """The images of a mask of shape (N,), bool, or of indices, shape (n,)."""
        rows = chosen.nonzero()[:, 0] if chosen.dtype == torch.bool else chosen
        changed: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Tensor):
                changed[entry.name] = value[rows]
            elif value is not None:
                changed[entry.name] = tuple(value[int(i)] for i in rows)
        return LabelledFeatures(**changed)


@torch.no_grad()
def score_features(score: Score, x: Tensor, chunk: int = CHUNK) -> Tensor:
    """Scores of features (N, D) or (N, H, W, D), shape (N,) or (N, H, W), `chunk` rows at a time.

    Raises:
        ValueError: if `score` does not return one number a row.
    """
    rows = x.reshape(-1, x.shape[-1])
    scores = torch.cat([score(part) for part in rows.split(chunk)])
    if scores.shape != rows.shape[:1]:
        raise ValueError(f"score must return shape {tuple(rows.shape[:1])}, got {scores.shape}")
    return scores.view(x.shape[:-1])


def image_scores(scores: Tensor) -> Tensor:
    """The largest score of each grid, shape (N,); scores that are rows already stay as they are."""
    return scores if scores.ndim == 1 else scores.flatten(1).amax(dim=1)


def score_maps(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixel maps of shape (N, h, w) from grids of scores (N, H, W), by bilinear interpolation.

    A position's score stands at the centre of the h/H x w/W pixels that it describes (half-pixel
    centres); beyond the outermost centres the map is constant.

    Args:
        scores: shape (N, H, W).
        size: (h, w), the image's size in pixels.

    Raises:
        ValueError: if the scores are not grids.
    """
    if scores.ndim != 3:
        raise ValueError(f"scores must be grids of shape (N, H, W), got {tuple(scores.shape)}")
    return functional.interpolate(
        scores[:, None], size=size, mode="bilinear", align_corners=False
    ).squeeze(1)


def auroc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve: P(anomaly's score > normal's) + ½ P(equal), in [0, 1].

    Args:
        scores: any shape; +∞ and -∞ rank above and below everything.
        labels: the same shape; true for anomalies.

    Returns:
        The area; NaN if a score is NaN.

    Raises:
        ValueError: if the shapes differ, or one of the two kinds is missing.
    """
    if scores.shape != labels.shape:
        raise ValueError(
            f"scores and labels must have the same shape, "
            f"got {tuple(scores.shape)} and {tuple(labels.shape)}"
        )
    truth = labels.flatten().bool().cpu().numpy()
    if truth.all() or not truth.any():
        raise ValueError(
            f"labels must hold anomalies and normal data, got {truth.sum()} of {truth.size}"
        )
    values = scores.detach().flatten().double().cpu().numpy()
    if np.isnan(values).any():
        return math.nan
    from sklearn.metrics import roc_auc_score  # a second of import time

    largest = np.finfo(np.float64).max
    return float(roc_auc_score(truth, np.clip(values, -largest, largest)))


def detection_metrics(
    score: Score, data: LabelledFeatures, chunk: int = CHUNK
) -> dict[str, Metric]:
    """`auroc_image` and, where there are masks, `auroc_pixel`: by class, and their mean.

    Of a class with several kinds of defects, all of them are anomalies. Pixels of all its images,
    normal ones included, make one ROC curve.

    Args:
        score: maps features (B, D) to (B,).
        data: what to evaluate.
        chunk: rows scored at once.

    Returns:
        Metrics whose value is the mean over classes; ``details["classes"]`` has each class. The
        ideal, what a perfect detector scores, is 1.

    Raises:
        ValueError: if a class lacks normal images or anomalies.
    """
    scores = score_features(score, data.x, chunk)
    rows = [(name, _of_class(data.classes, name)) for name in dict.fromkeys(data.classes)]
    images = image_scores(scores)
    by_class = {name: auroc(images[chosen], data.labels[chosen]) for name, chosen in rows}
    metrics = {"auroc_image": _mean(by_class, len(data), "images")}
    if data.masks is not None and data.is_grid:
        masks, by_class = data.masks, {}
        size = (int(masks.shape[1]), int(masks.shape[2]))
        for name, chosen in rows:
            by_class[name] = auroc(score_maps(scores[chosen], size), masks[chosen])
        metrics["auroc_pixel"] = _mean(by_class, masks.numel(), f"pixels of {size[0]}x{size[1]}")
    return metrics


def mean_metrics(each: Sequence[dict[str, Metric]]) -> dict[str, Metric]:
    """Joins metrics of several data sets, such as one for each held-out class: means over classes.

    Raises:
        ValueError: if there are none, or two of them evaluate a class of the same name.
    """
    if not each:
        raise ValueError("each must hold at least one data set's metrics, got none")
    joined = {}
    for name, first in each[0].items():
        parts = [metrics[name] for metrics in each]
        classes: dict[str, float] = {}
        for part in parts:
            twice = classes.keys() & part.details["classes"].keys()
            if twice:
                raise ValueError(f"class {sorted(twice)[0]!r} is evaluated twice")
            classes |= part.details["classes"]
        unit = first.note.partition(", ")[2]
        joined[name] = _mean(classes, sum(part.n for part in parts), unit)
    return joined


def _of_class(classes: Sequence[str], name: str) -> Tensor:
    return torch.tensor([each == name for each in classes])


def _mean(by_class: dict[str, float], n: int, unit: str) -> Metric:
    classes = "class" if len(by_class) == 1 else "classes"
    return Metric(
        value=sum(by_class.values()) / len(by_class),
        ideal=1.0,
        n=n,
        note=f"mean of {len(by_class)} {classes}, {unit}",
        details={"classes": by_class},
    )
