"""Defects drawn into photographs, each with the mask of the pixels that it may change.

Images are grey, shape (h, w), floating, in [0, 1]. A defect is blended in by an opacity in [0, 1];
opacities below ``FAINTEST`` are cut to 0, and the mask is where opacity is left, so that every
changed pixel is inside the mask. Sizes are for crops of about 128 pixels.

What nobody could see measures nothing: tones of scratches and stains are nearly black or white,
which hardly any texture is, and a defect that changes too little where it happens to lie (a blur
on a smooth brick) is drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

FAINTEST = 0.15
VISIBLE = 0.4  # mean change of the mask's pixels, in standard deviations of the image
DRAWS = 20
DEFECTS = ("scratch", "spot", "blur", "paste")
PSEUDO_DEFECTS = ("noise", "contrast")


class Defect(NamedTuple):
    """A damaged image, shape (h, w), in [0, 1], and its mask, shape (h, w), bool."""

    image: Tensor
    mask: Tensor


def add_defect(kind: str, image: Tensor, generator: torch.Generator) -> Defect:
    """One defect at a random place, of random size and strength.

    - ``scratch``: a bent line 30 to 120 pixels long and 2 to 4 wide, nearly white or black.
    - ``spot``: a stain with an irregular rim, 8 to 20 pixels in radius, nearly white or black,
      through which the texture shows.
    - ``blur``: a Gaussian blur of 2 to 4 pixels in a region of 12 to 30 pixels in radius.
    - ``paste``: a rectangle of 24 to 56 pixels, cut from elsewhere in the image, enlarged or
      reduced by a factor of 2 to 3, turned by 90, 180 or 270 degrees, and a little lighter or
      darker.
    - ``noise``: grain over a region of 12 to 30 pixels, 1 to 2 times the texture's contrast.
    - ``contrast``: a region of 12 to 30 pixels whose contrast is divided by 3 to 8 or multiplied
      by 2.5 to 4.

    The first four are test defects; the last two make the pseudo-anomalies of validation splits.

    Args:
        kind: which.
        image: shape (h, w), floating, in [0, 1], at least 64 pixels high and wide.
        generator: source of all randomness, on the CPU.

    Raises:
        ValueError: if the kind is unknown or the image has another shape or is too small.
    """
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r}")
    if image.ndim != 2 or min(image.shape) < 64:
        raise ValueError(
            f"image must have shape (h, w), at least 64 each way, got {tuple(image.shape)}"
        )
    best, most = None, -1.0
    for _ in range(DRAWS):
        changed, opacity = _KINDS[kind](image, generator)
        opacity = torch.where(opacity < FAINTEST, 0.0, opacity.clamp(0, 1))
        blended = (image + opacity * (changed - image)).clamp(0, 1)
        mask = opacity > 0
        change = float((blended - image)[mask].abs().mean())
        if change > most:
            best, most = Defect(torch.where(mask, blended, image), mask), change
        if most >= VISIBLE * float(image.std()):
            break
    assert best is not None
    return best


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _sign(generator: torch.Generator) -> float:
    return 1.0 if float(torch.rand((), generator=generator)) < 0.5 else -1.0


def _tone(generator: torch.Generator) -> float:
    """Nearly white or nearly black."""
    return 0.5 + _sign(generator) * _uniform(0.45, 0.5, generator)


def _pixels(image: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of every pixel, each (h, w)."""
    h, w = image.shape
    rows, columns = torch.meshgrid(
        torch.arange(h, dtype=image.dtype), torch.arange(w, dtype=image.dtype), indexing="ij"
    )
    return rows, columns


