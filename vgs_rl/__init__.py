"""Sampling from unnormalised densities as reinforcement learning."""

import importlib
import os
from typing import TYPE_CHECKING, Any

# OpenMP threads that spin while they wait make training several times slower as soon as anything
# else runs on the machine. It has an effect only before torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from vgs_rl.chain import Chain, ScheduleConfig
from vgs_rl.conditional.energy import ConditionalEnergy, TemperedEnergy
from vgs_rl.energy import Energy, Particles
from vgs_rl.foreign.function_energy import FunctionEnergy
from vgs_rl.geometry import CentreOfMassFree, Euclidean, Geometry, Sphere
from vgs_rl.mdp import MDPConfig, SamplingMDP
from vgs_rl.registry import find, register, registered
from vgs_rl.samplers.base import ChainSampler, Sampler, Samples
from vgs_rl.samplers.dpm_solver import DPMSolver
from vgs_rl.samplers.program import load_sampler
from vgs_rl.starts import StartConfig

# Last, since it needs all of the above: registers the targets, so that their names and Gymnasium
# ids are known as soon as this package is imported, also as `gymnasium.make("vgs_rl:vgs_rl/…")`.
from vgs_rl import envs as envs  # isort: skip

if TYPE_CHECKING:
    from vgs_rl.agents.distilled.distill import distill
    from vgs_rl.agents.path.pis import PISAgent as PIS
    from vgs_rl.agents.path.trajectory_balance import LogVarianceAgent as LogVariance
    from vgs_rl.agents.path.trajectory_balance import TrajectoryBalanceAgent as TrajectoryBalance
    from vgs_rl.agents.value_gradient.agent import ValueGradientAgent as VGS
    from vgs_rl.evaluation.budget.estimate import error_budget
    from vgs_rl.evaluation.budget.result import ErrorBudget
    from vgs_rl.evaluation.certificate import Certificate, certificate
    from vgs_rl.evaluation.evaluate import evaluate
    from vgs_rl.evaluation.report import Report
    from vgs_rl.experiments.automatic import sample
    from vgs_rl.experiments.pretrained import shipped_samplers
    from vgs_rl.experiments.run import load_run, train
    from vgs_rl.samplers.mcmc.classical import AIS, HMC, MALA, SMC, ULA, ParallelTempering

# What is imported when it is first asked for: it needs libraries that take a second to import.
_LAZY = {
    "VGS": "vgs_rl.agents.value_gradient.agent:ValueGradientAgent",
    "PIS": "vgs_rl.agents.path.pis:PISAgent",
    "TrajectoryBalance": "vgs_rl.agents.path.trajectory_balance:TrajectoryBalanceAgent",
    "LogVariance": "vgs_rl.agents.path.trajectory_balance:LogVarianceAgent",
    "AIS": "vgs_rl.samplers.mcmc.classical:AIS",
    "HMC": "vgs_rl.samplers.mcmc.classical:HMC",
    "MALA": "vgs_rl.samplers.mcmc.classical:MALA",
    "SMC": "vgs_rl.samplers.mcmc.classical:SMC",
    "ULA": "vgs_rl.samplers.mcmc.classical:ULA",
    "ParallelTempering": "vgs_rl.samplers.mcmc.classical:ParallelTempering",
    "Certificate": "vgs_rl.evaluation.certificate:Certificate",
    "ErrorBudget": "vgs_rl.evaluation.budget.result:ErrorBudget",
    "Report": "vgs_rl.evaluation.report:Report",
    "certificate": "vgs_rl.evaluation.certificate:certificate",
    "error_budget": "vgs_rl.evaluation.budget.estimate:error_budget",
    "distill": "vgs_rl.agents.distilled.distill:distill",
    "evaluate": "vgs_rl.evaluation.evaluate:evaluate",
    "load_run": "vgs_rl.experiments.run:load_run",
    "sample": "vgs_rl.experiments.automatic:sample",
    "shipped_samplers": "vgs_rl.experiments.pretrained:shipped_samplers",
    "train": "vgs_rl.experiments.run:train",
}

__all__ = [
    "AIS",
    "HMC",
    "MALA",
    "PIS",
    "SMC",
    "ULA",
    "VGS",
    "CentreOfMassFree",
    "Certificate",
    "Chain",
    "ChainSampler",
    "ConditionalEnergy",
    "DPMSolver",
    "Energy",
    "ErrorBudget",
    "Euclidean",
    "FunctionEnergy",
    "Geometry",
    "LogVariance",
    "MDPConfig",
    "ParallelTempering",
    "Particles",
    "Report",
    "Sampler",
    "Samples",
    "SamplingMDP",
    "ScheduleConfig",
    "Sphere",
    "StartConfig",
    "TemperedEnergy",
    "TrajectoryBalance",
    "certificate",
    "distill",
    "error_budget",
    "evaluate",
    "find",
    "load_run",
    "load_sampler",
    "register",
    "registered",
    "sample",
    "shipped_samplers",
    "train",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _LAZY[name].partition(":")
    value = globals()[name] = getattr(importlib.import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
