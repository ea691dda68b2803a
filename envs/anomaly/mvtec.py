"""MVTec-AD: the feature files of arXiv:2502.13280, or the pictures with an EfficientNet-B4.

The data cannot ship here (15 classes of industrial pictures, CC BY-NC-SA 4.0, Bergmann et al.,
CVPR 2019). Either of two layouts is read; both give grids (N, 14, 14, 272) of unit norm:

- :func:`load_mvtec_features`: ``FOLDER/train_mvtec.pth`` and ``FOLDER/val_mvtec.pth``.
- :func:`load_mvtec`: ``FOLDER/CLASS/train/good/*.png``,
  ``FOLDER/CLASS/test/{good,DEFECT}/*.png``, ``FOLDER/CLASS/ground_truth/DEFECT/*_mask.png``.

Published code validates on the test set. Here a share of the normal training images of each class
validates instead, half of them made pseudo-anomalous: pictures by generated defects, features by
pasting positions of other images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vgs_rl.checks import require_module, seed_of
from vgs_rl.envs.anomaly.b4 import b4_grids
from vgs_rl.envs.anomaly.data import AnomalyData, unit
from vgs_rl.envs.anomaly.defects import PSEUDO_DEFECTS, add_defect
from vgs_rl.envs.anomaly.features import GRID, FeatureGrids
from vgs_rl.envs.anomaly.tensor_files import as_tensor, load_tensors
from vgs_rl.evaluation.detection import LabelledFeatures

CHANNELS = 272
SIZE = 224  # pixels each way, of images and masks
VALIDATION_SHARE = 0.1
WHERE_PICTURES = "https://www.mvtec.com/company/research/datasets/mvtec-ad"
WHERE_FEATURES = "the code release of arXiv:2502.13280 (datasets/ebm_exp)"


def load_mvtec_features(
    folder: Path | str, classes: Sequence[str] | None = None, *, seed: int = 0
) -> AnomalyData:
    """The authors' feature files, as one data set of all classes or of some.

    Each file is a dictionary: ``feature_align`` (N, 272, 14, 14), ``label`` (N,), 0 for normal,
    ``clsname``, N names, ``mask`` (N, 1, 224, 224) or (N, 224, 224); as tensors, arrays or lists.
    Nothing in a file is executed. Features are divided by their norm at each position, as
    published. ``val_mvtec.pth`` is MVTec's test set, and is the test split here.

    Args:
        folder: where both files are.
        classes: which classes; all by default.
        seed: of the validation split and its pseudo-anomalies.

    Raises:
        FileNotFoundError: if a file is missing; the message says where to get it.
        ValueError: if a file is damaged or of another form, or a class is not in it.
    """
    train = _read(Path(folder) / "train_mvtec.pth")
    test = _read(Path(folder) / "val_mvtec.pth")
    if bool(train.labels.any()):
        raise ValueError(
            f"label of train_mvtec.pth must be 0 throughout, got {int(train.labels.sum())} others"
        )
    names = _chosen(train.classes, classes, "train_mvtec.pth")
    train, test = _only(train, names), _only(test, names)
    generator = torch.Generator().manual_seed(seed_of(seed))
    kept, held_out = _hold_out(train.classes, generator)
    return AnomalyData(
        name="mvtec",
        class_name=_joint_name(names),
        train=train.x[kept],
        train_classes=tuple(train.classes[int(i)] for i in kept),
        validation=_pasted(train.select(held_out), generator),
        test=test,
        unit_norm=True,
    )


def load_mvtec(
    folder: Path | str,
    classes: Sequence[str] | None = None,
    *,
    seed: int = 0,
    features: FeatureGrids | None = None,
) -> AnomalyData:
    """MVTec-AD's pictures as features, as one data set of all classes or of some.

    Pictures are resized to 224x224 (bilinear), masks likewise (nearest).

    Args:
        folder: where the classes' folders are.
        classes: which; by default all folders that have a ``train/good`` inside.
        seed: of the validation split and its pseudo-defects.
        features: maps images (N, 224, 224, 3), uint8, to unit-norm grids; by default those of a
            pretrained EfficientNet-B4, cached on disk, see :func:`vgs_rl.envs.anomaly.b4_grids`.

    Raises:
        FileNotFoundError: if the folder, a class, a mask or the network's weights are missing; the
            message says where to get them and where to put them.
        ValueError: if a picture cannot be read.
        ModuleNotFoundError: if timm is missing; the message names the extra.
    """
    folder = Path(folder)
    found = sorted(path.parent.parent.name for path in folder.glob("*/train/good"))
    names = list(classes) if classes is not None else found
    missing = [name for name in names if name not in found]
    if missing or not names:
        what = f"{folder / missing[0] / 'train' / 'good'}" if missing else f"{folder}"
        raise FileNotFoundError(
            f"MVTec-AD is not at {what}: download it from {WHERE_PICTURES} and unpack it so that "
            f"{folder / 'CLASS' / 'train' / 'good' / '000.png'} exists for every CLASS"
        )
    generator = torch.Generator().manual_seed(seed_of(seed))
    parts = [_pictures(folder / name, name) for name in names]
    normal = torch.cat([train for train, _ in parts])
    train_classes = tuple(
        name for name, (train, _) in zip(names, parts, strict=True) for _ in train
    )
    kept, held_out = _hold_out(train_classes, generator)
    validation = _damaged(normal[held_out], [train_classes[int(i)] for i in held_out], generator)
    tests = _Pictures.together([test for _, test in parts])
    features = features or b4_grids()
    train_x, validation_x, test_x = (
        features(images) for images in (normal[kept], validation.images, tests.images)
    )
    return AnomalyData(
        name="mvtec",
        class_name=_joint_name(names),
        train=train_x,
        train_classes=tuple(train_classes[int(i)] for i in kept),
        validation=validation.labelled(validation_x),
        test=tests.labelled(test_x),
        unit_norm=True,
    )


@dataclass(kw_only=True)
class _Pictures:
    """Images (N, 224, 224, 3), uint8, masks (N, 224, 224), bool, and names."""

    images: Tensor
    masks: Tensor
    kinds: tuple[str, ...]
    classes: tuple[str, ...]

    @classmethod
    def together(cls, parts: Sequence[_Pictures]) -> _Pictures:
        return cls(
            images=torch.cat([part.images for part in parts]),
            masks=torch.cat([part.masks for part in parts]),
            kinds=sum((part.kinds for part in parts), ()),
            classes=sum((part.classes for part in parts), ()),
        )

    def labelled(self, x: Tensor) -> LabelledFeatures:
        labels = torch.tensor([kind != "good" for kind in self.kinds])
        return LabelledFeatures(x=x, labels=labels, **vars(self))


def _pictures(folder: Path, name: str) -> tuple[Tensor, _Pictures]:
    """Normal training images, and the test set, of one class."""
    require_module("MVTec-AD", "PIL", "mvtec")
    train = [_picture(path) for path in sorted((folder / "train" / "good").glob("*.png"))]
    tests = sorted((folder / "test").glob("*/*.png"))
    for what, files in (("train/good", train), ("test", tests)):
        if not files:
            raise FileNotFoundError(
                f"{folder / what} holds no .png: download MVTec-AD from {WHERE_PICTURES}"
            )
    images, masks, kinds = [], [], []
    for path in tests:
        kind = path.parent.name
        images.append(_picture(path))
        kinds.append(kind)
        if kind == "good":
            masks.append(torch.zeros(SIZE, SIZE, dtype=torch.bool))
            continue
        mask = folder / "ground_truth" / kind / f"{path.stem}_mask.png"
        if not mask.is_file():
            raise FileNotFoundError(f"{path} has no mask: {mask} is missing")
        masks.append(_picture(mask, grey=True) > 127)
    test = _Pictures(
        images=torch.stack(images),
        masks=torch.stack(masks),
        kinds=tuple(kinds),
        classes=(name,) * len(images),
    )
    return torch.stack(train), test


def _picture(path: Path, *, grey: bool = False) -> Tensor:
    """A picture, shape (224, 224, 3), or (224, 224) of a grey one, uint8."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            image = file.convert("L" if grey else "RGB")
            filter = Image.Resampling.NEAREST if grey else Image.Resampling.BILINEAR
            pixels = np.array(image.resize((SIZE, SIZE), filter))
    except OSError as error:
        raise ValueError(f"picture {path} cannot be read: {error}") from error
    return torch.from_numpy(pixels)


