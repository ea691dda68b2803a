"""Functions that other processes import: E(x) = ½ ‖x‖² + Σ cos(x_i), and ones that go wrong."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np
import torch


def energy(x: Any) -> Any:
    return 0.5 * (x**2).sum() + np.cos(x).sum()


def gradient(x: Any) -> Any:
    return x - np.sin(x)


def energy_and_gradient(x: Any) -> Any:
    return energy(x), gradient(x)


def batch_energy(x: Any) -> Any:
    return 0.5 * (x**2).sum(-1) + np.cos(x).sum(-1)


def batch_energy_and_gradient(x: Any) -> Any:
    return batch_energy(x), gradient(x)


def torch_energy(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x.square().sum(-1) + x.cos().sum(-1)


def torch_gradient(x: torch.Tensor) -> torch.Tensor:
    return x - x.sin()


def torch_energy_and_gradient(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch_energy(x), torch_gradient(x)


def hasty(x: Any) -> Any:
    """Changes its state in place."""
    value = energy(x)
    x *= 0.0
    return value


class OwnError(Exception):
    """Cannot be pickled as it is raised: it takes two arguments."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(f"{what} ({code})")


def failing(x: Any) -> Any:
    """What its first coordinate says goes wrong."""
    if x[0] == 7.0:
        raise ZeroDivisionError("no inverse\nof this")
    if x[0] == 8.0:
        raise OwnError("the solver gave up", 3)
    if x[0] == 9.0:
        os.kill(os.getpid(), signal.SIGKILL)
    if x[0] == 10.0:
        return x
    if x[0] == 11.0:
        return (
            os.getpid() * 1e3 + 100 * int(os.environ["OMP_NUM_THREADS"]) + torch.get_num_threads()
        )
    if x[0] == 12.0:
        sleep()
    return energy(x)


def sleep() -> None:
    """Writes its process into the folder that the environment names, and takes long."""
    with open(os.path.join(os.environ["SLEEPERS"], str(os.getpid())), "w"):
        time.sleep(60.0)


def copper() -> Any:
    """Thirteen atoms of copper, an icosahedron."""
    from ase.calculators.emt import EMT
    from ase.cluster import Icosahedron

    atoms = Icosahedron("Cu", 2)
    atoms.calc = EMT()
    return atoms
