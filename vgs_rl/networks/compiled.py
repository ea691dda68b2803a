"""Drifts of particle systems, compiled: for those who draw many samples."""

from __future__ import annotations

import math
import os
import shutil
import sys

import torch
from torch import Tensor

from vgs_rl.networks.clusters import ClusterValue
from vgs_rl.networks.guide import GuidedValue


class CompiledValue:
    """The value of a particle system with a gradient that ``torch.compile`` has fused.

    On a CPU it takes about half the time, and the same numbers up to rounding come out.
    Compilation costs about a minute at the first call, so it pays from some thousand samples on.
    It serves acting, not learning: no gradient flows through it.

    States go through it in parts of one size, the last one filled up: a shape is compiled once.

    Args:
        value: a network of particle systems, with or without a guide.

    Raises:
        ValueError: if the value is another one, or there is no C++ compiler to compile for a CPU.
    """

    NUMBERS = 12_000  # n² times the rows of a part on a CPU: what fits its cache
    LEAST_ROWS = 16  # which fill a vector register
    ROWS = 2_048  # of a part elsewhere

    def __init__(self, value: object) -> None:
        if not isinstance(value, ClusterValue | GuidedValue):
            raise ValueError(
                "compiling is for networks of particle systems (ClusterNetwork), "
                f"got {type(value).__name__}"
            )
        network = value.network if isinstance(value, GuidedValue) else value
        self.original = value
        on_cpu = network.trap.device.type == "cpu"
        if on_cpu:
            _require_compiler()
            fitting = max(self.LEAST_ROWS, self.NUMBERS // network.n**2)
            self.rows = 2 ** int(math.log2(fitting))  # divides most batches
        else:
            self.rows = self.ROWS

        def gradient_part(x: Tensor, t: Tensor) -> Tensor:
            return value.gradient_part(x, t)

        self._gradient_part = torch.compile(
            gradient_part,
            dynamic=False,
            fullgraph=True,
            # All of it in C++, so that Python's lock is not held: threads draw chunks on a CPU.
            options={"cpp_wrapper": on_cpu},
        )

    def value(self, x: Tensor, t: int | Tensor) -> Tensor:
        """V_t(x), shape (B,), as it was."""
        return self.original.value(x, t)

    @torch.no_grad()
    def gradient(self, x: Tensor, t: int | Tensor) -> Tensor:
        """The gradient at states x (B, D), shape (B, D); t one step or one per row."""
        missing = -len(x) % self.rows
        filled = torch.cat([x, x[-1:].expand(missing, -1)]) if missing else x
        if isinstance(t, int):
            steps = [torch.full((1,), t, device=x.device)] * (len(filled) // self.rows)
        else:
            steps = list(torch.cat([t, t[-1:].expand(missing)]).split(self.rows))
        parts = zip(filled.split(self.rows), steps, strict=True)
        return torch.cat([self._gradient_part(*part) for part in parts])[: len(x)]


def _require_compiler() -> None:
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise ValueError(
            f"compiling needs a C++ compiler, and there is no {compiler!r}: install one or set CXX"
        )
