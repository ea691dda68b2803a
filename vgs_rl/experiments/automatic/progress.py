"""A bar that says which phase a sampling without settings is in."""

from __future__ import annotations

import time
from typing import Self

from tqdm import tqdm


class Progress:
    """Time used, of the time there is, with what happens now.

    Args:
        seconds: how long it may take, about.
        show: whether there is a bar.
    """

    def __init__(self, seconds: float, *, show: bool) -> None:
        self.seconds, self.began = seconds, time.monotonic()
        form = "{desc}: {percentage:3.0f}% of {total_fmt} s at most |{bar}|"
        self._bar = tqdm(
            total=round(seconds), disable=not show, leave=False, bar_format=form, desc="sampling"
        )

    def __enter__(self) -> Self:
        """The bar is shown."""
        return self

    def __exit__(self, *exception: object) -> None:
        """The bar goes."""
        self._bar.close()

    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    def left(self) -> float:
        """Seconds that are left, at least 1."""
        return max(self.seconds - self.elapsed(), 1.0)

    def tell(self, message: str) -> None:
        """Shows what happens now."""
        self._bar.n = min(round(self.elapsed()), round(self.seconds))
        self._bar.set_description_str(message)
