"""What the C library does with memory that tensors free."""

from __future__ import annotations

import ctypes
import functools
import sys

# mallopt's parameters, from glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


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
