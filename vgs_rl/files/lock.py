"""One process a folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import errno
import os
import socket
import sys
import warnings
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

NAME = ".lock"
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_FAR = 1 << 30  # Windows locks bytes, and a locked byte cannot be read


class FolderLock:
    """The operating system's lock on a file in a folder, held from here to :meth:`release`.

    Nothing stays locked when the process ends, by ``kill -9`` or by a power cut. The file says who
    holds it; where it is left over from a process that has ended, a note says so.

    Args:
        folder: an existing folder.

    Raises:
        FolderInUse: if another process holds it, or another lock of this one.
        OSError: if the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        while True:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock(self._descriptor)
            except BlockingIOError:
                holder = self._holder()
                os.close(self._descriptor)
                raise FolderInUse(folder, holder) from None
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    os.close(self._descriptor)
                    raise
                warnings.warn(f"{folder} cannot be locked: {error.strerror}", stacklevel=2)
            if self._is_current():
                break
            os.close(self._descriptor)  # its last holder has removed it meanwhile
        if left := self._holder():
            print(f"note: {folder} was in use by {left}, which has ended", file=sys.stderr)
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.write(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def _holder(self) -> str:
        """What the file says."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        return os.read(self._descriptor, 200).decode(errors="replace").strip()

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Ends it and removes its file; a second call does nothing."""
        if self._descriptor < 0:
            return
        try:
            if self._is_current():
                self.path.unlink()
        except OSError:  # Windows removes no open file, and a folder may have become read-only
            pass
        os.close(self._descriptor)
        self._descriptor = -1

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class FolderInUse(OSError):
    """Another process works in the folder."""

    def __init__(self, folder: Path, holder: str) -> None:
        super().__init__(
            f"{folder} is in use by {holder or 'another process'}: wait for it, stop it, or choose "
            "another --output or --seed"
        )


if sys.platform == "win32":

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)

else:

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
