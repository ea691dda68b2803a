"""Memory: how much tensors may take, and what the C library does with what they free."""

from __future__ import annotations

import ctypes
import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# mallopt's parameters, from glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def _range(
    *bounds: float, start: float = 0, end: float | None = None, step: float = 1, **_: Any
) -> int:
    if len(bounds) == 1 and end is None:
        bounds = (start, *bounds)
    first, last, by = (*bounds, *(start, end or 0, step)[len(bounds) :])[:3]
    count = (last - first) / by if by else math.nan
    return max(0, math.ceil(count)) if math.isfinite(count) else 0  # which torch then refuses


# What makes tensors of a size that its arguments say, and that size. The device "meta" would know
# it too, but to use it imports for three seconds (`arange`: torch's compiler).
_SIZES: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(
        (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn),
        lambda *sizes, size=None, **_: (
            size if size is not None else sizes[0] if len(sizes) == 1 else sizes
        ),
    ),
    torch.full: lambda size, *_, **__: size,
    torch.eye: lambda n, m=None, **_: (n, n if m is None else m),
    torch.arange: _range,
    torch.linspace: lambda start, end, steps, **_: steps,
    torch.logspace: lambda start, end, steps, *_, **__: steps,
    torch.randint: lambda *bounds, size=None, **_: bounds[-1] if size is None else size,
    torch.randperm: lambda n, **_: n,
}
_WHOLE = {torch.arange, torch.randint, torch.randperm}  # numbers of eight bytes, if none are named


@functools.cache
def keep_freed_memory() -> bool:
    """Lets glibc keep what is freed, for the whole process; elsewhere it does nothing.

    By default it gives blocks of activations back to the system and faults them in again, page by
    page, with the next operation, which sampling from a small network feels. The cost is that peak
    memory stays with the process.

    Returns:
        Whether the C library took the settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_MMAP_THRESHOLD, 2**25), (_TRIM_THRESHOLD, 2**30), (_TOP_PAD, 2**26))
    return all([bool(mallopt(parameter, value)) for parameter, value in settings])


class AllocationLimit(TorchFunctionMode):
    """While it is entered, new tensors may take so many bytes together.

    For building what a file describes: its sizes are the file's word, and a file of a few bytes
    may ask for more memory than there is. Tensors are counted before they are made, and are not
    counted off when they are freed.

    Args:
        limit: bytes.

    Raises:
        ValueError: from the call that would exceed the limit.

    Example:
        >>> with AllocationLimit(1000):
        ...     torch.zeros(10**6)
        Traceback (most recent call last):
        ValueError: tensors of more than 1000 bytes are asked for, the last of shape (1000000,)
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit, self.used = limit, 0

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Counts what makes tensors, and calls it."""
        kwargs = kwargs or {}
        if func in _SIZES and kwargs.get("device") != "meta":
            size = _SIZES[func](*args, **kwargs)
            dtype = kwargs.get("dtype") or (torch.int64 if func in _WHOLE else None)
            planned = torch.empty(size, dtype=dtype, device="meta")
            self.used += planned.numel() * planned.element_size()
            if self.used > self.limit:
                raise ValueError(
                    f"tensors of more than {self.limit} bytes are asked for, the last of shape "
                    f"{tuple(planned.shape)}"
                )
        return func(*args, **kwargs)
