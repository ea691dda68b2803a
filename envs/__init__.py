"""Targets and their Gymnasium faces; importing this package registers every id."""

from vgs_rl.chain import ScheduleConfig
from vgs_rl.envs.checks.energy import check_energy
from vgs_rl.envs.checks.report import CheckError, CheckReport
from vgs_rl.envs.checks.vector import check_vector_env
from vgs_rl.envs.ebm import EBMEnv, EBMVectorEnv, digits_energy
from vgs_rl.envs.observation import Observation
from vgs_rl.envs.sampling import SamplingEnv
from vgs_rl.envs.targets.funnel import EasyFunnel10, Funnel, Funnel10, HardFunnel10
from vgs_rl.envs.targets.gaussian import GMM9, GMM25, GMM40, FourGauss, Gaussian, GaussianMixture
from vgs_rl.envs.targets.many_well import ManyWell, ManyWell32
from vgs_rl.envs.targets.particles import (
    DW4,
    LJ13,
    LJ55,
    DoubleWellCluster,
    LennardJones,
    ParticleEnergy,
)
from vgs_rl.envs.vector import SamplingVectorEnv
from vgs_rl.mdp import MDPConfig
from vgs_rl.registry import register
from vgs_rl.starts import StartConfig


def _vp(num_steps: int, scale: float) -> MDPConfig:
    start = StartConfig(kind="gaussian", scale=scale)
    return MDPConfig(chain="vp", num_steps=num_steps, start=start)


def _ve(num_steps: int, first: float, last: float, scale: float, kind: str) -> MDPConfig:
    schedule = ScheduleConfig(kind="geometric", first=first, last=last)
    start = StartConfig(kind="mixture" if kind == "mixture" else "gaussian", scale=scale)
    return MDPConfig(chain="ve", num_steps=num_steps, schedule=schedule, start=start)


register("vgs_rl/Gaussian-v0", energy=Gaussian, mdp=_vp(20, 1.0))
register("vgs_rl/FourGauss-v0", energy=FourGauss, mdp=_vp(10, 1.1))
register("vgs_rl/GMM9-v0", energy=GMM9, mdp=_vp(20, 1.4))
register("vgs_rl/GMM25-v0", energy=GMM25, mdp=_vp(20, 2.0))
register("vgs_rl/GMM40-v0", energy=GMM40, mdp=_vp(30, 5.0))
register("vgs_rl/EasyFunnel10-v0", energy=EasyFunnel10, mdp=_ve(30, 1.0, 1e-2, 3.0, "mixture"))
register("vgs_rl/Funnel10-v0", energy=Funnel10, mdp=_ve(30, 4.0, 2e-3, 6.0, "mixture"))
register("vgs_rl/HardFunnel10-v0", energy=HardFunnel10, mdp=_ve(30, 4.0, 2e-3, 8.0, "mixture"))
register("vgs_rl/ManyWell32-v0", energy=ManyWell32, mdp=_ve(20, 1.0, 1e-2, 3.0, "gaussian"))
register("vgs_rl/DW4-v0", energy=DW4, mdp=_ve(60, 0.25, 1e-3, 2.7, "gaussian"))
register("vgs_rl/LJ13-v0", energy=LJ13, mdp=_ve(100, 0.05, 1e-4, 1.15, "gaussian"))
register("vgs_rl/LJ55-v0", energy=LJ55, mdp=_ve(100, 0.05, 1e-4, 1.35, "gaussian"))
register(
    "vgs_rl/EBMDigits-v0",
    energy=digits_energy,
    mdp=MDPConfig(
        chain="ve",
        num_steps=10,
        schedule=ScheduleConfig(kind="constant", first=1e-3),
        start=StartConfig(kind="data"),
    ),
    env="vgs_rl.envs.ebm:EBMEnv",
    vector_env="vgs_rl.envs.ebm:EBMVectorEnv",
)

__all__ = [
    "DW4",
    "GMM9",
    "GMM25",
    "GMM40",
    "LJ13",
    "LJ55",
    "CheckError",
    "CheckReport",
    "DoubleWellCluster",
    "EBMEnv",
    "EBMVectorEnv",
    "EasyFunnel10",
    "FourGauss",
    "Funnel",
    "Funnel10",
    "Gaussian",
    "GaussianMixture",
    "HardFunnel10",
    "LennardJones",
    "ManyWell",
    "ManyWell32",
    "Observation",
    "ParticleEnergy",
    "SamplingEnv",
    "SamplingVectorEnv",
    "check_energy",
    "check_vector_env",
    "digits_energy",
]
