"""The value-gradient policy: two ways to read the control off a value (docs/theory.md#value)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vgs_rl.mdp import SamplingMDP
from vgs_rl.networks.base import ValueFunction

Drift = Literal["bellman", "posterior"]


class ValueGradientPolicy:
    """u_t(x) from the gradient of a value; the MDP takes what is tangent of it.

    `bellman` (as published): u_t = -(sigma_t/tau) ∇V_{t+1}(a_t x), first order in the step; on the
    last step V_T = E, whose own gradient is used (one energy evaluation).
    `posterior`: u_t = -(s_t/tau) ∇V_t(x), by Tweedie's formula the exact mean of the reversed
    noising kernel for any step size.

    Args:
        mdp: supplies the chain and, for `bellman`, ∇E.
        value: V, exact or learned.
        drift: which of the two.
        energy_clip: bound of E in the last step of `bellman`: the gradient of min(E, bound), which
            is 0 beyond it; None leaves E as it is.
    """

    thread_safe = True  # it evaluates E through the MDP alone

    def __init__(
        self,
        mdp: SamplingMDP,
        value: ValueFunction,
        drift: Drift,
        *,
        energy_clip: float | None = None,
    ) -> None:
        if drift not in ("bellman", "posterior"):
            raise ValueError(f"drift must be 'bellman' or 'posterior', got {drift!r}")
        self.mdp, self.value, self.drift = mdp, value, drift
        self.energy_clip = energy_clip

    def __call__(self, x: Tensor, t: int | Tensor) -> Tensor:
        """u_t(x), shape (B, D); t one step or one per row, with `bellman` below T - 1 then."""
        chain, tau = self.mdp.chain, self.mdp.temperature
        a, s, sigma = chain.a[t], chain.s[t], chain.sigma[t]
        if isinstance(t, Tensor):
            a, s, sigma = a.unsqueeze(-1), s.unsqueeze(-1), sigma.unsqueeze(-1)
        if self.drift == "posterior":
            return self.value.gradient(x, t) * (-s / tau)
        if isinstance(t, Tensor) or t + 1 < self.mdp.num_steps:
            slope = self.value.gradient(a * x, t + 1)
        else:
            slope = self.energy_slope(a * x)
        return slope * (-sigma / tau)

    def energy_slope(self, x: Tensor) -> Tensor:
        """∇min(E, bound) at x, both (B, D); counted as one energy evaluation a state."""
        energy, slope = self.mdp.evaluate_gradient(x)
        if self.energy_clip is None:
            return slope
        return torch.where((energy <= self.energy_clip).unsqueeze(-1), slope, 0.0)
