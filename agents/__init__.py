"""Agents that learn to sample, and the samplers they are evaluated against."""

from vgs_rl.agents.automatic.settings import ExplorationConfig
from vgs_rl.agents.base import Agent, AgentConfig
from vgs_rl.agents.distilled.agent import DistilledAgent, DistilledConfig
from vgs_rl.agents.distilled.distill import distill
from vgs_rl.agents.distilled.flow import FlowSampler
from vgs_rl.agents.ebm.negatives import (
    AgentNegatives,
    LangevinNegatives,
    NegativesConfig,
    NoNegatives,
)
from vgs_rl.agents.ebm.trainer import EBMConfig, EBMTrainer
from vgs_rl.agents.path.pis import PISConfig
from vgs_rl.agents.path.trajectory_balance import LogVarianceConfig, TrajectoryBalanceConfig
from vgs_rl.agents.rl.sb3 import SB3Agent, SB3Config
from vgs_rl.agents.rl.tianshou_agent import TianshouAgent, TianshouConfig
from vgs_rl.agents.value_gradient.agent import ValueGradientAgent, ValueGradientConfig
from vgs_rl.agents.value_gradient.objectives import GradientMatching, ValueObjective
from vgs_rl.agents.value_gradient.td import TD0, SoftBellman
from vgs_rl.networks.config import (
    ClusterNetwork,
    MixtureNetwork,
    MLPNetwork,
    NetworkConfig,
    PublishedNetwork,
)
from vgs_rl.networks.policies import ValueGradientPolicy
from vgs_rl.samplers.mcmc.annealed import AnnealedSMC
from vgs_rl.samplers.mcmc.langevin import HMCSampler, ULASampler
from vgs_rl.samplers.mcmc.mala import MALASampler, RefinedSampler
from vgs_rl.samplers.mcmc.tempering import ParallelTempering
from vgs_rl.samplers.oracle import ExactSampler, oracle_sampler
from vgs_rl.samplers.twisted import TwistedSMC

__all__ = [
    "TD0",
    "Agent",
    "AgentConfig",
    "AgentNegatives",
    "AnnealedSMC",
    "ClusterNetwork",
    "DistilledAgent",
    "DistilledConfig",
    "EBMConfig",
    "EBMTrainer",
    "ExactSampler",
    "ExplorationConfig",
    "FlowSampler",
    "GradientMatching",
    "HMCSampler",
    "LangevinNegatives",
    "LogVarianceConfig",
    "MALASampler",
    "MLPNetwork",
    "MixtureNetwork",
    "NegativesConfig",
    "NetworkConfig",
    "NoNegatives",
    "PISConfig",
    "ParallelTempering",
    "PublishedNetwork",
    "RefinedSampler",
    "SB3Agent",
    "SB3Config",
    "SoftBellman",
    "TianshouAgent",
    "TianshouConfig",
    "TrajectoryBalanceConfig",
    "TwistedSMC",
    "ULASampler",
    "ValueGradientAgent",
    "ValueGradientConfig",
    "ValueGradientPolicy",
    "ValueObjective",
    "distill",
    "oracle_sampler",
]
