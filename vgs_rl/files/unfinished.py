"""Long work in pieces: what is done is kept in files, and the same call goes on with it."""

from __future__ import annotations

import hashlib
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from vgs_rl.files.checkpoint import load_checkpoint, remove_temporaries, save_checkpoint

NAME = ".unfinished"  # of the folder, in a run folder
_PIECE = re.compile(r"[0-9a-f]{16}-[0-9]{9}\.pt")


def digest_of(*parts: Path | str) -> str:
    """A digest of files' contents and of texts."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part.encode()
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


class Unfinished:
    """The pieces of long work, until all of it is done.

    Two processes that do the same work keep the same pieces, and neither is in the other's way.

    Attributes:
        seconds: most seconds of work between two files: what is lost at most.

    Args:
        folder: where pieces are kept. There is none before the first, and none in the end.
        identity: what the work starts from, such as the digest of a checkpoint.
    """

    seconds: float = 60.0

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = Path(folder), identity

    @contextmanager
    def work(self, name: str) -> Iterator[Work]:
        """One part of the work: what has been done of it, and where more is kept.

        Args:
            name: tells it from other parts, and from this one with other arguments.
        """
        work = Work(self, digest_of(self.identity, name, torch.__version__)[:16])
        try:
            yield work
        except BaseException:  # Ctrl-C, too: what is done is done
            work.keep()
            raise
        if work.kept:  # what follows may take long as well
            work.keep()

    def remove(self) -> None:
        """Removes the folder with all pieces; called when the result has been written."""
        for file in self.folder.glob("*.pt"):
            if _PIECE.fullmatch(file.name):
                file.unlink(missing_ok=True)
        remove_temporaries(self.folder)
        with suppress(OSError):  # there is none, or it holds something else
            self.folder.rmdir()


class Work:
    """One part of the work.

    Attributes:
        done: what an earlier call has kept, in order.
        kept: how many items are in files.

    Args:
        owner: whose part it is.
        key: the first part of its files' names.
    """

    def __init__(self, owner: Unfinished, key: str) -> None:
        self._owner, self._key = owner, key
        self._waiting: list[Mapping[str, Any]] = []
        self._since = time.monotonic()
        self._failed = False
        self.done = self._read()
        self.kept = len(self.done)

    @property
    def due(self) -> bool:
        """Whether the next item is written."""
        return time.monotonic() - self._since >= self._owner.seconds

    def add(self, item: Mapping[str, Any]) -> None:
        """Keeps an item: plain values and tensors, which nobody changes."""
        self._waiting.append(item)
        if self.due:
            self.keep()

    def keep(self) -> None:
        """Writes what waits; where it cannot be written, a warning says so and work goes on."""
        self._since = time.monotonic()
        if not self._waiting or self._failed:
            return
        try:
            self._owner.folder.mkdir(parents=True, exist_ok=True)
            save_checkpoint(self._file(self.kept), {"items": self._waiting}, kind="pieces")
        except OSError as error:
            self._failed = True
            warnings.warn(f"unfinished work is not kept: {error}", stacklevel=2)
        self.kept += len(self._waiting)
        self._waiting = []

    def _file(self, first: int) -> Path:
        return self._owner.folder / f"{self._key}-{first:09d}.pt"

    def _read(self) -> list[dict[str, Any]]:
        """All pieces up to the first that is missing or damaged."""
        items: list[dict[str, Any]] = []
        with suppress(FileNotFoundError, ValueError, OSError):
            while found := load_checkpoint(self._file(len(items)), kind="pieces").get("items"):
                if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
                    break
                items += found
        return items
