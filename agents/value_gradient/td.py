"""Value learning by bootstrapped targets on the agent's own trajectories: TD(0), soft Bellman."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vgs_rl.agents.base import rollout_scalars
from vgs_rl.agents.value_gradient.objectives import ValueLearner, ValueObjective
from vgs_rl.checks import require_at_least, require_positive
from vgs_rl.files.restore import check_like, check_rows, load_optimizer
from vgs_rl.starts import GaussianStart, widened
from vgs_rl.training import parallel

if TYPE_CHECKING:
    from vgs_rl.agents.value_gradient.agent import ValueGradientAgent


@dataclass(kw_only=True)
class TrajectoryObjective(ValueObjective):
    """Regresses V_t(x_t) on a bootstrapped target, on states of the agent's own trajectories.

    One iteration: a batch of trajectories with exploration noise, then `passes` passes over its
    T x batch states in shuffled minibatches; targets come from the moving average, with next
    new states; at the iteration's end the average takes in the network once, and then s_0
    takes a gradient step on E[V_0(s_0 z)] - tau D log s_0 if the start is a learned Gaussian. The
    defaults are the published ones of the mixtures.

    Args:
        batch_size: trajectories per iteration and states per update.
        passes: passes over each iteration's states (n_update in the published code).
        noise_scale: exploration: factor on s_0 and on the step noise of the trajectories.
        loss_kind: `l2`, or `huber` (smooth L1 with threshold 1) of (V - target)/D.
        scale_by_dim: whether the error is divided by D.
        start_lr: learning rate of s_0 (Adam).
        energy_clip: upper bound of E(x_T) in targets; None leaves it.
    """

    divided: ClassVar[tuple[str, ...]] = ("batch_size",)

    batch_size: int = 128
    passes: int = 1
    noise_scale: float = 1.2
    loss_kind: Literal["l2", "huber"] = "l2"
    scale_by_dim: bool = True
    start_lr: float = 1e-3
    energy_clip: float | None = None

    def __post_init__(self) -> None:
        objective = type(self).__name__
        require_at_least(objective, 1, batch_size=self.batch_size, passes=self.passes)
        require_positive(objective, noise_scale=self.noise_scale)
        require_at_least(objective, 0, start_lr=self.start_lr)

    def build(self, agent: ValueGradientAgent) -> TrajectoryLearner:
        """See :meth:`ValueObjective.build`."""
        return TrajectoryLearner(self, agent)

    @abstractmethod
    def target(self, agent: ValueGradientAgent, x: Tensor, t: Tensor) -> Tensor:
        """The regression target for V_t(x), shape (B,); no gradient flows through it."""

    def _step_terms(
        self, agent: ValueGradientAgent, x: Tensor, t: Tensor, eps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """V_{t+1} at the next states, the control u (B, D) and the constant D log a_t rho_t.

        `eps` has shape (K, B, D); the values (K, B).
        """
        mdp, chain, tau = agent.mdp, agent.mdp.chain, agent.mdp.temperature
        a, sigma = chain.a[t].unsqueeze(-1), chain.sigma[t].unsqueeze(-1)
        last = t + 1 == mdp.num_steps
        if agent.config.drift == "posterior":
            slope = agent.average.gradient(x, t)
            control = -chain.s[t].unsqueeze(-1) / tau * mdp.geometry.tangent(slope, x)
        else:
            slope = agent.average.gradient(a * x, torch.where(last, t, t + 1))
            rows = last.nonzero().squeeze(-1)
            if len(rows):
                slope = slope.index_copy(0, rows, agent.policy.energy_slope((a * x)[rows]))
            control = -sigma / tau * mdp.geometry.tangent(slope, x)
        rho = mdp.rho[t].unsqueeze(-1)
        if mdp.geometry.linear:
            x_next = a * x + sigma * (control + rho * eps)  # (K, B, D)
        else:
            x_next = mdp.geometry.move(x, control + rho * eps, sigma)
        value = self._value(agent, x_next, t + 1)
        constant = mdp.effective_dim * (chain.log_a[t] + mdp.rho[t].log())
        return value, control, constant

    def _value(self, agent: ValueGradientAgent, x: Tensor, t: Tensor) -> Tensor:
        """The average's V_t(x), shape (K, B) for x of shape (K, B, D); V_T = E."""
        mdp = agent.mdp
        draws = len(x)
        last = (t == mdp.num_steps).nonzero().squeeze(-1)
        inner = t.clamp_max(mdp.num_steps - 1).expand(draws, -1)
        value = agent.average.value(x.flatten(0, 1), inner.flatten()).view(draws, -1)
        if len(last):
            energy = mdp.evaluate_energy(x[:, last].flatten(0, 1)).view(draws, -1)
            if self.energy_clip is not None:
                energy = energy.clamp_max(self.energy_clip)
            value = value.index_copy(1, last, energy.to(value.dtype))
        return value


