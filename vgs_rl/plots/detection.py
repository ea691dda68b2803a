"""Pictures of anomaly detection: images with their scores, scores by kind, features in a plane."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from vgs_rl.evaluation.detection import (
    LabelledFeatures,
    Score,
    image_scores,
    score_features,
    score_maps,
)
from vgs_rl.plots import panels as draw

ROWS = ("image", "mask", "score")
COLOURS = {
    "data": draw.EXACT,
    "normal": "#0072B2",
    "anomalies": "#CC79A7",
    "negatives": draw.SAMPLER,
}
# Panels of a training's curves: title, and the tags drawn.
CURVES = {
    "AUROC on validation": ("eval/auroc_image", "eval/auroc_pixel"),
    "energy": ("eval/energy_normal", "eval/energy_anomalies", "eval/energy_negatives"),
}


def plot_detections(
    score: Score, data: LabelledFeatures, chosen: Tensor | None = None, *, most: int = 10
) -> Figure:
    """A column for each image: itself, its mask (outlined), and the heat map of its scores.

    All heat maps share one colour scale, from the median score of the normal images' positions to
    the largest score shown; so a normal image is dark where the detector is right.

    Args:
        score: maps features (B, D) to (B,).
        data: grids with images and masks.
        chosen: indices of the images shown, shape (n,); by default `most` of them, evenly spread
            over the data's kinds.
        most: how many at most.

    Raises:
        ValueError: if the data are no grids, or have no images or masks.
    """
    if not data.is_grid or data.images is None or data.masks is None:
        raise ValueError("data must be grids with images and masks to be drawn")
    chosen = (_spread(data.kinds, most) if chosen is None else chosen)[:most]
    normal = data.select(~data.labels)
    ideal = float(score_features(score, normal.x).median()) if len(normal) else math.nan
    shown = data.select(chosen)
    assert shown.images is not None and shown.masks is not None
    scores = score_features(score, shown.x)
    heat = score_maps(scores, (int(shown.masks.shape[1]), int(shown.masks.shape[2]))).cpu()
    finite = heat[torch.isfinite(heat)]
    ends = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    low = ideal if math.isfinite(ideal) else ends[0]
    high = max(ends[1], low + 1e-12)
    with rc_context(draw.STYLE):
        figure = Figure(figsize=(1.15 * len(shown) + 0.4, 3.7), layout="constrained")
        axes = figure.subplots(len(ROWS), len(shown), squeeze=False)
        for column, top in enumerate(image_scores(scores).tolist()):
            image = shown.images[column].cpu().numpy()
            mask = shown.masks[column].cpu()
            for row in (0, 1):
                axes[row, column].imshow(image, cmap="gray", vmin=0, vmax=255)
            if bool(mask.any()):
                axes[1, column].contour(mask.float(), levels=[0.5], colors=[draw.SAMPLER])
            picture = axes[2, column].imshow(heat[column], cmap="inferno", vmin=low, vmax=high)
            axes[0, column].set_title(shown.kinds[column], fontsize=8)
            axes[2, column].set_xlabel(f"{top:.3g}", fontsize=7.5)
        for row, name in enumerate(ROWS):
            axes[row, 0].set_ylabel(name)
        for panel in axes.flat:
            panel.set(xticks=[], yticks=[])
        figure.colorbar(picture, ax=axes[2, :].tolist(), fraction=0.03, pad=0.01)
    return figure


def plot_scores(scores: Mapping[str, Tensor], *, bins: int = 60) -> Figure:
    """Histograms of scores by kind, over each other.

    Args:
        scores: scores of any shape by kind, such as data, normal, anomalies, negatives.
        bins: over the range of all kinds but the outermost hundredth of each.
    """
    values = {kind: draw.array(each.flatten()) for kind, each in scores.items()}
    values = {kind: each[np.isfinite(each)] for kind, each in values.items()}
    values = {kind: each for kind, each in values.items() if len(each)}
    low = min((float(np.quantile(each, 0.005)) for each in values.values()), default=0.0)
    high = max((float(np.quantile(each, 0.995)) for each in values.values()), default=1.0)
    if high - low <= 1e-6 * max(1.0, abs(low)):  # all the same
        high = low + max(1.0, abs(low))
    edges = np.linspace(low, high, bins + 1)
    with rc_context(draw.STYLE):
        figure = Figure(figsize=(4.2, 2.7), layout="constrained")
        axes = figure.subplots()
        for kind, each in values.items():
            heights = np.histogram(each, edges)[0] / (len(each) * (edges[1] - edges[0]))
            colour, filled = COLOURS.get(kind), kind == "data"
            axes.stairs(heights, edges, fill=filled, color=colour, lw=1.4, label=kind)
        axes.set(xlabel="score", ylabel="density", ylim=(0, None))
        if values:
            axes.legend()
    return figure


def plot_projection(clouds: Mapping[str, Tensor]) -> Figure:
    """Features of several kinds on the two principal axes of the first kind.

    A single feature has histograms.

    Args:
        clouds: rows (n, D) by kind; the first, at least two finite rows, defines the axes.

    Raises:
        ValueError: if there is no first kind with at least two finite rows.
    """
    first = next(iter(clouds.values()), torch.empty(0, 0)).detach().double().cpu()
    first = first[torch.isfinite(first).all(-1)]
    if first.ndim != 2 or len(first) < 2:
        raise ValueError(
            f"clouds must begin with rows (n, D), n at least 2, got {tuple(first.shape)}"
        )
    if first.shape[1] == 1:
        figure = plot_scores(clouds)
        figure.axes[0].set_xlabel("feature")
        return figure
    mean = first.mean(0)
    directions = torch.linalg.svd(first - mean, full_matrices=False).Vh[:2].T  # (D, 2)
    with rc_context(draw.STYLE):
        figure = Figure(figsize=(3.9, 3.6), layout="constrained")
        axes = figure.subplots()
        for kind, rows in clouds.items():
            plane = (rows.detach().double().cpu() - mean) @ directions
            axes.plot(*plane.T, ".", ms=3.5, mew=0, alpha=0.6, color=COLOURS.get(kind), label=kind)
        axes.set(xlabel="first principal axis", ylabel="second", xticks=[], yticks=[])
        axes.legend(markerscale=2)
    return figure


def plot_detector_curves(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Validation AUROC and the energies of every kind over the updates.

    Args:
        records: lines of a run's ``metrics.jsonl``.
    """
    with rc_context(draw.STYLE):
        figure = Figure(figsize=(7.4, 2.7), layout="constrained")
        panels = figure.subplots(1, len(CURVES))
        for axes, (title, tags) in zip(panels, CURVES.items(), strict=True):
            for tag in tags:
                points = [(r["updates"], r[tag]) for r in records if r.get(tag) is not None]
                if not points:
                    continue
                name = tag.removeprefix("eval/").partition("_")[2]
                axes.plot(*zip(*points, strict=True), color=COLOURS.get(name), lw=1.3, label=name)
            axes.set(xlabel="updates", title=title)
            if axes.lines:
                axes.legend()
    return figure


def _spread(kinds: tuple[str, ...], most: int) -> Tensor:
    """At most `most` indices: the first of every kind, then the second of every kind, and so on."""
    seen: dict[str, int] = {}
    ranked = []
    for index, kind in enumerate(kinds):
        seen[kind] = seen.get(kind, 0) + 1
        ranked.append((seen[kind], index))
    chosen = sorted(index for _, index in sorted(ranked)[:most])
    names = list(dict.fromkeys(kinds))
    return torch.tensor(sorted(chosen, key=lambda index: (names.index(kinds[index]), index)))
