"""Whether weighted samples end where the target goes on: Stein's identity in each tail."""

from __future__ import annotations

import torch
from torch import Tensor

from vgs_rl.energy import Energy

MOST = 10_000  # samples that are looked at
TAIL = 0.1  # weight of a tail
ERRORS = 5.0  # standard errors of the identity that are no chance, over all coordinates
WORTH = 0.02  # by which it is off where that matters
LAST = 20  # one in so many samples of a tail is looked at: the furthest ones
REACH = 0.05  # of a tail: how far beyond these E is evaluated
JUMP = 1.0  # nats from what the gradient says: there the target itself ends
WALLS = 0.3  # share of these samples that stand before a jump


@torch.no_grad()
def early_ends(x: Tensor, log_weight: Tensor, energy: Energy, temperature: float) -> list[str]:
    """Coordinates along which samples end too early, a sentence each.

    E_p[f'(x_k) - f(x_k) ∂_k E / tau] = 0 for f(v) = max(q - v, 0), where q is the quantile of a
    tenth (Stein, 1972). Where samples lack what lies beyond some edge, the rest is the target's
    density there times f: a share of the tail. Weights do not show it, since no sample has them.
    Where E jumps the target ends itself, and nothing is said.

    Args:
        x: samples, shape (n, D), float64.
        log_weight: their log-weights, shape (n,).
        energy: E, on R^D.
        temperature: tau.
    """
    x, log_weight = x[:MOST], log_weight[:MOST].double()
    slope = energy.with_gradient(x)[1].double() / temperature
    fine = slope.isfinite().all(-1) & log_weight.isfinite()
    x, slope = x[fine], slope[fine]
    if not len(x):
        return []
    weight = torch.softmax(log_weight[fine], 0).unsqueeze(1)
    found = []
    for side, sign in (("lower", 1.0), ("upper", -1.0)):
        v, push = sign * x, sign * slope
        order = v.argsort(0)
        reached = weight[:, 0][order].cumsum(0)
        at = (reached < TAIL).sum(0, keepdim=True).clamp_max(len(v) - 1)
        quantile = v.gather(0, order.gather(0, at))
        beyond = (quantile - v).clamp_min(0.0)
        terms = -(v < quantile).double() - beyond * push
        rest = (weight * terms).sum(0)
        error = (weight * (terms - rest)).square().sum(0).sqrt()
        off = (rest.abs() > ERRORS * error) & (rest.abs() > WORTH)
        for k in off.nonzero().flatten().tolist():
            tail = order[: int((v[:, k] < quantile[0, k]).sum()), k]
            last = tail[: 1 + len(tail) // LAST]
            step = torch.zeros_like(x[last])
            step[:, k] = -sign * REACH * beyond[:, k].max()
            rise = (energy(x[last] + step) - energy(x[last])).double() / temperature
            gap = (rise - (step * slope[last]).sum(-1)).abs()
            if float((gap < JUMP).double().mean()) > 1 - WALLS:
                found.append(
                    f"samples end too early in the {side} tail of coordinate {k}: Stein's identity "
                    f"is off by {float(rest[k]):.2f} ± {float(error[k]):.2f} there; give it more "
                    "seconds, or coordinates that depend on each other less"
                )
    return found