@dataclass(kw_only=True)
class TD0(TrajectoryObjective):
    """The published objective, with u the control that the average implies and one next state each.

    V_t(x) ← V_{t+1}(x') + tau (½‖u‖² + ½ D (rho_t² - 1) - D log rho_t - D log a_t).

    Args:
        control_variate: add tau rho_t u·eps (and the noise's own fluctuation): zero in the mean,
            it cancels the target's variance at the optimum.
    """

    control_variate: bool = False

    def target(self, agent: ValueGradientAgent, x: Tensor, t: Tensor) -> Tensor:
        """See the class."""
        mdp = agent.mdp
        eps = mdp.noise_at(x, agent.generator).unsqueeze(0)
        value, control, constant = self._step_terms(agent, x, t, eps)
        rho = mdp.rho[t]
        if self.control_variate:
            push = control + rho.unsqueeze(-1) * eps[0]
            cost = 0.5 * (push.square() - eps[0].square()).sum(-1)
        else:
            spread = 0.5 * mdp.effective_dim * (rho.square() - 1)
            cost = 0.5 * control.square().sum(-1) + spread
        return value[0] + mdp.temperature * (cost - constant)


@dataclass(kw_only=True)
class SoftBellman(TrajectoryObjective):
    """The soft Bellman backup with K importance-corrected draws of the agent's own kernel.

    V_t(x) ≈ -tau log (1/K) Σ_k exp( -V_{t+1}(x'_k)/tau + D log a_t + D log rho_t
    - ½‖u + rho_t eps_k‖² + ½‖eps_k‖² ): exact in expectation of its exponential, and all but
    constant at the optimum, so that few draws are enough.

    Args:
        draws: K.
    """

    draws: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("SoftBellman", 1, draws=self.draws)

    def target(self, agent: ValueGradientAgent, x: Tensor, t: Tensor) -> Tensor:
        """See the class."""
        mdp, tau = agent.mdp, agent.mdp.temperature
        eps = mdp.noise_at(x.repeat(self.draws, 1), agent.generator).view(self.draws, *x.shape)
        value, control, constant = self._step_terms(agent, x, t, eps)
        push = control + mdp.rho[t].unsqueeze(-1) * eps
        log_ratio = 0.5 * (eps.square() - push.square()).sum(-1) + constant
        return -tau * (torch.logsumexp(log_ratio - value / tau, 0) - math.log(self.draws))


