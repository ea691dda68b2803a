"""Trajectory balance and the log-variance loss: squares of log w on episodes taken as they are.

At the optimum log w = log Z on every path. So any paths may be drawn, with more noise than the
policy's own too, and with log w a function of the control alone, its square error is minimised:

trajectory balance   mean (log w - log Ẑ)², log Ẑ learned (arXiv:2201.13259, 2210.12580)
log-variance         the batch's variance of log w: log Ẑ is the batch mean (arXiv:2307.01198)

On the policy's own paths half the gradient of either is, in expectation, that of -ELBO; nothing
is differentiated through the chain or through E.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vgs_rl.agents.path.pis import PathAgent, PathConfig
from vgs_rl.checks import require_at_least, require_positive
from vgs_rl.mdp import SamplingMDP
from vgs_rl.networks.control import ControlPolicy
from vgs_rl.training import parallel
from vgs_rl.transitions import Rollout
from vgs_rl.weights import live_elbo


@dataclass(kw_only=True)
class OffPolicyPathConfig(PathConfig):
    """What both losses have in common.

    Args:
        exploration: factor on the noise of training episodes at first; it falls to 1 over the
            first half of the budget. 1 trains on the policy's own paths.
    """

    exploration: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("agent", 1, exploration=self.exploration)


@dataclass(kw_only=True)
class TrajectoryBalanceConfig(OffPolicyPathConfig):
    """Trajectory balance.

    Args:
        log_z_lr: learning rate of log Ẑ, which starts at the first batch's mean log w.
    """

    name: ClassVar[str] = "tb"
    changeable: ClassVar[tuple[str, ...]] = (*OffPolicyPathConfig.changeable, "log_z_lr")

    log_z_lr: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("agent", log_z_lr=self.log_z_lr)

    def build(self, mdp: SamplingMDP, *, seed: int = 0) -> TrajectoryBalanceAgent:
        """The untrained agent."""
        return TrajectoryBalanceAgent(mdp, self, seed=seed)


@dataclass(kw_only=True)
class LogVarianceConfig(OffPolicyPathConfig):
    """The log-variance loss; its arguments are those of every path agent."""

    name: ClassVar[str] = "logvar"

    def build(self, mdp: SamplingMDP, *, seed: int = 0) -> LogVarianceAgent:
        """The untrained agent."""
        return LogVarianceAgent(mdp, self, seed=seed)


class OffPolicyPathAgent(PathAgent):
    """Draws episodes without gradients, then differentiates their log w with respect to u."""

    config: OffPolicyPathConfig

    def _setup(self) -> None:
        name = self.config.name
        self.mdp.geometry.require_linear(f"agent {name}")
        self.mdp.start.require_density(f"agent {name}")
        super()._setup()

    def _loss(self) -> tuple[Tensor, Rollout]:
        recorder = _Recorder(self.policy)
        with torch.no_grad():
            rollout = self.mdp.rollout(
                recorder,
                self.batch_size,
                self.generator,
                noise_scale=self._noise_scale(),
                keep_states=True,
            )
        assert rollout.states is not None
        slopes = torch.stack(recorder.slopes) if self.policy.energy_term else None
        log_w = path_log_weight(self.mdp, self.policy, rollout.states, rollout.energy, slopes)
        return self._loss_of(log_w), rollout

    @abstractmethod
    def _loss_of(self, log_w: Tensor) -> Tensor:
        """The loss of paths with log-weights log w, shape (B,)."""

    def _noise_scale(self) -> float:
        return 1.0 + (self.config.exploration - 1.0) * max(0.0, 1.0 - 2.0 * self.progress)


class TrajectoryBalanceAgent(OffPolicyPathAgent):
    """mean (log w - log Ẑ)², with log Ẑ learned."""

    config_type = TrajectoryBalanceConfig
    saved: ClassVar[tuple[str, ...]] = ("network", "normaliser", "optimizer")
    config: TrajectoryBalanceConfig

    def _groups(self) -> list[dict[str, Any]]:
        self.normaliser = LogNormaliser(self.mdp)
        groups = super()._groups()
        return [*groups, {"params": [self.normaliser.log_z], "lr": self.config.log_z_lr}]

    def _loss_of(self, log_w: Tensor) -> Tensor:
        if self.counters.updates == 0:
            self.normaliser.start_at(live_elbo(parallel.gather(log_w.detach())))
        return (log_w - self.normaliser.log_z).square().mean()


class LogNormaliser(nn.Module):
    """The learned log Ẑ."""

    def __init__(self, mdp: SamplingMDP) -> None:
        super().__init__()
        self.log_z = nn.Parameter(torch.zeros((), device=mdp.device, dtype=mdp.dtype))

    @torch.no_grad()
    def start_at(self, log_z: Tensor) -> None:
        """Sets log Ẑ to a number that is finite; any other leaves it."""
        self.log_z.copy_(torch.where(torch.isfinite(log_z), log_z, self.log_z))


class LogVarianceAgent(OffPolicyPathAgent):
    """The variance of log w in the batch."""

    config_type = LogVarianceConfig

    def _loss_of(self, log_w: Tensor) -> Tensor:
        return log_w.var()


class _Recorder:
    """A policy that keeps the slopes it was computed with."""

    def __init__(self, policy: ControlPolicy) -> None:
        self.policy, self.slopes = policy, list[Tensor]()

    def __call__(self, x: Tensor, t: int) -> Tensor:
        slope = self.policy.slope(x)
        if slope is not None:
            self.slopes.append(slope)
        return self.policy.control(x, t, slope)


def path_log_weight(
    mdp: SamplingMDP,
    policy: ControlPolicy,
    states: Tensor,
    energy: Tensor,
    slopes: Tensor | None,
) -> Tensor:
    """Log w of given paths as a function of the control, shape (B,); all steps in one batch.

    Args:
        mdp: the chain.
        policy: the control, whose parameters the result is differentiable in.
        states: x_0 … x_T, shape (T + 1, B, D), drawn anyhow.
        energy: E(x_T), shape (B,).
        slopes: what ``policy.slope`` gave at x_0 … x_{T-1}, shape (T, B, D), or None.
    """
    steps, n = len(states) - 1, states.shape[1]
    t = torch.arange(steps, device=states.device).repeat_interleave(n)
    now, chain = states[:-1], mdp.chain
    given = None if slopes is None else slopes.flatten(0, 1)
    control = mdp.geometry.tangent(policy.control(now.flatten(0, 1), t, given), now.flatten(0, 1))
    control = control.unflatten(0, (steps, n))
    a, sigma, rho = (c[:, None, None] for c in (chain.a, chain.sigma, mdp.rho))
    push = (states[1:] - a * now) / sigma  # u + rho eps
    eps = (push - control) / rho
    log_ratio = 0.5 * (eps.square() - push.square()).sum(-1)  # (T, B)
    constant = mdp.effective_dim * (chain.log_a + mdp.rho.log()).sum()
    start = mdp.start.log_prob(states[0]).detach()
    log_w: Tensor = log_ratio.sum(0) + constant - energy / mdp.temperature - start
    return log_w
