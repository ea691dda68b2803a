"""Which anomaly-detection data an experiment learns: digits, textures or MVTec-AD, by name.

A source has parts: each is one data set, for which one detector is trained.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from vgs_rl.checks import require_at_least
from vgs_rl.envs.anomaly.data import AnomalyData
from vgs_rl.envs.anomaly.digits import DIGITS, load_digits
from vgs_rl.envs.anomaly.features import FeatureGrids, lite0_grids
from vgs_rl.envs.anomaly.mvtec import load_mvtec, load_mvtec_features
from vgs_rl.envs.anomaly.textures import (
    TEXTURES,
    Texture,
    TextureConfig,
    load_texture,
    load_textures,
)


@dataclass(kw_only=True)
class SourceConfig(ABC):
    """Base of the sources; an own one may be named by `class_path`."""

    name: ClassVar[str]

    @property
    @abstractmethod
    def parts(self) -> tuple[str, ...]:
        """Names of the data sets; one detector is trained on each."""

    @abstractmethod
    def load(self, part: str, seed: int) -> AnomalyData:
        """One data set.

        Args:
            part: one of :attr:`parts`.
            seed: of splits, crops and defects.
        """


@dataclass(kw_only=True)
class DigitsSource(SourceConfig):
    """Scikit-learn's digits, one class held out: :func:`~vgs_rl.envs.anomaly.load_digits`.

    Args:
        held_out: the classes held out, one after the other.
        centred: whether the training mean is subtracted.
    """

    name: ClassVar[str] = "digits"
    held_out: tuple[int, ...] = DIGITS
    centred: bool = True

    def __post_init__(self) -> None:
        require_at_least("data", 1, **{"number of held_out": len(self.held_out)})
        for digit in self.held_out:
            if digit not in DIGITS:
                raise ValueError(f"data.held_out must be digits from 0 to 9, got {digit}")

    @property
    def parts(self) -> tuple[str, ...]:
        """The digits held out."""
        return tuple(str(digit) for digit in self.held_out)

    def load(self, part: str, seed: int) -> AnomalyData:
        """See :meth:`SourceConfig.load`."""
        return load_digits(int(part), centred=self.centred, seed=seed)


@dataclass(kw_only=True)
class TexturesSource(SourceConfig):
    """Photographs with generated defects: :func:`~vgs_rl.envs.anomaly.load_texture`.

    Args:
        textures: which.
        joint: whether one detector learns all of them; else one each.
        crops: how many crops there are.
    """

    name: ClassVar[str] = "textures"
    textures: tuple[Texture, ...] = TEXTURES
    joint: bool = False
    crops: TextureConfig = field(default_factory=TextureConfig)

    def __post_init__(self) -> None:
        require_at_least("data", 1, **{"number of textures": len(self.textures)})

    @property
    def parts(self) -> tuple[str, ...]:
        """The textures, or all of them together."""
        return ("+".join(self.textures),) if self.joint else self.textures

    def features(self) -> FeatureGrids:
        """Maps images to grids."""
        return lite0_grids

    def load(self, part: str, seed: int) -> AnomalyData:
        """See :meth:`SourceConfig.load`."""
        if self.joint:
            return load_textures(self.textures, self.crops, seed=seed, features=self.features())
        (texture,) = [name for name in self.textures if name == part]
        return load_texture(texture, self.crops, seed=seed, features=self.features())


@dataclass(kw_only=True)
class MVTecSource(SourceConfig):
    """MVTec-AD, as pictures or as the authors' feature files.

    Args:
        folder: where they are; see :mod:`vgs_rl.envs.anomaly.mvtec`.
        classes: which; all by default.
        joint: whether one detector learns all of them, as published; else one each, which needs
            `classes`.
        published_features: read the authors' feature files instead of pictures.
    """

    name: ClassVar[str] = "mvtec"
    folder: Path = Path("data/mvtec")
    classes: tuple[str, ...] | None = None
    joint: bool = True
    published_features: bool = False

    def __post_init__(self) -> None:
        if not self.joint and not self.classes:
            raise ValueError("data.joint must be true where data.classes is left out, got false")

    @property
    def parts(self) -> tuple[str, ...]:
        """The classes, or all of them together."""
        return ("all",) if self.joint or self.classes is None else self.classes

    def load(self, part: str, seed: int) -> AnomalyData:
        """See :meth:`SourceConfig.load`.

        Raises:
            FileNotFoundError: if the data are not there; the message says where to get them.
        """
        classes = self.classes if self.joint else (part,)
        load = load_mvtec_features if self.published_features else load_mvtec
        return load(self.folder, classes, seed=seed)
