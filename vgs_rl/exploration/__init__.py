"""Finding out what an unknown energy is like: where its mass is, how wide, in how many places."""

from vgs_rl.exploration.affine import AffineMap, Rotation
from vgs_rl.exploration.bounds import support_of
from vgs_rl.exploration.clock import Clock, Deadline
from vgs_rl.exploration.coordinates import (
    Composed,
    Coordinates,
    Mapped,
    MappedEnergy,
    load_coordinates,
)
from vgs_rl.exploration.funnels import common_scale
from vgs_rl.exploration.islands import (
    Exploration,
    affordable_effort,
    explore,
    explore_again,
)
from vgs_rl.exploration.location_scale import LocationScale, fit_location_scale
from vgs_rl.exploration.modes import Modes, find_modes, preconditioner
from vgs_rl.exploration.reference import (
    GaussianReference,
    JoinedReference,
    MappedReference,
    MixtureReference,
    PriorReference,
    Reference,
    find_reference,
    fitted_reference,
)
from vgs_rl.exploration.support import Support, periodic
from vgs_rl.exploration.tail_fit import TailFit, fit_tails
from vgs_rl.exploration.tails import Tails
from vgs_rl.exploration.tempered import Island, tempered_smc

__all__ = [
    "AffineMap",
    "Clock",
    "Composed",
    "Coordinates",
    "Deadline",
    "Exploration",
    "GaussianReference",
    "Island",
    "JoinedReference",
    "LocationScale",
    "Mapped",
    "MappedEnergy",
    "MappedReference",
    "MixtureReference",
    "Modes",
    "PriorReference",
    "Reference",
    "Rotation",
    "Support",
    "TailFit",
    "Tails",
    "affordable_effort",
    "common_scale",
    "explore",
    "explore_again",
    "find_modes",
    "find_reference",
    "fit_location_scale",
    "fit_tails",
    "fitted_reference",
    "load_coordinates",
    "periodic",
    "preconditioner",
    "support_of",
    "tempered_smc",
]
