"""Data for anomaly detection: normal features to learn from, anomalies to find."""

from vgs_rl.envs.anomaly.b4 import b4_extractor, b4_grids
from vgs_rl.envs.anomaly.data import AnomalyData, concatenate, join, unit
from vgs_rl.envs.anomaly.defects import DEFECTS, PSEUDO_DEFECTS, Defect, add_defect
from vgs_rl.envs.anomaly.digits import DIGITS, load_digits
from vgs_rl.envs.anomaly.features import Extractor, FeatureGrids, cache_folder, lite0_grids
from vgs_rl.envs.anomaly.mvtec import load_mvtec, load_mvtec_features
from vgs_rl.envs.anomaly.sources import (
    DigitsSource,
    MVTecSource,
    SourceConfig,
    TexturesSource,
)
from vgs_rl.envs.anomaly.textures import (
    TEXTURES,
    TextureConfig,
    load_texture,
    load_textures,
    texture_images,
)

__all__ = [
    "DEFECTS",
    "DIGITS",
    "PSEUDO_DEFECTS",
    "TEXTURES",
    "AnomalyData",
    "Defect",
    "DigitsSource",
    "Extractor",
    "FeatureGrids",
    "MVTecSource",
    "SourceConfig",
    "TextureConfig",
    "TexturesSource",
    "add_defect",
    "b4_extractor",
    "b4_grids",
    "cache_folder",
    "concatenate",
    "join",
    "lite0_grids",
    "load_digits",
    "load_mvtec",
    "load_mvtec_features",
    "load_texture",
    "load_textures",
    "texture_images",
    "unit",
]
