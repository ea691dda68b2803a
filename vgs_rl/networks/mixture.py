"""A value that begins as that of a Gaussian mixture, and is guided by the target's own gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vgs_rl.conditional.start import NoisedMixedStart
from vgs_rl.mdp import SamplingMDP
from vgs_rl.networks.base import TimeConditionedMLP
from vgs_rl.starts.make import NoisedStart


class _Shared:
    """What a network looks at without owning it: copies of the network look at the same."""

    def __init__(self, mdp: SamplingMDP, start: NoisedStart | NoisedMixedStart) -> None:
        self.mdp, self.start = mdp, start

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self


class MixtureValue(TimeConditionedMLP):
    """The value of the start's mixture, noised to step t, plus D · MLP(x / √B_t, t).

    A guide may join its gradient. The mixture knows the posterior mean of x_T given x_t,
    m = A_t (x - S_t ∇V_mix(x)). There its error is seen: to first order the value's gradient lacks

        c_t(x) ⊙ A_t (∇E(m)/tau - ∇V_mix,T(m)) tau

    with coefficients per coordinate that are learned: c_t(x) = c_t + W h, h the MLP's last layer.
    That costs one evaluation of ∇E per state and step. The guide is no gradient of a function;
    `value` leaves it out.

    Of rows (x, c) with parameters c, the mixture is that of the starts of all knots, weighted as c
    says (:class:`~vgs_rl.conditional.start.NoisedMixedStart`), and the gradient along c is 0.

    Args:
        mdp: supplies chain, target and a start of kind `noised` or `noised_product`.
        guided: whether the guide joins.
        width: units per layer.
        depth: hidden layers.
        input_scale: sharpness of the first layer's initial features.
        generator: initialises the weights.

    Raises:
        ValueError: if the start is of another kind.
    """

    LONGEST = 4.0  # of the guide, in standard deviations of the step's noise, per √D

    def __init__(
        self,
        mdp: SamplingMDP,
        *,
        guided: bool,
        width: int = 128,
        depth: int = 3,
        input_scale: float = 2.6,
        generator: torch.Generator,
    ) -> None:
        if not isinstance(mdp.start, NoisedStart | NoisedMixedStart):
            raise ValueError(
                "network MixtureNetwork needs mdp.start.kind noised or noised_product, "
                f"got {mdp.config.start.kind}"
            )
        super().__init__(
            mdp.chain,
            mdp.geometry.moving,
            prior_std=1.0,
            width=width,
            depth=depth,
            input_scale=input_scale,
            temperature=mdp.temperature,
            conditions=mdp.conditions,
            generator=generator,
        )
        self.shared = _Shared(mdp, mdp.start)
        self.guided = guided
        if guided:
            self.guide = nn.Parameter(self.readout.new_zeros(mdp.num_steps, self.dim))
            self.guide_weight = nn.Parameter(self.readout.new_zeros(self.dim, width))

    @torch.no_grad()
    def follow_start(self) -> None:
        """Sets the mixture of targets that is best where the target is as wide as components."""
        odds = self.shared.start.width / (self.shrink.square() * self.noise)[:-1]
        self.mixture_bias.copy_(odds.log().unsqueeze(-1).expand_as(self.mixture_bias))

    def _prior(self, x: Tensor, t: int | Tensor) -> Tensor:
        return self.temperature * self.shared.start.value(x, t)

    def _prior_gradient(self, x: Tensor, t: int | Tensor) -> Tensor:
        with torch.no_grad():
            return self.temperature * self.shared.start.value_gradient(x, t)

    @torch.no_grad()
    def field(self, x: Tensor, t: int | Tensor, slope: Tensor) -> Tensor:
        """What the mixture's gradient `slope` at x lacks, to first order: (B, D)."""
        mdp, start = self.shared.mdp, self.shared.start
        scale, noise = start.scale[t], start.noise[t]
        if isinstance(t, Tensor):
            scale, noise = scale.unsqueeze(-1), noise.unsqueeze(-1)
        m = mdp.geometry.scaled(x - noise * slope / self.temperature, scale)
        own = mdp.evaluate_gradient(m)[1].nan_to_num(0.0, 0.0, 0.0)
        lacking = scale * (own - self.temperature * start.value_gradient(m, mdp.num_steps))
        unit = self.temperature / noise.sqrt()
        length = lacking.norm(dim=-1, keepdim=True) / unit
        longest = self.LONGEST * self.dim**0.5
        shortened: Tensor = lacking * (longest / length.clamp_min(1e-20)).clamp_max(1.0)
        return shortened

    def _sweep(self, x: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        learned, hidden = self._learned(x, t)
        slope = self._prior_gradient(x, t)
        if self.guided:
            learned = learned + self._padded(self._share(hidden, t)) * self.field(x, t, slope)
        return slope + learned, hidden

    def _share(self, hidden: Tensor, t: int | Tensor) -> Tensor:
        guide = self.guide[t] if isinstance(t, int) else nn.functional.embedding(t, self.guide)
        return guide + hidden @ self.guide_weight.T

    @torch.no_grad()
    def fit_guide(self, x: Tensor, t: Tensor, target: Tensor) -> None:
        """Sets c_t by least squares to targets of the gradient (B, D); all steps in t."""
        slope = self._prior_gradient(x, t)
        field = self.field(x, t, slope)
        shape = (len(self.guide), self.dim)
        products, squares = (
            torch.zeros(shape, device=x.device, dtype=x.dtype).index_add_(0, t, part)
            for part in (
                ((target - slope) * field)[:, : self.dim],
                field[:, : self.dim].square(),
            )
        )
        # Per coordinate where there are many states, drawn to what all coordinates share.
        common = products.sum(-1, keepdim=True) / squares.sum(-1, keepdim=True).clamp_min(1e-20)
        ridge = squares.mean(-1, keepdim=True)
        fitted = (products + ridge * common) / (squares + ridge).clamp_min(1e-20)
        self.guide.copy_(fitted.clamp(-0.5, 1.5))
