"""Pictures of anomaly detection: images, where their defects are, and where the scores see them."""

from __future__ import annotations

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from vgs_rl import panels as draw
from vgs_rl.detection import LabelledFeatures, Score, image_scores, score_features, score_maps

ROWS = ("image", "mask", "score")


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
    floor = float(score_features(score, normal.x).median()) if len(normal) else None
    shown = data.select(chosen)
    assert shown.images is not None and shown.masks is not None
    scores = score_features(score, shown.x)
    heat = score_maps(scores, (int(shown.masks.shape[1]), int(shown.masks.shape[2]))).cpu()
    low = float(heat.min()) if floor is None else floor
    high = max(float(heat.max()), low + 1e-12)
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