def _damaged(images: Tensor, classes: Sequence[str], generator: torch.Generator) -> _Pictures:
    """Every second image with a pseudo-defect; its change of grey is added to every channel."""
    changed, masks, kinds = [], [], []
    for index, image in enumerate(images):
        mask, kind = torch.zeros(SIZE, SIZE, dtype=torch.bool), "good"
        if index % 2:
            kind = PSEUDO_DEFECTS[index // 2 % len(PSEUDO_DEFECTS)]
            grey = image.float().mean(dim=-1) / 255
            damaged, mask = add_defect(kind, grey, generator)
            shifted = image.float() + 255 * (damaged - grey)[..., None]
            image = shifted.round().clamp(0, 255).to(torch.uint8)
        changed.append(image)
        masks.append(mask)
        kinds.append(kind)
    return _Pictures(
        images=torch.stack(changed),
        masks=torch.stack(masks),
        kinds=tuple(kinds),
        classes=tuple(classes),
    )


def _pasted(data: LabelledFeatures, generator: torch.Generator) -> LabelledFeatures:
    """Every second grid with a rectangle of 2 to 6 positions a side from random other positions.

    They come from images of other classes where there are any.
    """
    x, kinds = data.x.clone(), list(data.kinds)
    masks = torch.zeros(len(x), SIZE, SIZE, dtype=torch.bool)
    cell = SIZE // GRID
    for index in range(1, len(x), 2):
        others = [i for i, name in enumerate(data.classes) if name != data.classes[index]]
        others = others or [i for i in range(len(x)) if i != index]
        height, width = (int(torch.randint(2, 7, (), generator=generator)) for _ in range(2))
        top = int(torch.randint(GRID - height + 1, (), generator=generator))
        left = int(torch.randint(GRID - width + 1, (), generator=generator))
        size = (height, width)
        image = torch.tensor(others)[torch.randint(len(others), size, generator=generator)]
        row, column = (torch.randint(GRID, size, generator=generator) for _ in range(2))
        x[index, top : top + height, left : left + width] = data.x[image, row, column]
        rows = slice(top * cell, (top + height) * cell)
        masks[index, rows, left * cell : (left + width) * cell] = True
        kinds[index] = "pasted features"
    labels = torch.tensor([kind != "good" for kind in kinds])
    return LabelledFeatures(
        x=x, labels=labels, classes=data.classes, kinds=tuple(kinds), masks=masks
    )


def _read(path: Path) -> LabelledFeatures:
    """One of the authors' files."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: get it from {WHERE_FEATURES} and put it there, or use "
            f"load_mvtec on the pictures from {WHERE_PICTURES}"
        )
    content = load_tensors(path)
    missing = {"feature_align", "label", "clsname", "mask"} - content.keys()
    if missing:
        raise ValueError(f"{path} must hold feature_align, label, clsname, mask; no {missing}")
    x = as_tensor(content["feature_align"]).float()
    n = len(x)
    if x.ndim not in (3, 4) or x.shape[1] != CHANNELS or x[0].numel() != CHANNELS * GRID**2:
        raise ValueError(
            f"feature_align of {path} must have shape (N, {CHANNELS}, {GRID}, {GRID}), "
            f"got {tuple(x.shape)}"
        )
    x = unit(x.reshape(n, CHANNELS, GRID, GRID).permute(0, 2, 3, 1))
    labels = as_tensor(content["label"]).reshape(-1) != 0
    classes = tuple(str(name) for name in content["clsname"])
    masks = as_tensor(content["mask"])
    if masks.numel() != n * SIZE**2 or len(labels) != n or len(classes) != n:
        raise ValueError(
            f"{path} must hold as many label, clsname and mask (224x224) as feature_align, {n}; "
            f"got {len(labels)}, {len(classes)} and shape {tuple(masks.shape)}"
        )
    return LabelledFeatures(
        x=x,
        labels=labels,
        classes=classes,
        kinds=tuple("defect" if bad else "good" for bad in labels),
        masks=masks.reshape(n, SIZE, SIZE) > 0.5,
    )


def _chosen(present: Iterable[str], classes: Sequence[str] | None, what: str) -> list[str]:
    found = sorted(set(present))
    for name in classes or ():
        if name not in found:
            raise ValueError(f"classes must be among {', '.join(found)} of {what}, got {name!r}")
    return list(classes) if classes is not None else found


def _only(data: LabelledFeatures, names: Sequence[str]) -> LabelledFeatures:
    return data.select(torch.tensor([name in names for name in data.classes]))


def _hold_out(classes: Sequence[str], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices to train on, and a share of every class, at least two images, to validate on."""
    kept: list[Any] = []
    held_out: list[Any] = []
    for name in dict.fromkeys(classes):
        rows = torch.tensor([i for i, each in enumerate(classes) if each == name])
        if len(rows) < 3:
            raise ValueError(f"class {name!r} must have 3 normal images or more, got {len(rows)}")
        rows = rows[torch.randperm(len(rows), generator=generator)]
        count = 2 * max(round(VALIDATION_SHARE * len(rows) / 2), 1)  # even: every second is damaged
        held_out.append(rows[:count])
        kept.append(rows[count:])
    return torch.cat(kept), torch.cat(held_out)


def _joint_name(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else "all"
