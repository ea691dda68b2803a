"""Finding out what an unknown energy is like: where its mass is, how wide, in how many places."""

from vgs_rl.exploration.affine import AffineEnergy, AffineMap
from vgs_rl.exploration.explore import Exploration, explore
from vgs_rl.exploration.reference import (
    GaussianReference,
    PriorReference,
    Reference,
    find_reference,
)
from vgs_rl.exploration.tempered import Island, tempered_smc

__all__ = [
    "AffineEnergy",
    "AffineMap",
    "Exploration",
    "GaussianReference",
    "Island",
    "PriorReference",
    "Reference",
    "explore",
    "find_reference",
    "tempered_smc",
]
