"""Photographs of brick, grass and gravel with generated defects: localisation measured offline.

Three photographs of 512x512 grey pixels ship inside scikit-image (`skimage.data.brick`, `grass`,
`gravel`; all CC0). Crops of 112x112 come from bands of 128 columns that no two splits share: the
first and third to train, the second to validate, the fourth to test. Half of all crops are
mirrored left to right. So the lines of the brick wall, seen in perspective, are alike in all
three, and bands on which training crops lie are neighbours of the others: what differs along a
photograph is no defect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from vgs_rl.checks import require_at_least, require_module, seed_of
from vgs_rl.envs.anomaly.data import AnomalyData, join, unit
from vgs_rl.envs.anomaly.defects import DEFECTS, PSEUDO_DEFECTS, add_defect
from vgs_rl.envs.anomaly.features import FeatureGrids, lite0_grids
from vgs_rl.evaluation.detection import LabelledFeatures
from vgs_rl.fields import settle

Texture = Literal["brick", "grass", "gravel"]
TEXTURES: tuple[Texture, ...] = get_args(Texture)
CROP = 112  # pixels
BAND = 128  # columns
BANDS = {"train": (0, 2), "validation": (1,), "test": (3,)}


@dataclass(frozen=True, kw_only=True)
class TextureConfig:
    """How many crops there are.

    Args:
        train: normal crops to train on.
        validation: normal crops of the validation split, and as many with pseudo-defects.
        test: normal crops of the test split.
        defective: test crops with defects, a quarter of each kind.
    """

    train: int = 120
    validation: int = 32
    test: int = 60
    defective: int = 80

    def __post_init__(self) -> None:
        settle(self, "textures")
        for name, value in vars(self).items():
            require_at_least("textures", 1, **{name: value})


@dataclass(frozen=True, kw_only=True)
class TextureSplit:
    """Crops of one photograph.

    Attributes:
        images: shape (N, 112, 112), uint8.
        masks: defective pixels, shape (N, 112, 112), bool.
        kinds: "good", or the kind of defect, N names.
        corners: top row and left column in the photograph, shape (N, 2), int64.
        mirrored: whether it is mirrored left to right (before the defect), shape (N,), bool.
    """

    images: Tensor
    masks: Tensor
    kinds: tuple[str, ...]
    corners: Tensor
    mirrored: Tensor


def texture_images(
    texture: Texture, config: TextureConfig | None = None, *, seed: int = 0
) -> dict[str, TextureSplit]:
    """The splits "train", "validation" and "test" of one photograph, the same for equal seeds.

    Args:
        texture: brick, grass or gravel.
        config: numbers of crops; the defaults if left out.
        seed: of crops and defects.

    Raises:
        ValueError: if there is no such photograph.
        ModuleNotFoundError: if scikit-image is missing; the message names the extra.
    """
    if texture not in TEXTURES:
        raise ValueError(f"texture must be one of {', '.join(TEXTURES)}, got {texture!r}")
    config = config or TextureConfig()
    photograph = _photograph(texture)
    counts = {
        "train": (config.train, 0, ()),
        "validation": (config.validation, config.validation, PSEUDO_DEFECTS),
        "test": (config.test, config.defective, DEFECTS),
    }
    splits = {}
    for index, (name, (good, bad, kinds)) in enumerate(counts.items()):
        stream = (seed_of(seed) * len(TEXTURES) + TEXTURES.index(texture)) * len(counts) + index
        generator = torch.Generator().manual_seed(stream)
        splits[name] = _split(photograph, BANDS[name], good, bad, kinds, generator)
    return splits


def load_texture(
    texture: Texture,
    config: TextureConfig | None = None,
    *,
    seed: int = 0,
    features: FeatureGrids = lite0_grids,
) -> AnomalyData:
    """One texture as features on a 14x14 grid, unit norm, with images and masks of 112x112.

    Every feature is divided by its standard deviation over the training crops before vectors get
    unit norm, so that none is drowned by those of another block of the network.
    The validation split has pseudo-defects of two kinds (noise, contrast), the test split defects
    of four others (scratch, spot, blur, paste); see :mod:`vgs_rl.envs.anomaly.defects`.

    Args:
        texture: brick, grass or gravel.
        config: numbers of crops; the defaults if left out.
        seed: of crops and defects.
        features: maps images (N, h, w), uint8, to unit-norm grids (N, H, W, D); by default those
            of a pretrained EfficientNet-Lite0, cached on disk.

    Raises:
        ValueError: if there is no such photograph.
        ModuleNotFoundError: if a package of the extra is missing.
    """
    splits = texture_images(texture, config, seed=seed)
    sizes = [len(split.images) for split in splits.values()]
    grids = features(torch.cat([split.images for split in splits.values()])).split(sizes)
    spread = grids[0].flatten(0, 2).std(0).clamp_min(1e-6)
    grids = tuple(unit(grid / spread) for grid in grids)
    train, validation, test = (
        LabelledFeatures(
            x=x,
            labels=torch.tensor([kind != "good" for kind in split.kinds]),
            classes=(texture,) * len(x),
            kinds=split.kinds,
            masks=split.masks,
            images=split.images,
        )
        for x, split in zip(grids, splits.values(), strict=True)
    )
    return AnomalyData(
        name="textures",
        class_name=texture,
        train=train.x,
        train_classes=train.classes,
        validation=validation,
        test=test,
        unit_norm=True,
    )


def load_textures(
    textures: Sequence[Texture] = TEXTURES,
    config: TextureConfig | None = None,
    *,
    seed: int = 0,
    features: FeatureGrids = lite0_grids,
) -> AnomalyData:
    """Several textures learned as one set, evaluated by class; see :func:`load_texture`."""
    parts = [load_texture(each, config, seed=seed, features=features) for each in textures]
    return join(parts, "+".join(textures))


def _photograph(texture: str) -> Tensor:
    """Shape (512, 512), float32, in [0, 1]."""
    require_module("textures", "skimage", "anomaly")
    from skimage import data

    return torch.from_numpy(getattr(data, texture)()).float() / 255


def _split(
    photograph: Tensor,
    bands: Sequence[int],
    good: int,
    bad: int,
    kinds: Sequence[str],
    generator: torch.Generator,
) -> TextureSplit:
    n = good + bad
    limits = (photograph.shape[0], BAND)
    top, left = (torch.randint(limit - CROP + 1, (n,), generator=generator) for limit in limits)
    band = torch.tensor(bands)[torch.randint(len(bands), (n,), generator=generator)]
    corners = torch.stack([top, left + BAND * band], dim=1)
    mirrored = torch.rand(n, generator=generator) < 0.5
    names = ("good",) * good + tuple(kinds[i % len(kinds)] for i in range(bad))
    images, masks = [], []
    for name, (y, x), flip in zip(names, corners.tolist(), mirrored.tolist(), strict=True):
        image = photograph[y : y + CROP, x : x + CROP]
        image = image.flip(1) if flip else image
        mask = torch.zeros(CROP, CROP, dtype=torch.bool)
        if name != "good":
            image, mask = add_defect(name, image, generator)
        images.append((image * 255).round().to(torch.uint8))
        masks.append(mask)
    return TextureSplit(
        images=torch.stack(images),
        masks=torch.stack(masks),
        kinds=names,
        corners=corners,
        mirrored=mirrored,
    )
