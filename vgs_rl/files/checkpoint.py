"""Checkpoints: plain tensors, numbers and strings; written whole or not at all, read as written.

A file is what ``torch.save`` writes with one line behind it, the SHA-256 of all before that line.
Nothing in a file is read before the digest is compared, and nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickletools
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from torch import Tensor

from vgs_rl.checks import one_line, path_of

FORMAT = "vgs_rl checkpoint"
VERSION = 2
_LINE = b"vgs_rl sha256 %s\n"
_LINE_SIZE = len(_LINE % (b"0" * 64))
_CHUNK = 2**20

Kind = Literal["checkpoint", "agent", "sampler", "samples", "features", "pieces"]
# What a file of another kind is, and who reads it.
_READERS: dict[str, str] = {
    "checkpoint": "a checkpoint of a training; load_run and evaluate.py take the run folder that "
    "it lies in, and evaluate.py RUN --export FILE writes a sampler",
    "agent": "a saved agent; its class's load reads it, such as VGS.load",
    "sampler": "an exported sampler; load_sampler and evaluate.py --pretrained read it",
    "samples": "drawn samples; Samples.load reads them",
    "features": "features of pictures, kept by the package",
    "pieces": "part of a work that was not finished; the command that began it goes on with it",
}

# What torch.save writes for tensors and nothing else.
_ALLOWED = (
    r"collections OrderedDict|torch\._utils _rebuild_tensor_v[23]|torch \w+Storage|torch u?int\d+"
)
# What mkstemp makes of the names of files that this package writes.
TEMPORARY = re.compile(r"\..+\.(pt|yaml|json|jsonl|png|md|session)\.[a-z0-9_]{8}")


def write_atomically(path: Path | str, write: Callable[[BinaryIO], object]) -> None:
    """Calls `write` on a temporary file next to `path` and renames it; a failure leaves nothing.

    Raises:
        OSError: naming the path, if the disk is full, the folder gone or not to be written to.
    """
    path = path_of(path)
    temporary: str | None = None
    with writing(path):
        try:
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            with os.fdopen(descriptor, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            mode = 0o666 & ~_umask()
            os.chmod(temporary, mode)
            os.replace(temporary, path)
        except BaseException:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            raise


class Unwritable(OSError):
    """A file that cannot be written; the message names it."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever fails here names the file that was to be written.

    Raises:
        Unwritable: for every other OSError.
    """
    try:
        yield
    except Unwritable:
        raise
    except OSError as error:
        gone = "" if path.parent.is_dir() else f" (the folder {path.parent} is gone)"
        named = Unwritable(f"{path} cannot be written: {error.strerror or error}{gone}")
        named.errno = error.errno
        raise named from error


def remove_temporaries(*folders: Path) -> None:
    """Removes what :func:`write_atomically` left there when it was killed, and nothing else.

    The caller must know that nobody is writing there.
    """
    for folder in folders:
        for file in folder.glob(".*"):
            if TEMPORARY.fullmatch(file.name) and file.is_file():
                file.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path | str, text: str) -> None:
    """Writes a text file whole or not at all."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def save_checkpoint(
    path: Path | str, state: Mapping[str, Any], *, kind: Kind = "checkpoint"
) -> None:
    """Saves a nested mapping of tensors, numbers, strings, lists and tuples.

    Args:
        path: the file.
        state: what to save.
        kind: what it is, for whoever reads it.

    Raises:
        TypeError: if it holds anything else.
    """
    path = path_of(path)
    content = {"format": FORMAT, "version": VERSION, "kind": kind}
    content["state"] = _plain(state, set(), "state")

    packed = io.BytesIO()
    torch.save(content, packed)  # not into the file: what fails there is no OSError
    body = packed.getbuffer()
    line = _LINE % hashlib.sha256(body).hexdigest().encode()
    write_atomically(path, lambda file: (file.write(body), file.write(line)))


def load_checkpoint(
    path: Path | str, device: torch.device | str = "cpu", *, kind: Kind = "checkpoint"
) -> dict[str, Any]:
    """Loads what :func:`save_checkpoint` saved; never executes code from the file.

    Args:
        path: the file.
        device: where to put its tensors.
        kind: what it must be.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, not a checkpoint of this package, of another version or of
            another kind.
    """
    path = path_of(path)
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder, not a file; load_run and evaluate.py take run folders"
        )
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    with open(path, "rb") as file:
        size = _check_digest(file, path)
        _check_archive(file, path, size)
        file.seek(0)
        try:
            content = torch.load(file, map_location=device, weights_only=True)
        except Exception as error:  # torch raises many kinds for what it did not write itself
            raise ValueError(
                f"checkpoint {path} cannot be read: {one_line(error)[:200]}"
            ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"checkpoint {path} was not written by vgs_rl")
    if content.get("version") != VERSION:
        raise ValueError(_other_version(path, content.get("version")))
    if (found := content.get("kind")) != kind:
        what = _READERS.get(str(found), "something else")
        raise ValueError(f"{path} holds no {kind}, but {what}")
    state = content.get("state")
    if not isinstance(state, dict) or sum(map(_bytes_of, _tensors(state))) > size:
        raise ValueError(f"checkpoint {path} is damaged: its tensors are larger than the file")
    return state


