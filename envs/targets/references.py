"""Reference samples and log Z that ship as files, for targets that nothing exact is known of."""

from __future__ import annotations

import json
import math
import zipfile
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from vgs_rl.checks import one_line
from vgs_rl.energy import Energy, Split

SPARE, EXPANSION = 2**20, 100  # bytes that an entry may expand to, besides so many for each of it


class ReferencedEnergy(Energy):
    """An energy whose reference samples may ship with the package.

    A subclass writes :meth:`reference_name`.
    """

    def reference_name(self) -> str:
        """Name of the file that is of this very density.

        Raises:
            NotImplementedError: if none is shipped, saying what is.
        """
        raise NotImplementedError(f"{type(self).__name__} ships no reference samples")

    def reference(self, split: Split = "test") -> Tensor:
        """Shipped samples, float32, shape (n, D), on the CPU.

        See :meth:`reference_notes` for how they were made, and how far they can be believed.

        Raises:
            NotImplementedError: if none are shipped for these constants.
            ValueError: if there is no such split.
        """
        if split not in get_args(Split):
            raise ValueError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}")
        return torch.from_numpy(self._shipped(split))

    def reference_notes(self) -> dict[str, Any]:
        """`provenance` and `diagnostics` of the shipped samples, as plain dictionaries.

        Raises:
            NotImplementedError: if none are shipped for these constants.
        """
        return {key: json.loads(str(self._shipped(key))) for key in ("provenance", "diagnostics")}

    def shipped_log_z(self) -> float | None:
        """The estimate of log Z in the shipped file, or None; `diagnostics` has its error."""
        try:
            diagnostics = json.loads(str(self._shipped("diagnostics")))
        except NotImplementedError:
            return None
        return float(diagnostics["log_z"]["mean"])

    def _shipped(self, key: str) -> Any:
        """One entry of the file."""
        path = resources.files("vgs_rl.envs") / "reference" / f"{self.reference_name()}.npz"
        if not path.is_file():
            raise NotImplementedError(f"{type(self).__name__} has no file {path.name}")
        return load_array(path, key)


def load_array(path: Traversable | Path, key: str) -> Any:
    """One entry of NumPy's archive; nothing in it is executed.

    Raises:
        ValueError: if the file is damaged, or its entry claims more than it can hold.
    """
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            entry = archive.getinfo(f"{key}.npy")
            with archive.open(entry) as packed:
                major, _ = np.lib.format.read_magic(packed)
                read = np.lib.format.read_array_header_1_0
                shape, _, dtype = (read if major == 1 else np.lib.format.read_array_header_2_0)(
                    packed
                )
            size, most = math.prod(shape) * dtype.itemsize, SPARE + EXPANSION * entry.compress_size
            if size > entry.file_size or entry.file_size > most:
                raise ValueError(f"{key} expands to {max(size, entry.file_size):,} bytes")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                return file[key]
    except Exception as error:  # NumPy and its archives raise many kinds for damaged files
        reason = one_line(error)
        raise ValueError(f"{path} is damaged: {reason}") from error
