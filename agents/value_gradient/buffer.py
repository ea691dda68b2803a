"""A replay buffer of terminal states with exact log-weights and energy gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vgs_rl.files.restore import check_rows
from vgs_rl.training import parallel
from vgs_rl.weights import log_mean_weight, refuse_infinite, rows_at, temper


class WeightedBuffer:
    """The sampler's latest terminal states x_T, each with log w and ∇E(x_T).

    Draws follow the self-normalised weights min(w, cap)^beta, cap = √n times their own mean, with
    the largest beta ≤ 1 that keeps an effective sample size of `least_ess`: exact in the limit,
    stable on the way. The cap (truncated importance sampling, Ionides, JCGS 17, 2008) keeps a few
    outliers from flattening the weights of all others.

    Ranks that train together have a part of the rows each, and weights, cap and beta of all rows.

    Attributes:
        dropped: rows so far that were left out, because they were not finite or had weight 0.

    Args:
        capacity: rows kept; the oldest go first.
        least_ess: effective sample size to keep, as a fraction of the rows.
        level: of rows (B, D) and log-weights (B,), the log-weights that draws follow; those
            themselves if None.
    """

    def __init__(
        self,
        capacity: int,
        least_ess: float,
        level: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.capacity, self.least_ess, self.level = capacity, least_ess, level
        self.x = self.gradient = self.log_weight = torch.empty(0)
        self._edges: Tensor | None = None  # cumulated weights, computed when they are asked for
        self._masses = [1.0]  # sums of the weights of every rank's rows
        self.dropped = 0

    def __len__(self) -> int:
        return len(self.x)

    def add(self, x: Tensor, gradient: Tensor, log_weight: Tensor) -> None:
        """Adds rows (B, D), (B, D) and (B,); rows of weight 0, or not finite, are left out.

        Raises:
            ValueError: if a weight is infinite.
        """
        refuse_infinite(log_weight)
        finite = (
            torch.isfinite(x).all(-1)
            & torch.isfinite(gradient).all(-1)
            & torch.isfinite(log_weight)
        )
        given = len(x)
        x, gradient, log_weight = x[finite], gradient[finite], log_weight[finite]
        self.dropped += given - len(x)
        if len(self):
            x = torch.cat([self.x, x])
            gradient = torch.cat([self.gradient, gradient])
            log_weight = torch.cat([self.log_weight, log_weight])
        self.x = x[-self.capacity :]
        self.gradient = gradient[-self.capacity :]
        self.log_weight = log_weight[-self.capacity :]
        self._edges = None

    def _weighed(self) -> Tensor:
        """The cumulated weights of this rank's rows; all ranks ask for them together."""
        if self._edges is None:
            self._weigh()
        assert self._edges is not None
        return self._edges

    def _weigh(self) -> None:
        parts = [len(part) for part in parallel.gather_parts(self.log_weight)]
        log_weight = self.log_weight.double()
        if self.level is not None:
            log_weight = self.level(self.x.double(), log_weight)
        log_weight = parallel.gather(log_weight)
        for _ in range(10):  # the mean itself is of capped weights, or one outlier would carry it
            cap = log_mean_weight(log_weight) + 0.5 * math.log(len(log_weight))
            log_weight = log_weight.clamp_max(cap)
        weights = temper(log_weight, self.least_ess).split(parts)
        self._edges = weights[parallel.rank()].cumsum(0)
        self._masses = [float(each.sum()) for each in weights] if len(parts) > 1 else [1.0]

    def masses(self) -> list[float]:
        """The weight of every rank's rows, up to a factor."""
        self._weighed()
        return self._masses

    def mean_square(self, dim: int) -> Tensor:
        """E‖x‖² by weight over the rows of this rank, a scalar, of the first `dim` coordinates."""
        edges = self._weighed()
        weights = edges.diff(prepend=edges.new_zeros(1)) / edges[-1]
        return weights @ self.x[:, :dim].double().square().sum(-1)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """N rows by weight, with replacement and stratified: x and ∇E, both (n, D), shuffled."""
        device = self.x.device
        strata = torch.arange(n, device=device, dtype=torch.float64)
        jitter = torch.rand(n, generator=generator, device=device, dtype=torch.float64)
        edges = self._weighed()
        points = (strata + jitter) / n * edges[-1]
        rows = rows_at(edges, points)
        rows = rows[torch.randperm(n, generator=generator, device=device)]
        return self.x[rows], self.gradient[rows]

    def state_dict(self) -> dict[str, Any]:
        """The rows."""
        return {
            "x": self.x,
            "gradient": self.gradient,
            "log_weight": self.log_weight,
            "dropped": self.dropped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            ValueError: if it holds no rows that fit each other.
        """
        check_rows(state, {"x": 2, "gradient": 2, "log_weight": 1}, "buffer")
        self.x, self.gradient = state["x"], state["gradient"]
        self.log_weight, self.dropped = state["log_weight"], state["dropped"]
        self._edges = None
