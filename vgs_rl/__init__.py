"""Sampling from unnormalised densities as reinforcement learning."""

import os

# OpenMP threads that spin while they wait make training several times slower as soon as anything
# else runs on the machine. It has an effect only before torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from vgs_rl.chain import Chain, ScheduleConfig
from vgs_rl.energy import Energy, Particles
from vgs_rl.geometry import CentreOfMassFree, Euclidean, Geometry, Sphere
from vgs_rl.mdp import MDPConfig, SamplingMDP
from vgs_rl.registry import find, register, registered
from vgs_rl.samplers.base import ChainSampler, Sampler, Samples, load_sampler
from vgs_rl.start import StartConfig

# Last, since it needs all of the above: registers the targets, so that their names and Gymnasium
# ids are known as soon as this package is imported, also as `gymnasium.make("vgs_rl:vgs_rl/…")`.
from vgs_rl import envs as envs  # isort: skip

__all__ = [
    "CentreOfMassFree",
    "Chain",
    "ChainSampler",
    "Energy",
    "Euclidean",
    "Geometry",
    "MDPConfig",
    "Particles",
    "Sampler",
    "Samples",
    "SamplingMDP",
    "ScheduleConfig",
    "Sphere",
    "StartConfig",
    "find",
    "load_sampler",
    "register",
    "registered",
]
__version__ = "0.1.0"
