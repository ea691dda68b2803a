"""Reference samples and log Z that ship as files, for targets that nothing exact is known of."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from vgs_rl.energy import Energy, Split


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
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return file[key]
