"""Handwritten digits with one of the ten classes held out as the anomaly; ships with scikit-learn.

1,797 images of 8x8 pixels (the test set of the UCI data "Optical Recognition of Handwritten
Digits"). Trained on nine classes, a detector must find the tenth: ten rotations, whose mean is the
metric to report.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vgs_rl.checks import seed_of
from vgs_rl.envs.anomaly.data import AnomalyData, unit
from vgs_rl.evaluation.detection import LabelledFeatures

DIGITS = tuple(range(10))
TRAIN_SHARE, VALIDATION_SHARE = 0.6, 0.2  # of the normal images; the rest evaluates


def load_digits(held_out: int, *, centred: bool = True, seed: int = 0) -> AnomalyData:
    """Digits without one class, D = 64, unit norm.

    Features are the pixels divided by 16, minus the mean of the training images, divided by their
    norm. Without the mean all images lie in one corner of the sphere, where the distance that
    scikit-learn's OneClassSVM measures by hardly tells them apart; `centred=False` leaves it.

    The normal images are split at random by `seed`: 60 % to train, 20 % to validate, 20 % to
    test. The test anomalies are all images of the class held out. The validation anomalies, as
    many as normal ones, are made of normal validation images: the left half of one joined to the
    right half of another of a different class.

    Args:
        held_out: the anomaly, 0 to 9.
        centred: whether the training mean is subtracted.
        seed: of the split and of the pseudo-anomalies.

    Raises:
        ValueError: if `held_out` is not a digit.
    """
    if held_out not in DIGITS:
        raise ValueError(f"held_out must be a digit from 0 to 9, got {held_out!r}")
    from sklearn import datasets

    content = datasets.load_digits()
    pixels = torch.from_numpy(content.data).float() / 16  # (1797, 64)
    target = torch.from_numpy(content.target)
    generator = torch.Generator().manual_seed(seed_of(seed))
    normal = (target != held_out).nonzero()[:, 0]
    normal = normal[torch.randperm(len(normal), generator=generator)]
    first = int(TRAIN_SHARE * len(normal))
    second = first + int(VALIDATION_SHARE * len(normal))
    train, validation, test = normal[:first], normal[first:second], normal[second:]
    pseudo = _halves(pixels[validation], target[validation], generator)
    anomalies = (target == held_out).nonzero()[:, 0]
    mean = pixels[train].mean(dim=0) if centred else torch.zeros(64)

    def split(good: Tensor, bad: Tensor, kind: str) -> LabelledFeatures:
        both = torch.cat([good, bad])
        return LabelledFeatures(
            x=unit(both - mean),
            labels=torch.arange(len(both)) >= len(good),
            classes=(str(held_out),) * len(both),
            kinds=("good",) * len(good) + (kind,) * len(bad),
            images=(both * 255).round().to(torch.uint8).view(-1, 8, 8),
        )

    return AnomalyData(
        name="digits",
        class_name=str(held_out),
        train=unit(pixels[train] - mean),
        train_classes=(str(held_out),) * len(train),
        validation=split(pixels[validation], pseudo, "two halves"),
        test=split(pixels[test], pixels[anomalies], "held out"),
        unit_norm=True,
    )


def _halves(pixels: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
    """Every image's left half next to the right half of a random image of another class."""
    others = target[:, None] != target[None, :]  # (n, n)
    partner = torch.multinomial(others.float(), 1, generator=generator)[:, 0]
    images, other = pixels.view(-1, 8, 8), pixels.view(-1, 8, 8)[partner]
    return torch.cat([images[:, :, :4], other[:, :, 4:]], dim=2).flatten(1)
