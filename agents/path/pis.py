"""The path integral sampler: minus the return, minimised by backpropagation through the chain.

Zhang and Chen, *Path Integral Sampler*, arXiv:2111.15141. The expected cost of an episode is the
KL divergence of paths up to a constant, and a step is differentiable: x_{t+1} = a_t x_t + sigma_t
(u_t(x_t) + rho_t eps_t). So the gradient of the cost flows from E(x_T) back through all T steps.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vgs_rl.agents.base import AgentConfig, rollout_scalars
from vgs_rl.agents.target import TargetAgent
from vgs_rl.checks import require_at_least, require_positive
from vgs_rl.fields import settle
from vgs_rl.mdp import SamplingMDP
from vgs_rl.networks.control import ControlNetwork, ControlPolicy
from vgs_rl.plots.particles import plot_episodes
from vgs_rl.plots.plots import Drawing
from vgs_rl.samplers.base import ChainSampler
from vgs_rl.training import parallel
from vgs_rl.training.optim import guarded_step, scheduled_rate, set_rates
from vgs_rl.transitions import Rollout


@dataclass(kw_only=True)
class PathConfig(AgentConfig):
    """What agents that learn the control from whole episodes have in common.

    Args:
        batch_size: episodes per update, of all ranks together.
        width: units per hidden layer of the control.
        depth: hidden layers.
        energy_term: whether the control sees ∇E(x_t), as published: T more energy evaluations
            per episode.
        max_gradient: bound of the norm of that ∇E/tau.
        prior_std: rough standard deviation of the target per coordinate; scales the inputs, and
            `mdp.start.scale` follows it, unless it is given itself.
        lr: Adam's learning rate at its peak.
        final_lr: the cosine schedule's end, as a fraction of `lr`.
        warmup: updates of linear warm-up.
        clip_norm: bound of the gradient's norm; None leaves it.
    """

    changeable: ClassVar[tuple[str, ...]] = ("lr", "final_lr", "warmup")

    batch_size: int = 256
    width: int = 64
    depth: int = 2
    energy_term: bool = True
    max_gradient: float = 100.0
    prior_std: float = 1.0
    lr: float = 3e-3
    final_lr: float = 0.02
    warmup: int = 20
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        settle(self, "agent")
        require_at_least("agent", 2, batch_size=self.batch_size, width=self.width)
        require_at_least("agent", 1, depth=self.depth)
        require_at_least("agent", 0, warmup=self.warmup)
        require_positive(
            "agent", max_gradient=self.max_gradient, prior_std=self.prior_std, lr=self.lr
        )
        if self.clip_norm is not None:
            require_positive("agent", clip_norm=self.clip_norm)
        if not 0 <= self.final_lr <= 1:
            raise ValueError(f"agent.final_lr must be in [0, 1], got {self.final_lr}")


class PathAgent(TargetAgent):
    """Learns a control from whole episodes; a subclass writes :meth:`_loss`.

    Attributes:
        batch_size: episodes per update of this rank.
        network: the control.
        policy: it, as a policy of the MDP.
    """

    saved: ClassVar[tuple[str, ...]] = ("network", "optimizer")
    data_parallel: ClassVar[bool] = True

    config: PathConfig

    def _setup(self) -> None:
        config = self.config
        self.batch_size = parallel.portion("agent.batch_size", config.batch_size)
        self.mdp.start_as_wide_as(config.prior_std)
        # On the CPU whatever the device: the same seed gives the same initial network.
        initial = torch.Generator().manual_seed(self.seed)
        self.network = ControlNetwork(
            self.mdp,
            scale=config.prior_std,
            width=config.width,
            depth=config.depth,
            generator=initial,
        )
        self.policy = ControlPolicy(
            self.mdp,
            self.network,
            energy_term=config.energy_term,
            max_gradient=config.max_gradient,
        )
        self.optimizer = torch.optim.Adam(self._groups(), lr=config.lr, fused=True)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]

    def _groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimiser."""
        return [{"params": list(self.network.parameters())}]

    @abstractmethod
    def _loss(self) -> tuple[Tensor, Rollout]:
        """The loss of a fresh batch of episodes, and the episodes."""

    def _train_step(self) -> dict[str, Tensor]:
        loss, rollout = self._loss()
        self.counters.env_steps += len(rollout.x) * self.mdp.num_steps
        factor = scheduled_rate(
            1.0,
            progress=self.progress,
            updates=self.counters.updates,
            warmup=self.config.warmup,
            final=self.config.final_lr,
        )
        set_rates(self.optimizer, [rate * factor for rate in self.rates])
        norm = guarded_step(self.optimizer, loss, self.tally, clip_norm=self.config.clip_norm)
        return {
            "train/loss": loss.detach(),
            "train/gradient_norm": norm,
            "train/learning_rate": torch.tensor(self.rates[0] * factor),
            **rollout_scalars(self.mdp, rollout),
        }

    def sampler(self) -> ChainSampler:
        """See :meth:`Agent.sampler`."""
        return ChainSampler(self.mdp, self.policy)

    def figures(self, generator: torch.Generator) -> dict[str, Drawing]:
        """The chain over the density, or of particles as clusters."""
        return {"chain": lambda: plot_episodes(self.mdp, self.policy, 2000, generator)}


@dataclass(kw_only=True)
class PISConfig(PathConfig):
    """The path integral sampler, for densities without jumps; its arguments are every path agent's.

    What E does at a jump is in no gradient: there, `tb` and `logvar` learn, which use E alone.
    """

    name: ClassVar[str] = "pis"

    def build(self, mdp: SamplingMDP, *, seed: int = 0) -> PISAgent:
        """The untrained agent."""
        return PISAgent(mdp, self, seed=seed)


class PISAgent(PathAgent):
    """Minimises E[cost]/tau, which is log Z - ELBO up to a constant, through the chain.

    E[cost] leaves out the zero-mean terms u·eps of -log w, as published. With the energy term the
    gradient is approximate, since ∇E in the control is a constant to it (as in DDS).
    """

    config_type = PISConfig

    def _loss(self) -> tuple[Tensor, Rollout]:
        rollout = self.mdp.rollout(self.policy, self.batch_size, self.generator)
        return rollout.cost.mean() / self.mdp.temperature, rollout
