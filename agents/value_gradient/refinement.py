"""MCMC in the service of gradient matching: refined buffers and posterior-averaged targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vgs_rl.files.restore import check_like, check_rows
from vgs_rl.geometry import Geometry
from vgs_rl.mdp import SamplingMDP
from vgs_rl.samplers.mcmc.kernels import Point, metropolis_langevin, truncated
from vgs_rl.samplers.mcmc.mala import MALAKernel
from vgs_rl.training import parallel
from vgs_rl.weights import systematic_resample, temper


class RefinedBuffer:
    """A persistent set of terminal states, equally weighted, that MALA keeps near the target.

    New states replace random old ones, then the whole set moves by some MALA steps: learning from
    it is learning from MCMC that the sampler helps across barriers, and a table that shows the
    result shows MCMC alone, too.

    Attributes:
        dropped: rows so far that were left out, because E or ∇E was not finite there and no step
            led away.

    Args:
        mdp: supplies target and counter.
        capacity: rows.
        max_drift: bound of the norm of ∇E/tau in proposals.
    """

    def __init__(self, mdp: SamplingMDP, capacity: int, max_drift: float) -> None:
        self.mdp, self.capacity, self.max_drift = mdp, capacity, max_drift
        self.x = self.gradient = torch.empty(0)
        self.step_size, self.acceptance = torch.tensor(1e-3), torch.zeros(())
        self.dropped = 0

    def __len__(self) -> int:
        return len(self.x)

    @torch.no_grad()
    def add(self, x: Tensor, steps: int, generator: torch.Generator) -> None:
        """Takes in states (B, D), at most `capacity`, then moves all rows by `steps` steps."""
        room = self.capacity - len(self.x)
        if len(x) > room:
            order = torch.randperm(len(self.x), generator=generator, device=x.device)
            self.x = self.x.index_copy(0, order[: len(x) - room], x[room:])
        self.x = torch.cat([self.x, x[:room]]) if len(self.x) else x
        kernel = MALAKernel(
            self.mdp.energy,
            self.x,
            temperature=self.mdp.temperature,
            step_size=self.step_size,
            max_drift=self.max_drift,
        )
        for _ in range(steps):
            self.acceptance = kernel.step(generator, adapt=True)
        now = kernel.now
        now = now.rows(torch.isfinite(now.energy) & torch.isfinite(now.x).all(-1))
        self.x, self.gradient = now.x, now.gradient * self.mdp.temperature
        self.dropped += len(kernel.x) - len(now.x)
        self.step_size = kernel.step_size
        self.mdp.energy_evaluations += kernel.energy_evaluations

    def masses(self) -> list[float]:
        """The weight of every rank's rows, up to a factor: their number."""
        return parallel.each_rank(len(self))

    def mean_square(self, dim: int) -> Tensor:
        """E‖x‖² over the rows of this rank, a scalar, of the first `dim` coordinates."""
        return self.x[:, :dim].square().sum(-1).mean()

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """N rows, each as often as any other: x and ∇E, both (n, D)."""
        order = torch.randperm(len(self.x), generator=generator, device=self.x.device)
        rows = order[torch.arange(n, device=self.x.device) % len(self.x)]
        return self.x[rows], self.gradient[rows]

    def state_dict(self) -> dict[str, Any]:
        """Rows and step size."""
        return {
            "x": self.x,
            "gradient": self.gradient,
            "step_size": self.step_size,
            "dropped": self.dropped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            ValueError: if it holds no rows of this MDP.
        """
        check_rows(state, {"x": 2, "gradient": 2}, "refined", width=self.mdp.dim)
        check_like(state["step_size"], self.step_size, "refined.step_size")
        self.x, self.gradient = state["x"], state["gradient"]
        self.step_size, self.dropped = state["step_size"], state["dropped"]


def resample(x: Tensor, log_weight: Tensor, n: int, least_ess: float, generator: Any) -> Tensor:
    """N of the rows x (B, D) by their weights, tempered to a fraction `least_ess`.

    Raises:
        ValueError: if a weight is infinite, or all are 0.
    """
    log_weight = torch.where(torch.isfinite(x).all(-1), log_weight, -torch.inf)
    weights = temper(log_weight.double(), least_ess)
    return x[systematic_resample(weights.log(), n, generator)]


class PosteriorAverage:
    """Averages of x_T and ∇E(x_T) over x_T given x_t, by MALA that starts at an exact draw.

    x_t comes from x_T by noising, so x_T itself is a draw of the posterior; a few MALA steps give
    more of them, and the mean over all is an unbiased target of less variance
    (Rao-Blackwell), the more so the faster the chain forgets.

    Args:
        mdp: target, chain and counter.
        steps: MALA steps.
        max_drift: bound of the norm of the target's gradient in proposals.
    """

    ACCEPTANCE = 0.6

    def __init__(self, mdp: SamplingMDP, steps: int, max_drift: float) -> None:
        self.mdp, self.steps, self.max_drift = mdp, steps, max_drift
        noise = (mdp.chain.A.square() * mdp.chain.S)[:-1]
        self.log_step = (0.5 * noise).clamp_max(1e-2).log()  # one proposal variance per t

    @torch.no_grad()
    def __call__(
        self, x_T: Tensor, gradient: Tensor, x: Tensor, t: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Mean x_T and mean ∇E, both (B, D), for states x (B, D) at steps t (B,)."""
        mdp, tau = self.mdp, self.mdp.temperature
        scale = mdp.chain.A[t].unsqueeze(-1)
        precision = 1 / (scale.square() * mdp.chain.S[t].unsqueeze(-1))
        centre = scale * x
        energy = mdp.evaluate_energy(x_T)
        mean_x, mean_gradient = x_T.clone(), gradient.clone()
        counts = torch.bincount(t, minlength=mdp.num_steps).clamp_min(1)

        def at(y: Tensor, energy: Tensor, slope: Tensor) -> Point:
            force = truncated(slope / tau, self.max_drift) + precision * (y - centre)
            level = energy / tau + 0.5 * (precision * (y - centre).square()).sum(-1)
            return Point(y, level, mdp.geometry.tangent(force, y), energy, slope)

        density = _Posterior(mdp.geometry, lambda y: at(y, *mdp.evaluate_gradient(y)))
        now = at(x_T, energy, gradient)
        for _ in range(self.steps):
            h = self.log_step[t].exp().unsqueeze(-1)
            now, log_ratio = metropolis_langevin(density, now, h, generator)
            mean_x += now.x
            mean_gradient += now.gradient
            rate = log_ratio.exp().clamp_max(1.0) - self.ACCEPTANCE
            change = torch.zeros_like(self.log_step).index_add_(0, t, rate) / counts
            self.log_step += 0.2 * change
        return mean_x / (self.steps + 1), mean_gradient / (self.steps + 1)


@dataclass
class _Posterior:
    """The density of x_T given x_t."""

    geometry: Geometry
    points: Callable[[Tensor], Point]

    def __call__(self, x: Tensor) -> Point:
        return self.points(x)
