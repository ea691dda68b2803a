"""Energies with parameters: one chain for all of their values."""

from vgs_rl.conditional.conditions import ConditionLike, Conditions
from vgs_rl.conditional.energy import (
    ConditionalEnergy,
    EnergyAt,
    JointEnergy,
    TemperedEnergy,
    as_energy,
    joint_energy,
)

__all__ = [
    "ConditionLike",
    "ConditionalEnergy",
    "Conditions",
    "EnergyAt",
    "JointEnergy",
    "TemperedEnergy",
    "as_energy",
    "joint_energy",
]
