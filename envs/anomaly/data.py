"""What every anomaly-detection data set is: normal training features and two labelled splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vgs_rl.evaluation.detection import LabelledFeatures

NORM_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class AnomalyData:
    """Normal features to learn from, a split to choose by and a split to evaluate by.

    Test anomalies are never seen before the end. The validation split chooses checkpoints and
    settings: it holds normal data that training does not see, and pseudo-anomalies made from
    normal data alone, of other kinds than those of the test split. So whatever is chosen there
    has not looked at what it will be evaluated by.

    Attributes:
        name: of the data set, such as "digits" or "mvtec".
        class_name: what is normal, or held out; "all" for several classes learned as one.
        train: normal features, shape (N, D), or grids (N, H, W, D).
        train_classes: the class of each training image, N names.
        validation: chooses.
        test: evaluates.
        unit_norm: whether every feature vector has norm 1.
    """

    name: str
    class_name: str
    train: Tensor
    train_classes: tuple[str, ...]
    validation: LabelledFeatures
    test: LabelledFeatures
    unit_norm: bool

    def __post_init__(self) -> None:
        shape = tuple(self.train.shape[1:])
        for name in ("validation", "test"):
            other = tuple(getattr(self, name).x.shape[1:])
            if other != shape:
                raise ValueError(f"{name}.x must have rows of shape {shape} as train, got {other}")
        if len(self.train_classes) != len(self.train):
            raise ValueError(
                f"train_classes must have {len(self.train)} entries as train, "
                f"got {len(self.train_classes)}"
            )
        for name, x in (
            ("train", self.train),
            ("validation.x", self.validation.x),
            ("test.x", self.test.x),
        ):
            if not bool(torch.isfinite(x).all()):
                raise ValueError(f"{name} must be finite, got NaN or infinity")
            if self.unit_norm and len(x):
                error = float((x.norm(dim=-1) - 1).abs().max())
                if error > NORM_TOLERANCE:
                    raise ValueError(f"{name} must have unit norm, got one off by {error:.2g}")

    @property
    def dim(self) -> int:
        """Dimension D of a feature vector."""
        return int(self.train.shape[-1])

    @property
    def is_grid(self) -> bool:
        """Whether an image is a grid of features rather than one row."""
        return self.train.ndim == 4

    @property
    def rows(self) -> Tensor:
        """Training features as rows, shape (N, D), or (N H W, D) of grids."""
        return self.train.reshape(-1, self.dim)


def join(parts: Sequence[AnomalyData], class_name: str = "all") -> AnomalyData:
    """Several classes learned as one; metrics are still computed by class.

    Raises:
        ValueError: if there are none, or they differ in name, shape of features or unit norm.
    """
    if not parts:
        raise ValueError("parts must hold at least one data set, got none")
    first = parts[0]
    for part in parts[1:]:
        for name in ("name", "unit_norm"):
            if getattr(part, name) != getattr(first, name):
                raise ValueError(
                    f"parts must agree in {name}, got {getattr(first, name)!r} "
                    f"and {getattr(part, name)!r}"
                )
        if part.train.shape[1:] != first.train.shape[1:]:
            raise ValueError(
                f"parts must have features of one shape, got {tuple(first.train.shape[1:])} "
                f"and {tuple(part.train.shape[1:])}"
            )
    return AnomalyData(
        name=first.name,
        class_name=class_name,
        train=torch.cat([part.train for part in parts]),
        train_classes=sum((part.train_classes for part in parts), ()),
        validation=concatenate([part.validation for part in parts]),
        test=concatenate([part.test for part in parts]),
        unit_norm=first.unit_norm,
    )


def concatenate(splits: Sequence[LabelledFeatures]) -> LabelledFeatures:
    """Splits one after another; masks and images are kept where all of them have them."""

    def joined(name: str) -> Tensor | None:
        tensors = [getattr(split, name) for split in splits]
        kept: list[Tensor] = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(kept) if len(kept) == len(tensors) else None

    return LabelledFeatures(
        x=torch.cat([split.x for split in splits]),
        labels=torch.cat([split.labels for split in splits]),
        classes=sum((split.classes for split in splits), ()),
        kinds=sum((split.kinds for split in splits), ()),
        masks=joined("masks"),
        images=joined("images"),
    )


def unit(x: Tensor) -> Tensor:
    """Vectors along the last dimension scaled to norm 1; zero vectors become the first axis."""
    norm = x.norm(dim=-1, keepdim=True)
    axis = torch.zeros_like(x[..., :1]).expand_as(x).clone()
    axis[..., 0] = 1.0
    return torch.where(norm > 1e-12, x / norm.clamp_min(1e-12), axis)
