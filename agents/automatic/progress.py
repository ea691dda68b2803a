"""A bar that says which phase a sampling without settings is in."""

from __future__ import annotations

from typing import Self

from tqdm import tqdm

from vgs_rl.exploration import Clock


class Progress:
    """Time used, of the time there is, with what happens now.

    Args:
        clock: tells the time.
        show: whether there is a bar.
        what: what it says at first.
    """

    def __init__(self, clock: Clock, *, show: bool, what: str = "sampling") -> None:
        self.clock = clock
        form = "{desc}: {percentage:3.0f}% of {total_fmt} s at most |{bar}|"
        self._bar = tqdm(
            total=round(clock.seconds), disable=not show, leave=False, bar_format=form, desc=what
        )

    def __enter__(self) -> Self:
        """The bar is shown."""
        return self

    def __exit__(self, *exception: object) -> None:
        """The bar goes."""
        self._bar.close()

    def tell(self, message: str) -> None:
        """Shows what happens now."""
        self._bar.n = min(round(self.clock.elapsed()), round(self.clock.seconds))
        self._bar.set_description_str(message)