def _region(image: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Opacity of an irregular ellipse, radius between `low` and `high`, with a soft rim."""
    rows, columns = _pixels(image)
    h, w = image.shape
    radius = low * (high / low) ** float(torch.rand((), generator=generator))
    stretch = _uniform(0.65, 1.0, generator)
    margin = 0.6 * radius
    centre = _uniform(margin, h - margin, generator), _uniform(margin, w - margin, generator)
    turn = _uniform(0, math.pi, generator)
    dy, dx = rows - centre[0], columns - centre[1]
    along = math.cos(turn) * dx + math.sin(turn) * dy
    across = (math.cos(turn) * dy - math.sin(turn) * dx) / stretch
    angle = torch.atan2(across, along)
    rim = torch.ones_like(angle)
    for waves in (2, 3, 5):
        phase = _uniform(0, 2 * math.pi, generator)
        rim = rim + 0.12 * torch.cos(waves * angle + phase)
    distance = radius * rim - (along.square() + across.square()).sqrt()  # positive inside
    opacity: Tensor = (distance / (0.15 * radius + 1.0)).clamp(0, 1)
    return opacity


def _scratch(image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    rows, columns = _pixels(image)
    h, w = image.shape
    length = 30.0 * 4.0 ** float(torch.rand((), generator=generator))
    turn = _uniform(0, 2 * math.pi, generator)
    bend = _uniform(-0.9, 0.9, generator)
    middle = _uniform(0.2 * h, 0.8 * h, generator), _uniform(0.2 * w, 0.8 * w, generator)
    width = _uniform(2.0, 4.0, generator)
    steps = torch.linspace(-0.5, 0.5, 80, dtype=image.dtype)
    heading = turn + bend * steps
    stride = length / len(steps)
    y = middle[0] + stride * (torch.sin(heading).cumsum(0) - torch.sin(heading).sum() / 2)
    x = middle[1] + stride * (torch.cos(heading).cumsum(0) - torch.cos(heading).sum() / 2)
    gap = ((rows[..., None] - y).square() + (columns[..., None] - x).square()).amin(-1).sqrt()
    opacity = (width / 2 + 0.5 - gap).clamp(0, 1) * _uniform(0.85, 1.0, generator)
    return torch.full_like(image, _tone(generator)), opacity


def _spot(image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    opacity = _region(image, 8, 20, generator) * _uniform(0.7, 0.95, generator)
    return torch.full_like(image, _tone(generator)), opacity


def _blur(image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    sigma = _uniform(2.0, 4.0, generator)
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    kernel = kernel / kernel.sum()
    padded = functional.pad(image[None, None], (reach,) * 4, mode="reflect")
    blurred = functional.conv2d(padded, kernel.view(1, 1, 1, -1))
    blurred = functional.conv2d(blurred, kernel.view(1, 1, -1, 1))
    return blurred[0, 0], _region(image, 12, 30, generator)


def _paste(image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    h, w = image.shape
    height, width = (round(_uniform(24, 56, generator)) for _ in range(2))
    zoom = _uniform(2.0, 3.0, generator) ** _sign(generator)
    quarter_turns = 1 + int(3 * torch.rand((), generator=generator))
    source = [round(size / zoom) for size in (height, width)]
    if quarter_turns % 2:
        source.reverse()
    source = [min(part, size) for part, size in zip(source, (h, w), strict=True)]
    top, left = (
        int(_uniform(0, size - part + 1, generator))
        for size, part in zip((h, w), source, strict=True)
    )
    patch = image[top : top + source[0], left : left + source[1]].rot90(quarter_turns)
    patch = functional.interpolate(
        patch[None, None], size=(height, width), mode="bilinear", antialias=True
    )[0, 0]
    patch = (patch + _sign(generator) * _uniform(0.04, 0.12, generator)).clamp(0, 1)
    y, x = int(_uniform(0, h - height + 1, generator)), int(_uniform(0, w - width + 1, generator))
    changed, opacity = image.clone(), torch.zeros_like(image)
    changed[y : y + height, x : x + width] = patch
    opacity[y : y + height, x : x + width] = 1.0
    return changed, opacity


def _noise(image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    strength = float(image.std()) * _uniform(1.0, 2.0, generator)
    grain = torch.randn(image.shape, generator=generator, dtype=image.dtype)
    return image + strength * grain, _region(image, 12, 30, generator)


def _contrast(image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    lower = float(torch.rand((), generator=generator)) < 0.5
    factor = 1 / _uniform(3.0, 8.0, generator) if lower else _uniform(2.5, 4.0, generator)
    mean = image.mean()
    return mean + factor * (image - mean), _region(image, 12, 30, generator)


_KINDS: dict[str, Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]] = {
    "scratch": _scratch,
    "spot": _spot,
    "blur": _blur,
    "paste": _paste,
    "noise": _noise,
    "contrast": _contrast,
}
