"""Whether the target's density jumps: a test of Stein's identity on weighted states."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vgs_rl.mdp import SamplingMDP


class ContinuityTest:
    """Finds jumps of exp(-E/tau), where gradients of E do not tell where the mass is.

    E_p[∂_i E g(x_i) - tau g'(x_i)] = 0 for smooth g if the density is continuous (Stein, 1972): the
    same integration by parts that makes A_t ∇E(x_T) a score. A jump of the density leaves a rest,
    its height times g where it is. Tried are four functions g of every coordinate, on states with
    exact weights, which use E alone. Estimates of successive sets are added up, old ones fading.

    Args:
        mdp: supplies temperature and geometry.
    """

    FADING = 0.8  # of what earlier sets have shown, at every new one
    LEAST_STATES = 50  # effective ones, below which a set says nothing
    ERRORS = 5.0  # standard errors that a rest must have
    SHARE = 0.03  # of the terms' root mean square that it must have, too

    def __init__(self, mdp: SamplingMDP) -> None:
        self.mdp = mdp
        self.moving = mdp.geometry.moving
        size = (4, self.moving)
        self.rest, self.variance, self.square = (
            torch.zeros(size, dtype=torch.float64, device=mdp.device) for _ in range(3)
        )
        self.states = 0.0
        self.sets_with_jumps = 0  # in a row, the latest one included

    @property
    def jumps(self) -> bool:
        """Whether the latest set of states shows a jump."""
        return self.sets_with_jumps > 0

    @torch.no_grad()
    def add(self, x: Tensor, gradient: Tensor, log_weight: Tensor) -> None:
        """Takes in states (B, D) with ∇E (B, D) and exact log-weights (B,)."""
        finite = torch.isfinite(log_weight) & torch.isfinite(gradient).all(-1)
        if not bool(finite.any()):
            return
        weight = torch.softmax(log_weight[finite].double(), 0)
        states = 1.0 / float(weight.square().sum())
        if states < self.LEAST_STATES:
            return
        x, gradient = (part[finite, : self.moving].double() for part in (x, gradient))
        terms = self._terms(x, gradient, weight)
        mean = torch.einsum("b,kbd->kd", weight, terms)
        error = torch.einsum("b,kbd->kd", weight.square(), (terms - mean.unsqueeze(1)).square())
        square = torch.einsum("b,kbd->kd", weight, terms.square())
        self.rest = self.FADING * self.rest + states * mean
        self.variance = self.FADING**2 * self.variance + states**2 * error
        self.square = self.FADING * self.square + states * square
        self.states = self.FADING * self.states + states
        significant = self.rest.abs() > self.ERRORS * self.variance.sqrt()
        large = self.rest.abs() > self.SHARE * (self.square * self.states).sqrt()
        jumps = bool((significant & large).any())
        self.sets_with_jumps = self.sets_with_jumps + 1 if jumps else 0

    def _terms(self, x: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
        """∂_i E g(x_i) - tau g'(x_i) for every g, shape (4, B, D)."""
        centre = weight @ x
        spread = (weight @ (x - centre).square()).sqrt().clamp_min(1e-30)
        u = (x - centre) / spread
        g = torch.stack([torch.ones_like(u), u, (2 * u).sin(), (2 * u).cos()])
        slope = torch.stack(
            [torch.zeros_like(u), torch.ones_like(u), 2 * (2 * u).cos(), -2 * (2 * u).sin()]
        )
        # In a subspace a coordinate's own direction is that much shorter.
        share = self.mdp.effective_dim / self.moving
        return spread * gradient * g - self.mdp.temperature * share * slope

    def state_dict(self) -> dict[str, Any]:
        """What earlier states have shown."""
        return {
            "rest": self.rest,
            "variance": self.variance,
            "square": self.square,
            "states": self.states,
            "sets_with_jumps": self.sets_with_jumps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self.rest, self.variance, self.square = (
            state[name].clone() for name in ("rest", "variance", "square")
        )
        self.states, self.sets_with_jumps = state["states"], state["sets_with_jumps"]
