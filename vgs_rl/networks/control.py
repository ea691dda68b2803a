"""The control u_t(x) as a separate network, for agents that learn no value."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vgs_rl.mdp import SamplingMDP


class ControlNetwork(nn.Module):
    """u_t(x) = MLP(x / √B_t, t) - g_t s_t ∇E(x)/tau, zero at first: the uncontrolled chain.

    The second term, the gradient of the target itself with one learned gain per step, is that of
    PIS (arXiv:2111.15141) and DDS (arXiv:2302.13834); ∇E is treated as a constant and its norm is
    bounded. B_t = S_t + scale²/A_t² is the variance of the noised N(0, scale² I), and time enters
    every layer through a learned embedding that starts as Fourier features of t/T.

    Args:
        mdp: supplies the chain.
        scale: rough standard deviation of the target per coordinate.
        width: units per layer.
        depth: hidden layers.
        generator: initialises the weights.
    """

    s: Tensor
    inverse_spread: Tensor

    # Adam moves every parameter at the same rate; gains have to reach 1 while weights stay small.
    GAIN_SCALE = 10.0

    def __init__(
        self, mdp: SamplingMDP, *, scale: float, width: int, depth: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.width, steps, chain = width, mdp.num_steps, mdp.chain
        self.register_buffer("s", chain.s.clone(), persistent=False)
        variance = chain.S[:-1] + scale**2 / chain.A[:-1] ** 2
        self.register_buffer("inverse_spread", variance.rsqrt(), persistent=False)
        sizes = [mdp.dim] + [width] * depth
        self.weights = nn.ParameterList()
        for fan_in in sizes[:-1]:
            weight = torch.randn(width, fan_in, generator=generator) / math.sqrt(fan_in)
            self.weights.append(nn.Parameter(weight.to(mdp.device, mdp.dtype)))
        frequency = torch.arange(1, width // 2 + 1) * (math.pi / 4)
        phase = torch.arange(steps).unsqueeze(-1) / steps * frequency
        features = torch.cat([phase.sin(), phase.cos()], -1)
        mixing = torch.randn(features.shape[1], depth * width, generator=generator)
        embedding = features @ mixing / math.sqrt(features.shape[1])
        self.embedding = nn.Parameter(embedding.to(mdp.device, mdp.dtype))
        self.readout, self.offset, self.gain = (
            nn.Parameter(torch.zeros(size, device=mdp.device, dtype=mdp.dtype))
            for size in ((mdp.dim, width), (steps, mdp.dim), (steps, 1))
        )

    def forward(self, x: Tensor, t: Tensor, slope: Tensor | None) -> Tensor:
        """u, shape (B, D), for states x (B, D) at steps t (B,).

        Args:
            x: states.
            t: their steps.
            slope: ∇E(x)/tau, bounded, shape (B, D); None leaves the term out.
        """
        hidden = x * self.inverse_spread[t].unsqueeze(-1)
        shifts = torch.split(F.embedding(t, self.embedding), self.width, dim=-1)
        for weight, shift in zip(self.weights, shifts, strict=True):
            hidden = F.silu(hidden @ weight.T + shift)
        control = hidden @ self.readout.T + F.embedding(t, self.offset)
        if slope is None:
            return control
        gain = self.GAIN_SCALE * F.embedding(t, self.gain)
        return control - gain * self.s[t].unsqueeze(-1) * slope


class ControlPolicy:
    """The policy of a :class:`ControlNetwork`, which evaluates ∇E once per state if it uses it.

    Args:
        mdp: supplies and counts ∇E.
        network: the control.
        energy_term: whether ∇E is used.
        max_gradient: bound of the norm of ∇E/tau.
    """

    thread_safe = True  # it evaluates E through the MDP alone

    def __init__(
        self, mdp: SamplingMDP, network: ControlNetwork, *, energy_term: bool, max_gradient: float
    ) -> None:
        self.mdp, self.network = mdp, network
        self.energy_term, self.max_gradient = energy_term, max_gradient

    def __call__(self, x: Tensor, t: int) -> Tensor:
        """u_t(x), shape (B, D)."""
        return self.control(x, t, self.slope(x))

    def control(self, x: Tensor, t: int | Tensor, slope: Tensor | None) -> Tensor:
        """u_t(x) with a slope that is already known; t is one step or one per row.

        The MDP takes what is tangent of it.
        """
        steps = t if isinstance(t, Tensor) else torch.full((x.shape[0],), t, device=x.device)
        control: Tensor = self.network(x, steps, slope)
        return control

    def slope(self, x: Tensor) -> Tensor | None:
        """∇E(x)/tau with bounded norm, detached, shape (B, D); 0 where it is not finite."""
        if not self.energy_term:
            return None
        slope = self.mdp.evaluate_gradient(x.detach())[1] / self.mdp.temperature
        slope = torch.where(torch.isfinite(slope).all(-1, keepdim=True), slope, 0.0)
        norm = slope.norm(dim=-1, keepdim=True)
        bounded: Tensor = slope * (self.max_gradient / norm.clamp_min(self.max_gradient))
        return bounded
