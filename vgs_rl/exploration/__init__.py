"""Finding out what an unknown energy is like: where its mass is, how wide, in how many places."""

from vgs_rl.exploration.agreement import energy_drift, share_gap
from vgs_rl.exploration.bends import fit_location_scale
from vgs_rl.exploration.clock import Clock, Deadline, affordable_effort
from vgs_rl.exploration.coordinates.affine import AffineMap, Rotation
from vgs_rl.exploration.coordinates.base import (
    Composed,
    Coordinates,
    Mapped,
    MappedEnergy,
    load_coordinates,
)
from vgs_rl.exploration.coordinates.bounds import support_of
from vgs_rl.exploration.coordinates.components import Components
from vgs_rl.exploration.coordinates.location_scale import LocationScale, SplineLocationScale
from vgs_rl.exploration.coordinates.quantiles import Quantiles
from vgs_rl.exploration.coordinates.support import Support, periodic
from vgs_rl.exploration.coordinates.tails import Tails
from vgs_rl.exploration.funnels import common_scale
from vgs_rl.exploration.hierarchy import given_one
from vgs_rl.exploration.islands import (
    Exploration,
    explore,
    explore_again,
)
from vgs_rl.exploration.modes import Modes, find_modes
from vgs_rl.exploration.preconditioning import preconditioner
from vgs_rl.exploration.products import independent
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
from vgs_rl.exploration.tail_fit import TailFit, fit_components, fit_tails
from vgs_rl.exploration.tempered import Island, moved, tempered_smc

__all__ = [
    "AffineMap",
    "Clock",
    "Components",
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
    "Quantiles",
    "Reference",
    "Rotation",
    "SplineLocationScale",
    "Support",
    "TailFit",
    "Tails",
    "affordable_effort",
    "common_scale",
    "energy_drift",
    "explore",
    "explore_again",
    "find_modes",
    "find_reference",
    "fit_components",
    "fit_location_scale",
    "fit_tails",
    "fitted_reference",
    "given_one",
    "independent",
    "load_coordinates",
    "moved",
    "periodic",
    "preconditioner",
    "share_gap",
    "support_of",
    "tempered_smc",
]
