"""Start distributions pi_0."""

from vgs_rl.starts.base import GaussianStart, Start, StartConfig, UniformStart, widened
from vgs_rl.starts.data import DataStart
from vgs_rl.starts.make import make_start, start_of
from vgs_rl.starts.mixtures import MixtureStart, ProductStart

__all__ = [
    "DataStart",
    "GaussianStart",
    "MixtureStart",
    "ProductStart",
    "Start",
    "StartConfig",
    "UniformStart",
    "make_start",
    "start_of",
    "widened",
]
