"""Sampling as a Markov decision process, as functions on tensors (docs/theory.md#mdp).

state       (x_t, t)
action      u_t, the control, in units of the step's own noise
transition  x_{t+1} = a_t x_t + sigma_t (u_t + rho_t eps_t),  eps_t ~ N(0, I)
cost        tau (½‖u_t‖² + ½ D (rho_t² - 1) - D log rho_t - D log a_t), plus E(x_T) on the last step
log-ratio   D log a_t + D log rho_t - ½‖u_t + rho_t eps_t‖² + ½‖eps_t‖², plus -E(x_T)/tau

The expected cost is the expected negative log-ratio, times tau. With
`log w = -log pi_0(x_0) + Σ_t log-ratio_t`: E[w] = Z, E[log w] = ELBO ≤ log Z, and
KL(samples ‖ target) ≤ log Z - ELBO.

A stochastic policy may be the kernel itself, with the MDP's own noise off (`KernelPolicy`):
transition  x_{t+1} = a_t x_t + sigma_t v_t,  v_t ~ pi(· | x_t, t)
cost        tau (½‖v_t‖² + ½ D log 2π - D log a_t + log pi(v_t)), plus E(x_T) on the last step
log-ratio   D log a_t + log N(v_t; 0, I) - log pi(v_t), plus -E(x_T)/tau: minus cost over tau
pi = N(u_t, rho_t² I) is the MDP with its noise on.

On the unit sphere a = 1, controls and noise are tangent at x_t, steps follow geodesics and D is the
sphere's own dimension; all formulas stay exact (:class:`~vgs_rl.geometry.Sphere`).

A start whose density is unknown (noised data) has no log w: what stands in its place lacks
-log pi_0(x_0), and ELBO, log Z and importance weights are not to be had from it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from vgs_rl.chain import Chain, ChainKind, NoiseScales, ScheduleConfig
from vgs_rl.conditional.conditions import ConditionLike
from vgs_rl.conditional.energy import (
    ConditionalEnergy,
    JointEnergy,
    check_temperature,
    joint_energy,
)
from vgs_rl.conditional.start import ConditionalStart, FixedConditions, conditional_start_of
from vgs_rl.energy import Energy
from vgs_rl.fields import settle
from vgs_rl.foreign.gradients import given_gradient
from vgs_rl.probe import check_declared, probe_chain
from vgs_rl.starts import Start, StartConfig, start_of
from vgs_rl.threads import EvaluationCount, leave_if_unwanted
from vgs_rl.transitions import KernelPolicy, Policy, Rollout, State, Transition


@dataclass(kw_only=True)
class MDPConfig:
    """How a sample moves and what it costs.

    Args:
        chain: `vp` shrinks towards the origin while noising (a_t = 1/sqrt(1 - s_t²)), `ve` only
            adds noise (a_t = 1).
        num_steps: T, the length of every episode.
        schedule: the step variances s_t².
        start: the density of x_0.
        temperature: tau of the target exp(-E/tau)/Z; a range, such as (0.5, 2.0), is one chain for
            every tau in it.
    """

    chain: ChainKind = "vp"
    num_steps: int = 20
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    start: StartConfig = field(default_factory=StartConfig)
    temperature: float | tuple[float, float] = 1.0

    def __post_init__(self) -> None:
        settle(self, "mdp")
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")
        self.temperature = check_temperature(self.temperature)
        Chain.build(self.schedule, self.chain, self.num_steps)


class SamplingMDP(NoiseScales, nn.Module):
    """The MDP of one target. Rows of a batch never influence each other.

    Attributes:
        energy: the target.
        chain: the schedule's constants, on this device and dtype.
        start: pi_0.
        rho: noise scale per step, shape (T,); 1 is the published kernel. With parameters (T, K),
            at the knots of their range.
        conditions: the parameters of a conditional energy, or None.
        energy_evaluations: states at which E or ∇E has been evaluated through this MDP so far;
            what checks the energy at construction is not counted.

    Args:
        energy: the target; moved to `device`. With parameters, or a range as temperature, it is
            then of rows (x, c), a :class:`vgs_rl.conditional.energy.JointEnergy`.
        config: chain, schedule, start and temperature.
        device: where every state lives.
        dtype: floating type of every state.

    Raises:
        TypeError: if `energy` is not an :class:`Energy`.
        ValueError: if it does not return finite values of shape (B,), or chain and start do not
            fit its geometry.
    """

    def __init__(
        self,
        energy: Energy | ConditionalEnergy,
        config: MDPConfig | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.config = config = config or MDPConfig()
        self.device, self.dtype = torch.device(device), dtype
        if not isinstance(energy, ConditionalEnergy):
            check_declared(energy)
        energy = joint_energy(energy, config.temperature)
        check_declared(energy)
        energy.to(self.device)
        # Not a submodule: the target is given, a checkpoint of the MDP does not hold it.
        object.__setattr__(self, "energy", energy)
        self.energy: Energy
        self.geometry = energy.geometry
        if not self.geometry.linear and config.chain != "ve":
            where = f"on a {type(self.geometry).__name__}, where states cannot be scaled"
            raise ValueError(f"chain must be 've' {where}, got {config.chain!r}")
        self.dim = int(energy.dim)
        self.effective_dim = self.geometry.effective_dim
        self.temperature = 1.0 if isinstance(config.temperature, tuple) else config.temperature
        self.conditions = energy.conditions if isinstance(energy, JointEnergy) else None
        self.num_steps = config.num_steps
        exact = Chain.build(config.schedule, config.chain, config.num_steps)
        self.chain = exact.to(self.device, dtype)
        self.start = self._new_start(1.0)
        knots = () if self.conditions is None else (self.conditions.count,)
        self.register_buffer("rho", torch.ones(self.num_steps, *knots, dtype=dtype))
        self.to(self.device)
        self._count = EvaluationCount()  # one with at(): networks keep the MDP they were built for
        probe_chain(energy, self.chain, self.start, self.generator(0), dtype)

    def start_as_wide_as(self, prior_std: float) -> None:
        """Makes the start fit N(0, prior_std² I), unless its configuration gives a scale."""
        if self.config.start.scale is None and self.config.start.kind != "data":
            self.start = self._new_start(prior_std)

    def _new_start(self, prior_std: float) -> Start:
        """The configured start, unfitted."""
        exact = Chain.build(self.config.schedule, self.chain.kind, self.num_steps)
        make = start_of if self.conditions is None else conditional_start_of
        start = make(self.config.start, self.energy, exact, prior_std=prior_std, dtype=self.dtype)
        return start.to(self.device, self.dtype)

    def at(self, condition: ConditionLike) -> SamplingMDP:
        """The MDP whose episodes all have one value of the parameters; it shares all state.

        Args:
            condition: the value.

        Raises:
            ValueError: if there are no parameters, or it is out of their range.
        """
        other = copy.copy(self)
        value = self.condition_of(condition)
        fixed = FixedConditions(self._conditional_start, value)
        vars(other)["_modules"] = self._modules | {"start": fixed}
        return other

    @property
    def _conditional_start(self) -> ConditionalStart:
        start = self.start
        return start.of if isinstance(start, FixedConditions) else cast(ConditionalStart, start)

    def condition_of(self, condition: ConditionLike) -> Tensor:
        """One value of the parameters as a tensor of shape (C,), float64.

        Raises:
            ValueError: if there are none, or it is out of their range, naming it.
        """
        if self.conditions is None:
            named = ", ".join(condition) if isinstance(condition, Mapping) else "condition"
            of = type(self.energy).__name__
            raise ValueError(f"{named} must be left out: {of} has no parameters")
        return self.conditions.tensor(condition)

    @property
    def energy_evaluations(self) -> int:
        """See the class."""
        return self._count.total

    @energy_evaluations.setter
    def energy_evaluations(self, total: int) -> None:
        self._count.total = total

    def uncounted(self) -> AbstractContextManager[Callable[[], int]]:
        """Nothing inside moves the counter, training's budget; says what was used so far."""
        return self._count.unmoved()

    def evaluate_energy(self, x: Tensor) -> Tensor:
        """E(x), shape (B,), counted."""
        if torch.is_grad_enabled() and x.requires_grad and not self.energy.differentiable(x):
            return given_gradient(x, self.evaluate_gradient)
        self._count.add(x.shape[0])
        return self.energy(x)

    def evaluate_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E(x) and ∇E(x), detached; a state counts once, or 2 D + 1 times with differences."""
        energy, gradient = self.energy.with_gradient(x)
        self._count.add(x.shape[0] * self.energy.gradient_evaluations)
        return energy, gradient

    def initial_log_weight(self, x: Tensor) -> Tensor:
        """-log pi_0 at states x_0 of shape (B, D), or 0 where the start has no density; (B,)."""
        return -self.start.log_prob(x) if self.start.has_density else x.new_zeros(x.shape[0])

    def reset(
        self, n: int, generator: torch.Generator, condition: ConditionLike | None = None
    ) -> State:
        """N states at t = 0, drawn from pi_0; with parameters, at a value that may be given."""
        start = self.start if condition is None else self.at(condition).start
        return State(start.sample(n, generator), 0)

    def step(self, state: State, control: Tensor, generator: torch.Generator | None) -> Transition:
        """One transition.

        Args:
            state: x of shape (B, D) at t < T; an integer t is the fast path.
            control: u, shape (B, D); what of it is not tangent at x is taken out.
            generator: source of the step's noise. None: no noise, `control` is the push v of a
                stochastic policy, and cost and log-ratio still lack its density: add tau log pi(v)
                to the cost, subtract log pi(v) from the log-ratio.
        """
        step, energy = self.step_with_energy(state, control, generator)
        return step if energy is None else step._replace(cost=step.cost + energy)

    def step_with_energy(
        self, state: State, control: Tensor, generator: torch.Generator | None
    ) -> tuple[Transition, Tensor | None]:
        """One transition, as :meth:`step`, but the terminal energies apart from the cost.

        Returns:
            The transition, whose log-ratio has -E(x_T)/tau in it and whose cost lacks E(x_T); and
            E(x_T) of shape (B,), 0 in rows that are not at T; None where an integer t says that no
            row is.
        """
        if generator is None:
            step = self._pushed(state, control)
        else:
            control = self.geometry.tangent(control, state.x)
            step = self.transition(state, control, self.noise_at(state.x, generator), self.rho)
        x, next_t = step.state
        if isinstance(next_t, int):
            if next_t < self.num_steps:
                return step, None
            energy = self.evaluate_energy(x)
            return self._add_energy(step, energy), energy
        last = (next_t == self.num_steps).nonzero().squeeze(-1)
        energy = torch.zeros_like(step.cost)
        if len(last):
            energy = energy.index_put((last,), self.evaluate_energy(x[last]).to(energy.dtype))
        return self._add_energy(step, energy), energy

    def _add_energy(self, step: Transition, energy: Tensor) -> Transition:
        return step._replace(log_ratio=step.log_ratio - energy / self.temperature)

    def transition(
        self, state: State, control: Tensor, eps: Tensor, rho: Tensor | None = None
    ) -> Transition:
        """One transition by given noise, without the terminal energy.

        Args:
            state: x of shape (B, D) at t < T.
            control: u, shape (B, D), tangent at x.
            eps: standard normal noise, shape (B, D), tangent at x.
            rho: all T noise scales; the MDP's by default.
        """
        rho = self.rho if rho is None else rho
        x, t = state
        a, sigma, log_a = self.chain.a[t], self.chain.sigma[t], self.chain.log_a[t]
        rho = self.rho_at(x, t, rho)
        constant = self.effective_dim * (log_a + rho.log())
        spread = 0.5 * self.effective_dim * (rho.square() - 1)
        if isinstance(t, Tensor):
            a, sigma = a.unsqueeze(-1), sigma.unsqueeze(-1)
        push = torch.addcmul(control, rho.unsqueeze(-1) if rho.ndim else rho, eps)
        x_next = self.geometry.move(self.geometry.scaled(x, a), push, sigma)
        cost = 0.5 * control.square().sum(-1) + (spread - constant)
        if self.temperature != 1.0:
            cost = cost * self.temperature
        log_ratio = 0.5 * (eps.square() - push.square()).sum(-1) + constant
        return Transition(State(x_next, t + 1), cost, log_ratio)

    def _pushed(
        self, state: State, v: Tensor, log_density: Tensor | float = 0.0, tangent: bool = False
    ) -> Transition:
        """One transition without noise or terminal energy: v is the kernel's own draw."""
        if self.effective_dim != self.dim and not (tangent and self.geometry.linear):
            raise ValueError(
                "a policy that is the kernel needs a Euclidean geometry; this one has "
                f"{self.effective_dim} of {self.dim} dimensions"
            )
        step = self.transition(state, v, torch.zeros_like(v), torch.ones_like(self.rho))
        lacking = 0.5 * self.effective_dim * math.log(2 * math.pi) + log_density
        cost = step.cost + self.temperature * lacking
        return Transition(step.state, cost, step.log_ratio - lacking)

    def _advance(
        self, state: State, policy: Policy, generator: torch.Generator, rho: Tensor
    ) -> Transition:
        """One transition of `policy` without the terminal energy."""
        x, t = state
        assert isinstance(t, int)
        if isinstance(policy, KernelPolicy):
            return self._pushed(state, *policy.draw(x, t, generator), policy.tangent)
        return self.transition(state, self.control(policy, x, t), self.noise_at(x, generator), rho)

    def control(self, policy: Policy, x: Tensor, t: int) -> Tensor:
        """u_t(x), shape (B, D), of any policy: what points out of the space at x is taken out."""
        return self.geometry.tangent(policy(x, t), x)

    def rollout(
        self,
        policy: Policy,
        n: int,
        generator: torch.Generator,
        *,
        noise_scale: float | Tensor = 1.0,
        keep_states: bool = False,
        with_gradient: bool = False,
    ) -> Rollout:
        """N whole episodes. Gradients flow if the caller and the policy allow them.

        Args:
            policy: maps (x, t) to the control, or is the kernel itself.
            n: number of episodes.
            generator: source of all noise.
            noise_scale: factor on every rho_t, or one for each, shape (T,); the weights stay exact,
                unless one is 0: then they and the cost are infinite. A policy that is the kernel
                has its own noise and ignores it.
            keep_states: also return x_0 … x_T.
            with_gradient: also return ∇E(x_T), from the same evaluation; no gradient then flows
                back from E.
        """
        x = self.start.sample(n, generator)
        log_weight = self.initial_log_weight(x)
        cost = torch.zeros_like(log_weight)
        states = [x]
        if self.conditions is not None and isinstance(noise_scale, Tensor):
            noise_scale = noise_scale.reshape(-1, 1)
        rho = self.rho * noise_scale
        for t in range(self.num_steps):
            leave_if_unwanted()
            step = self._advance(State(x, t), policy, generator, rho)
            x = step.state.x
            log_weight = log_weight + step.log_ratio
            cost = cost + step.cost
            if keep_states:
                states.append(x)
        gradient = None
        if with_gradient:
            energy, gradient = self.evaluate_gradient(x)
        else:
            energy = self.evaluate_energy(x)
        log_weight = log_weight - energy / self.temperature
        path = torch.stack(states) if keep_states else None
        return Rollout(x, log_weight, cost + energy, energy, path, gradient)

    def reverse_log_weight(self, policy: Policy, x: Tensor, generator: torch.Generator) -> Tensor:
        """Log w of episodes drawn backwards from terminal states x of shape (B, D).

        Where x ~ p exactly, the mean is the EUBO, an upper bound of log Z (docs/theory.md#weights).

        Raises:
            ValueError: if the start has no density.
        """
        self.start.require_density("reverse_log_weight")
        energy = self.evaluate_energy(x)
        log_weight = -energy / self.temperature
        for t in reversed(range(self.num_steps)):
            x, push = self._step_back(x, t, generator)
            if isinstance(policy, KernelPolicy):
                density = policy.log_density(push, x, t)
                step = self._pushed(State(x, t), push, density, policy.tangent)
                log_weight = log_weight + step.log_ratio
                continue
            rho = self.rho_at(x, t)
            scale = rho.unsqueeze(-1) if rho.ndim else rho
            eps = (push - self.control(policy, x, t)) / scale
            constant = self.effective_dim * (self.chain.log_a[t] + rho.log())
            log_weight = log_weight + 0.5 * (eps.square() - push.square()).sum(-1) + constant
        return log_weight - self.start.log_prob(x)