def _plain(value: Any, seen: set[int], name: str) -> Any:
    """A value as dicts, lists, tuples, numbers, strings and tensors, each with its own memory."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Tensor):
        value = value.detach()
        storage = value.untyped_storage()
        if storage.nbytes() != _bytes_of(value) or storage.data_ptr() in seen:
            value = value.clone(memory_format=torch.contiguous_format)
            storage = value.untyped_storage()
        if storage.nbytes():
            seen.add(storage.data_ptr())
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, (str, int)):
                raise TypeError(f"{name} must have strings or integers as keys, got {key!r}")
        return {key: _plain(each, seen, f"{name}.{key}") for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(each, seen, f"{name}[{i}]") for i, each in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    raise TypeError(f"a checkpoint cannot hold {name}, a {type(value).__name__}")


def _bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _tensors(state: Any) -> Iterator[Tensor]:
    """The tensors in a nested state, each once."""
    seen, waiting = dict[int, Any](), [state]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple)):
            waiting += value.values() if isinstance(value, dict) else value
        else:
            continue
        seen[id(value)] = value


def _check_digest(file: BinaryIO, path: Path) -> int:
    """Compares content and digest; returns the content's size."""
    size = file.seek(0, os.SEEK_END) - _LINE_SIZE
    file.seek(max(0, size))
    line = re.fullmatch(rb"vgs_rl sha256 ([0-9a-f]{64})\n", file.read(_LINE_SIZE))
    if size < 0 or line is None:
        raise ValueError(_without_digest(file, path))
    digest, left = hashlib.sha256(), size
    file.seek(0)
    while left and (chunk := file.read(min(left, _CHUNK))):
        digest.update(chunk)
        left -= len(chunk)
    if digest.hexdigest().encode() != line[1]:
        raise ValueError(
            f"checkpoint {path} is damaged: its content is not what was written (by its digest)"
        )
    return size


def _without_digest(file: BinaryIO, path: Path) -> str:
    """What a file is that has no digest."""
    file.seek(0)
    head = file.read(4096)
    if not head:
        return f"checkpoint {path} is empty"
    if head.startswith(b"PK"):
        try:
            return _other_version(path, _version(_operations(file)))
        except Exception:  # archives and pickles raise many kinds where they are damaged
            return f"checkpoint {path} is truncated or damaged"
    try:
        head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return f"checkpoint {path} cannot be read: it is truncated or not one of vgs_rl's"
    return f"checkpoint {path} is a text file, not one that vgs_rl wrote"


def _other_version(path: Path, version: object) -> str:
    if version is None:
        return f"checkpoint {path} was not written by vgs_rl"
    if version == VERSION:
        return f"checkpoint {path} is damaged: it has no digest of its content"
    return (
        f"checkpoint {path} has version {version}, this package reads {VERSION}: "
        "train or export it again"
    )


def _operations(file: BinaryIO) -> list[tuple[str, Any]]:
    """The instructions of a file's pickle, read but not followed."""
    with zipfile.ZipFile(file) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        entry = archive.getinfo(name)
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError("compressed")
        return [(op.name, arg) for op, arg, _ in pickletools.genops(archive.read(name))]


def _version(operations: list[tuple[str, Any]]) -> int | None:
    """The version in a checkpoint's pickle, or None if it is none of vgs_rl's."""
    texts = [arg for _, arg in operations]
    if FORMAT not in texts or "version" not in texts:
        return None
    after = operations[texts.index("version") + 1 :]
    return next((arg for op, arg in after if op in ("BININT1", "BININT2", "BININT")), None)


def _check_archive(file: BinaryIO, path: Path, size: int) -> None:
    """Refuses what takes more memory than the file has bytes, or is more than tensors."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        names = {arg for op, arg in _operations(file) if op in ("GLOBAL", "STACK_GLOBAL", "INST")}
    except Exception as error:  # archives and pickles raise many kinds where they are damaged
        raise ValueError(f"checkpoint {path} is damaged: {one_line(error)[:200]}") from error
    if not stored or sum(entry.file_size for entry in entries) > size:
        raise ValueError(f"checkpoint {path} is damaged: it expands to more than its size")
    for name in names:
        if not re.fullmatch(_ALLOWED, str(name)):
            raise ValueError(
                f"checkpoint {path} holds more than tensors, numbers and strings: {name}"
            )
