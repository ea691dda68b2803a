"""One guarded step of an optimiser, the count of steps in vain, and the learning rate's schedule.

A module of the lowest layer: energies learn by it as agents do.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from vgs_rl.files.restore import check_like
from vgs_rl.training.parallel import average_gradients


class Tally:
    """The count of updates in vain, kept on the device: no host round trip at every update."""

    def __init__(self, device: torch.device) -> None:
        self.skipped = torch.zeros((), device=device, dtype=torch.float32)  # as optimisers want

    def count(self, loss: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Counts an update whose loss (or its sum with the gradient's norm) is not finite.

        Args:
            loss: the number that has to be finite, a scalar.
            wanted: whether the update is to be made at all, a boolean scalar; True by default.

        Returns:
            1 if it is in vain, else 0: `found_inf` of fused optimisers, which then skip their step.
        """
        good = torch.isfinite(loss.detach())
        bad = (~(good if wanted is None else good & wanted)).to(self.skipped)
        self.skipped = self.skipped + bad
        return bad

    def state_dict(self) -> dict[str, Any]:
        """The count."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        check_like(state, self.state_dict(), "tally")
        self.skipped = state["skipped"].clone()


def guarded_step(
    optimizer: Optimizer,
    loss: Tensor,
    tally: Tally,
    *,
    clip_norm: float | None = None,
    max_norm: float | None = None,
    wanted: Tensor | None = None,
) -> Tensor:
    """One step down the gradient of a loss, or none where loss or gradient is not finite.

    Ranks that train together make one step, down the mean of their gradients, or none.

    Args:
        optimizer: a fused one, which can skip a step without a round trip to the host.
        loss: a scalar that depends on its parameters.
        tally: counts the steps that are skipped.
        clip_norm: the gradient is scaled to at most this norm; None leaves it.
        max_norm: a gradient of a larger norm is skipped; None skips none.
        wanted: whether the step is to be made at all, a boolean scalar; True by default.

    Returns:
        The norm of the gradient before clipping, a scalar.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if wanted is not None:
        loss = torch.where(wanted, loss, torch.nan)  # which is no step on any rank
    (loss,) = average_gradients(parameters, loss)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm is not None:
        short = norm <= max_norm
        wanted = short if wanted is None else short & wanted
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    # The fused optimiser skips the whole step where found_inf is 1: no host round trip.
    optimizer.found_inf = tally.count(norm + loss, wanted)  # type: ignore[attr-defined]
    optimizer.step()
    return norm


def scheduled_rate(
    peak: float, *, progress: float, updates: int, warmup: int, final: float
) -> float:
    """The learning rate of the next update: linear warm-up, then a cosine over the budget.

    Args:
        peak: the rate after the warm-up, at the beginning of the budget.
        progress: fraction of the budget used, in [0, 1].
        updates: updates made so far.
        warmup: updates of the warm-up.
        final: the cosine's end, as a fraction of `peak`; 1 keeps the rate constant.

    Example:
        >>> scheduled_rate(0.1, progress=0.0, updates=0, warmup=1, final=0.0)
        0.05
        >>> scheduled_rate(0.1, progress=1.0, updates=9, warmup=1, final=0.5)
        0.05
    """
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    warm = min(1.0, (updates + 1) / (warmup + 1))
    return peak * warm * (final + (1 - final) * cosine)


def set_rates(optimizer: Optimizer, rates: list[float]) -> None:
    """Sets the learning rates of the optimiser's parameter groups, one each."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


class MovingAverage(AveragedModel):
    """A network's exponential moving average; it begins as the network is.

    The base class asks the device at every update whether it is the first.

    Args:
        network: that it follows.
        decay: the share of the old average that stays.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network, use_buffers=False)
        self.decay = decay
        self.n_averaged.fill_(1)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Moves the averaged parameters towards the current ones, and takes over the buffers."""
        ours: list[Tensor] = list(self.module.parameters())
        theirs: list[Tensor] = list(model.parameters())
        torch._foreach_lerp_(ours, theirs, 1 - self.decay)
        for mine, other in zip(self.module.buffers(), model.buffers(), strict=True):
            mine.copy_(other)
        self.n_averaged += 1
