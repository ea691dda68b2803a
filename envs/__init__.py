"""Targets and their Gymnasium faces; importing this package registers every id."""

from vgs_rl.chain import ScheduleConfig
from vgs_rl.envs.checks.energy import check_energy
from vgs_rl.envs.checks.report import CheckError, CheckReport
from vgs_rl.envs.checks.vector import check_vector_env
from vgs_rl.envs.ebm import EBMEnv, EBMVectorEnv, digits_energy
from vgs_rl.envs.observation import Observation
from vgs_rl.envs.sampling import SamplingEnv
from vgs_rl.envs.targets.funnel import EasyFunnel10, Funnel, Funnel10, HardFunnel10
from vgs_rl.envs.targets.gaussian import (
    GMM9,
    GMM25,
    GMM40,
    FortyModes,
    FourGauss,
    Gaussian,
    GaussianMixture,
    TwoModes,
)
from vgs_rl.envs.targets.heavy_tails import StudentMixture, StudentT
from vgs_rl.envs.targets.lattice import ConditionalPhi4, Phi4
from vgs_rl.envs.targets.many_well import ManyWell, ManyWell32
from vgs_rl.envs.targets.particles import (
    DW4,
    LJ13,
    LJ55,
    DoubleWellCluster,
    LennardJones,
    ParticleEnergy,
)
from vgs_rl.envs.targets.posteriors.brownian import BrownianMotion
from vgs_rl.envs.targets.posteriors.cox import CoxProcess
from vgs_rl.envs.targets.posteriors.eight_schools import EightSchools, EightSchoolsNonCentred
from vgs_rl.envs.targets.posteriors.logistic import (
    BreastCancer,
    GermanCredit,
    Ionosphere,
    LogisticRegression,
    Sonar,
)
from vgs_rl.envs.targets.posteriors.mixture_means import MixtureMeans
from vgs_rl.envs.targets.references import ReferencedEnergy
from vgs_rl.envs.targets.rosenbrock import Rosenbrock
from vgs_rl.envs.vector import SamplingVectorEnv
from vgs_rl.files.shipped import CONFIGS
from vgs_rl.mdp import MDPConfig
from vgs_rl.registry import register
from vgs_rl.starts import StartConfig


def _ve(first: float, last: float, scale: float) -> MDPConfig:
    schedule = ScheduleConfig(kind="geometric", first=first, last=last)
    start = StartConfig(kind="mixture", scale=scale)
    return MDPConfig(chain="ve", num_steps=30, schedule=schedule, start=start)


# An id and its shipped configuration are one chain.
register("vgs_rl/Gaussian-v0", energy=Gaussian, mdp=MDPConfig(start=StartConfig(scale=1.0)))
register("vgs_rl/FourGauss-v0", energy=FourGauss, mdp=CONFIGS / "gmm4.yaml")
register("vgs_rl/GMM9-v0", energy=GMM9, mdp=CONFIGS / "gmm9.yaml")
register("vgs_rl/GMM25-v0", energy=GMM25, mdp=CONFIGS / "gmm25.yaml")
register("vgs_rl/GMM40-v0", energy=GMM40, mdp=CONFIGS / "gmm40.yaml")
register("vgs_rl/EasyFunnel10-v0", energy=EasyFunnel10, mdp=_ve(1.0, 1e-2, 3.0))
register("vgs_rl/Funnel10-v0", energy=Funnel10, mdp=CONFIGS / "funnel10.yaml")
register("vgs_rl/HardFunnel10-v0", energy=HardFunnel10, mdp=_ve(4.0, 2e-3, 8.0))
register("vgs_rl/ManyWell32-v0", energy=ManyWell32, mdp=CONFIGS / "manywell32.yaml")
register("vgs_rl/DW4-v0", energy=DW4, mdp=CONFIGS / "dw4.yaml")
register("vgs_rl/LJ13-v0", energy=LJ13, mdp=CONFIGS / "lj13.yaml")
register("vgs_rl/LJ55-v0", energy=LJ55, mdp=CONFIGS / "lj55.yaml")
# Nobody has tuned a chain for these.
for _name, _energy, _arguments in (
    ("TwoModes2", TwoModes, {"dim": 2}),
    ("TwoModes20", TwoModes, {"dim": 20}),
    ("TwoModes100", TwoModes, {"dim": 100}),
    ("FortyModes50", FortyModes, {"dim": 50}),
    ("StudentT10", StudentT, {"dim": 10}),
    ("StudentMixture50", StudentMixture, {"dim": 50}),
    ("Rosenbrock2", Rosenbrock, {"dim": 2}),
    ("Rosenbrock10", Rosenbrock, {"dim": 10}),
    ("Funnel20", Funnel, {"dim": 20}),
    ("Funnel100", Funnel, {"dim": 100}),
    ("ManyWell64", ManyWell, {"dim": 64}),
    ("ManyWell128", ManyWell, {"dim": 128}),
    ("EightSchools", EightSchools, {}),
    ("EightSchoolsNonCentred", EightSchoolsNonCentred, {}),
    ("BrownianMotion", BrownianMotion, {}),
    ("MixtureMeans", MixtureMeans, {}),
    ("BreastCancer", BreastCancer, {}),
    ("Cox10", CoxProcess, {"side": 10}),
    ("Cox40", CoxProcess, {"side": 40}),
    ("Phi4L8", Phi4, {"side": 8, "kappa": 0.2}),
    ("Phi4L8Broken", Phi4, {"side": 8, "kappa": 0.3}),
    ("Phi4L16", Phi4, {"side": 16, "kappa": 0.2}),
    ("Phi4L16Broken", Phi4, {"side": 16, "kappa": 0.3}),
):
    register(f"vgs_rl/{_name}-v0", energy=_energy, energy_args=_arguments)
register(
    "vgs_rl/Phi4L8Coupling-v0",
    energy=ConditionalPhi4,
    energy_args={"side": 8, "kappa": (0.2, 0.3)},
    mdp=CONFIGS / "conditional" / "phi4.yaml",
)
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
    "BreastCancer",
    "BrownianMotion",
    "CheckError",
    "CheckReport",
    "ConditionalPhi4",
    "CoxProcess",
    "DoubleWellCluster",
    "EBMEnv",
    "EBMVectorEnv",
    "EasyFunnel10",
    "EightSchools",
    "EightSchoolsNonCentred",
    "FortyModes",
    "FourGauss",
    "Funnel",
    "Funnel10",
    "Gaussian",
    "GaussianMixture",
    "GermanCredit",
    "HardFunnel10",
    "Ionosphere",
    "LennardJones",
    "LogisticRegression",
    "ManyWell",
    "ManyWell32",
    "MixtureMeans",
    "Observation",
    "ParticleEnergy",
    "Phi4",
    "ReferencedEnergy",
    "Rosenbrock",
    "SamplingEnv",
    "SamplingVectorEnv",
    "Sonar",
    "StudentMixture",
    "StudentT",
    "TwoModes",
    "check_energy",
    "check_vector_env",
    "digits_energy",
]
