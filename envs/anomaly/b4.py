"""Features of an EfficientNet-B4 from timm, as the literature on MVTec-AD uses them.

Blocks with 24, 32, 56 and 160 channels, each resized to 14x14 (bilinear, corner to corner, as in
UniAD, arXiv:2206.03687, whose features the published experiment of arXiv:2502.13280 has) and
concatenated: 272 channels.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vgs_rl.checks import require_module
from vgs_rl.envs.anomaly.features import GRID, Extractor, FeatureGrids, cached_grids
from vgs_rl.envs.anomaly.tensor_files import load_tensors

MODEL = "efficientnet_b4"
VERSION = "efficientnet-b4 24+32+56+160 v1"  # change it whenever features change
B4_CHANNELS = [24, 32, 56, 160]
WHERE_WEIGHTS = "https://huggingface.co/timm/efficientnet_b4.ra2_in1k"


class B4Extractor(Extractor):
    """EfficientNet-B4 as an :class:`Extractor` of grids (N, 14, 14, 272).

    Args:
        network: maps normalised images to the four blocks' maps.
    """

    def __init__(self, network: nn.Module) -> None:
        digest = hashlib.sha256()
        for name, value in sorted(network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
        super().__init__(network, f"{VERSION} {digest.hexdigest()[:16]}")

    def resize(self, maps: Tensor) -> Tensor:
        """Maps (B, C, h, w) to (B, C, 14, 14), corner to corner."""
        return functional.interpolate(maps, (GRID, GRID), mode="bilinear", align_corners=True)


def b4_extractor(weights: Path | str | None = None, *, pretrained: bool = True) -> B4Extractor:
    """An EfficientNet-B4 of timm.

    Args:
        weights: a file of timm's weights for ``efficientnet_b4`` (.safetensors, or .pth with a
            state dict); by default timm downloads them, or finds them in its own cache.
        pretrained: whether there are weights; without, they are random, for tests.

    Raises:
        FileNotFoundError: if the weights are missing or cannot be downloaded; the message says
            where to get them.
        ValueError: if the file is damaged or belongs to another network.
        ModuleNotFoundError: if timm is missing; the message names the extra.
    """
    timm = _import_timm()
    options: dict[str, Any] = {"features_only": True, "out_indices": (0, 1, 2, 3)}
    if weights is None and pretrained:
        try:
            network = timm.create_model(MODEL, pretrained=True, **options)
        except Exception as error:  # the hub raises many kinds when it cannot be reached
            raise FileNotFoundError(
                f"pretrained weights of {MODEL} cannot be downloaded: get model.safetensors from "
                f"{WHERE_WEIGHTS} and pass its path as weights"
            ) from error
    else:
        network = timm.create_model(MODEL, pretrained=False, **options)
    if network.feature_info.channels() != B4_CHANNELS:
        raise ValueError(
            f"timm's {MODEL} must have blocks of {B4_CHANNELS} channels, "
            f"got {network.feature_info.channels()}"
        )
    if weights is not None:
        _load(network, Path(weights))
    return B4Extractor(network)


def b4_grids(weights: Path | str | None = None) -> FeatureGrids:
    """A function from images to B4's grids, cached on disk; see :func:`b4_extractor`."""
    extractor = b4_extractor(weights)
    return lambda images: cached_grids(images, extractor.version, lambda: extractor)


def _load(network: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"weights {path} do not exist: get model.safetensors from {WHERE_WEIGHTS}"
        )
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            state = load_file(path)
        except Exception as error:
            raise ValueError(f"weights {path} cannot be read: {error}") from error
    else:
        state = load_tensors(path)
    try:
        missing = network.load_state_dict(state, strict=False).missing_keys  # no head here
    except RuntimeError as error:
        raise ValueError(f"weights {path} are not those of {MODEL}: {error}") from error
    if missing:
        raise ValueError(
            f"weights {path} are not those of {MODEL}: {len(missing)} missing, such as {missing[0]}"
        )


def _import_timm() -> Any:
    """Timm, also where torchvision was built for another torch.

    Timm imports torchvision for its own data loaders, which are not used here. Torchvision's
    import fails where its compiled operators do not load, as those of a CUDA build beside torch's
    CPU build, only because it describes two operators that nobody declared. Declared they stay
    without an implementation, and calling them is an error as before.
    """
    require_module("EfficientNet-B4", "timm", "mvtec")
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                torch.library.define(f"torchvision::{name}", schema)
    import timm

    return timm
