"""Parts and gains as functions of means over bridge paths, with errors by the jackknife."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vgs_rl.chain import Chain
from vgs_rl.evaluation.budget.bridges import Bridges
from vgs_rl.evaluation.budget.result import Estimate, Part, PartName, Purchase

GROUPS = 50  # of paths, each of which is left out once
TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Split:
    """Parts of the gap and gains, in nats.

    Attributes:
        parts: by name, with their steps.
        total: their sum.
        gains: what each purchase lowers the gap by.
    """

    parts: dict[PartName, Part]
    total: Estimate
    gains: dict[Purchase, Estimate]


def split_gap(
    bridges: Bridges, rho: Tensor, dim: int, chain: Chain, end: Tensor | None = None
) -> Split:
    """Splits EUBO - log Z.

    Args:
        bridges: what the paths say.
        rho: the sampler's noise scales, shape (T,).
        dim: D.
        chain: the halved chain.
        end: ‖∇E‖² at samples of the target, where values are not known; shape (m,).
    """
    whole, others = _means(bridges, end)
    law = _Law(rho=rho.double(), dim=dim, chain=chain)
    found, again = law(whole), law(others)
    parts: dict[PartName, Part] = {}
    sums, sums_again = found["start"], again["start"]
    names: tuple[PartName, ...] = ("start", "discretisation", "learning", "noise scale")
    for name in names:
        value, left_out = found[name], again[name]
        steps = value.ndim == 1
        if steps:
            sums, sums_again = sums + value.sum(), sums_again + left_out.sum(-1)
        sum_of = (value.sum(), left_out.sum(-1)) if steps else (value, left_out)
        parts[name] = Part(
            value=float(sum_of[0]),
            error=float(_error(sum_of[1])),
            per_step=tuple(value.tolist()) if steps else (),
            per_step_error=tuple(_error(left_out).tolist()) if steps else (),
        )

    def gain(name: str) -> Estimate:
        return Estimate(value=float(found[name]), error=float(_error(again[name])))

    start = parts["start"]
    return Split(
        parts=parts,
        total=Estimate(value=float(sums), error=float(_error(sums_again))),
        gains={
            "more steps": gain("halving"),
            "longer training": gain("training"),
            "a better start": Estimate(value=start.value, error=start.error),
            "a fitted noise scale": gain("refit"),
        },
    )


def _error(left_out: Tensor) -> Tensor:
    """Standard error by the jackknife, from estimates (G, ...) with each group left out."""
    groups = len(left_out)
    return ((groups - 1) * left_out.var(0, correction=0)).sqrt()


def _means(bridges: Bridges, end: Tensor | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Means over all paths, and with each group of paths left out, shape (G, ...)."""
    values = {field.name: getattr(bridges, field.name) for field in fields(bridges)}
    values["end"] = end
    whole, others = {}, {}
    for name, each in values.items():
        if each is None:
            continue
        size = len(each) // GROUPS
        groups = each[: size * GROUPS].unflatten(0, (GROUPS, size)).mean(1)
        whole[name] = groups.mean(0)
        others[name] = (groups.sum(0) - groups) / (GROUPS - 1)
    return whole, others


@dataclass(frozen=True, kw_only=True)
class _Law:
    """The formulas, for means of any leading shape."""

    rho: Tensor
    dim: int
    chain: Chain

    def __call__(self, mean: dict[str, Tensor]) -> dict[str, Tensor]:
        d = self.dim
        learning = 0.5 * mean["learning"] / self.rho.square()
        width = (mean["spread"] / d).clamp_min(TINY)  # r²
        halves = (mean["halves"] / d).clamp_min(TINY).log().sum(-1)
        refitted = (mean["learning"] / d + width).clamp_min(TINY)
        noise_scale = self._misfit(width)
        if "log_kernel" in mean:
            entropy = 0.5 * d * (2 * math.pi * math.e * width).log()
            discretisation = mean["log_kernel"] + entropy
        else:
            discretisation = 0.5 * d * width.log() + self._information(mean)
        return {
            "start": mean["start"],
            "learning": learning,
            "noise scale": noise_scale,
            "discretisation": discretisation,
            "training": (learning + noise_scale).sum(-1),
            "refit": self._misfit(refitted).sum(-1),
            "halving": 0.5 * d * (width.log() - halves).sum(-1),
        }

    def _misfit(self, width: Tensor) -> Tensor:
        """What rho loses against the variance `width`, per step."""
        ratio = width / self.rho.square()
        return 0.5 * self.dim * (ratio - 1 - ratio.log())

    def _information(self, mean: dict[str, Tensor]) -> Tensor:
        """½ ∫ J over the noise of each step, shape (..., T): what the step adds to the entropy.

        J is the Fisher information of x_T noised, at ends and middle of the step. Its inverse is
        linear in between, as that of a Gaussian is.
        """
        scale = self.chain.A.square()
        noise = scale * self.chain.S
        slopes = mean["slopes"].flatten(-2)
        end = mean["end"].unsqueeze(-1)
        information = (torch.cat([slopes, end], dim=-1) / scale).clamp_min(TINY)
        first, second = information[..., :-1], information[..., 1:]
        apart = (second / first).log()
        close = apart.abs() < 1e-6
        mean_of = torch.where(
            close, first, first * second * apart / torch.where(close, 1.0, second - first)
        )
        halves = 0.5 * (noise[:-1] - noise[1:]) * mean_of
        steps: Tensor = halves.unflatten(-1, (-1, 2))
        return steps.sum(-1)