class TrajectoryLearner(ValueLearner):
    """The iteration in progress of a :class:`TrajectoryObjective`, and the start's optimiser.

    Args:
        config: the objective.
        agent: whose value it teaches.
    """

    def __init__(self, config: TrajectoryObjective, agent: ValueGradientAgent) -> None:
        self.config = config
        self._states = torch.empty(0)  # (T · batch, D), row t · batch + i
        self._order = torch.empty(0, dtype=torch.long)
        self._cursor = 0
        self._scalars: dict[str, Tensor] = {}
        self._start_optimizer: torch.optim.Adam | None = None
        start = agent.mdp.start
        if agent.mdp.config.start.learned and isinstance(start, GaussianStart):
            self._scale = start.scale.detach().clone()  # Adam moves s_0 itself, not its logarithm
            self._start_optimizer = torch.optim.Adam([self._scale], lr=self.config.start_lr)

    def loss(self, agent: ValueGradientAgent) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`TrajectoryObjective`."""
        if self._cursor >= len(self._order):
            self._collect(agent)
        rows = self._order[self._cursor : self._cursor + self.config.batch_size]
        self._cursor += self.config.batch_size
        x = self._states[rows]
        t = torch.div(rows, self.config.batch_size, rounding_mode="floor")
        with torch.no_grad():
            target = self.config.target(agent, x, t)
        error = agent.network.value(x, t) - target
        if self.config.scale_by_dim:
            error = error / agent.mdp.effective_dim
        zero = torch.zeros_like(error)
        loss = (
            error.square().mean()
            if self.config.loss_kind == "l2"
            else F.smooth_l1_loss(error, zero)
        )
        return loss, {"train/loss": loss.detach(), **self._scalars}

    def averages_now(self) -> bool:
        """At the end of an iteration."""
        return self._cursor >= len(self._order)

    def _collect(self, agent: ValueGradientAgent) -> None:
        mdp = agent.mdp
        with torch.no_grad(), widened(mdp.start, self.config.noise_scale):
            rollout = agent.rollout(
                self.config.batch_size, noise_scale=self.config.noise_scale, keep_states=True
            )
        assert rollout.states is not None
        self._states = rollout.states[:-1].flatten(0, 1)
        n = len(self._states)
        orders = [
            torch.randperm(n, generator=agent.generator, device=mdp.device)
            for _ in range(self.config.passes)
        ]
        self._order, self._cursor = torch.cat(orders), 0
        self._scalars = rollout_scalars(agent.mdp, rollout)

    def after_average(self, agent: ValueGradientAgent) -> None:
        """A gradient step of s_0, if it is learned."""
        start = agent.mdp.start
        if self._start_optimizer is None or not isinstance(start, GaussianStart):
            return
        mdp, scale = agent.mdp, self._scale
        with torch.no_grad():
            z = mdp.noise(self.config.batch_size, agent.generator)
            scale.copy_(start.scale)
            # d/d s_0 of E[V_0(s_0 z)] - tau D log s_0
            slope = parallel.mean((agent.average.gradient(scale * z, 0) * z).sum(-1).mean())
            slope = slope - mdp.temperature * mdp.effective_dim / scale
            scale.grad = slope.nan_to_num(0.0).to(scale)
            self._start_optimizer.step()
            scale.grad = None
            scale.clamp_min_(1e-6)
            start.log_scale.copy_(scale.log())

    def state_dict(self) -> dict[str, Any]:
        """The iteration in progress."""
        return {
            "states": self._states,
            "order": self._order,
            "cursor": self._cursor,
            "scalars": self._scalars,
            "start_optimizer": (
                None if self._start_optimizer is None else self._start_optimizer.state_dict()
            ),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            ValueError: if it does not fit the objective.
        """
        open_ended = {"states": self._states[:0], "order": self._order[:0], "scalars": {}}
        check_like(state, {**self.state_dict(), **open_ended, "start_optimizer": None}, "objective")
        check_rows(state, {"states": 2}, "objective")
        rows, order = len(state["states"]), state["order"]
        if order.ndim != 1 or (len(order) and not 0 <= order.min() <= order.max() < rows):
            raise ValueError(f"objective.order must be a list of rows below {rows}")
        self._states, self._order = state["states"], state["order"]
        self._cursor, self._scalars = state["cursor"], state["scalars"]
        if self._start_optimizer is not None:
            load_optimizer(
                self._start_optimizer, state["start_optimizer"], "objective.start_optimizer"
            )
