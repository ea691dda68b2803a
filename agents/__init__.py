"""Agents that learn to sample, and the samplers they are judged against."""

from vgs_rl.agents.annealing import AnnealedSampler
from vgs_rl.agents.architecture import (
    ClusterNetwork,
    MLPNetwork,
    NetworkConfig,
    PublishedNetwork,
)
from vgs_rl.agents.base import Agent, AgentConfig
from vgs_rl.agents.bootstrapping import TD0, SoftBellman
from vgs_rl.agents.ebm import EBMConfig, EBMTrainer
from vgs_rl.agents.langevin import HMCSampler, ULASampler
from vgs_rl.agents.mcmc import MALASampler, RefinedSampler
from vgs_rl.agents.negatives import (
    AgentNegatives,
    LangevinNegatives,
    NegativesConfig,
    NoNegatives,
)
from vgs_rl.agents.oracle import ExactSampler, oracle_sampler
from vgs_rl.agents.path_gradient import PISConfig
from vgs_rl.agents.policy import ValueGradientPolicy
from vgs_rl.agents.pretrained import load_pretrained, shipped_samplers
from vgs_rl.agents.rules import GradientMatching, ValueRule
from vgs_rl.agents.run import RunConfig, load_run, train
from vgs_rl.agents.sb3 import SB3Agent, SB3Config
from vgs_rl.agents.smc import SMCSampler
from vgs_rl.agents.tempering import ParallelTempering
from vgs_rl.agents.tianshou_agents import TianshouAgent, TianshouConfig
from vgs_rl.agents.trajectory_balance import LogVarianceConfig, TrajectoryBalanceConfig
from vgs_rl.agents.value_gradient import ValueGradientAgent, ValueGradientConfig

__all__ = [
    "TD0",
    "Agent",
    "AgentConfig",
    "AgentNegatives",
    "AnnealedSampler",
    "ClusterNetwork",
    "EBMConfig",
    "EBMTrainer",
    "ExactSampler",
    "GradientMatching",
    "HMCSampler",
    "LangevinNegatives",
    "LogVarianceConfig",
    "MALASampler",
    "MLPNetwork",
    "NegativesConfig",
    "NetworkConfig",
    "NoNegatives",
    "PISConfig",
    "ParallelTempering",
    "PublishedNetwork",
    "RefinedSampler",
    "RunConfig",
    "SB3Agent",
    "SB3Config",
    "SMCSampler",
    "SoftBellman",
    "TianshouAgent",
    "TianshouConfig",
    "TrajectoryBalanceConfig",
    "ULASampler",
    "ValueGradientAgent",
    "ValueGradientConfig",
    "ValueGradientPolicy",
    "ValueRule",
    "load_pretrained",
    "load_run",
    "oracle_sampler",
    "shipped_samplers",
    "train",
]
