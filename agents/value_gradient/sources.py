"""Where gradient matching takes terminal states from: weighted chains, or a set that MCMC moves."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vgs_rl.agents.base import rollout_scalars
from vgs_rl.agents.value_gradient.buffer import WeightedBuffer
from vgs_rl.agents.value_gradient.objectives import GradientMatching
from vgs_rl.agents.value_gradient.refinement import RefinedBuffer, resample
from vgs_rl.conditional.energy import JointEnergy
from vgs_rl.energy import Energy
from vgs_rl.files.restore import check_rows
from vgs_rl.samplers.base import Samples
from vgs_rl.samplers.mcmc.annealed import AnnealedSMC
from vgs_rl.starts import widened
from vgs_rl.training import parallel
from vgs_rl.weights import dead_paths, systematic_resample

if TYPE_CHECKING:
    from vgs_rl.agents.value_gradient.agent import ValueGradientAgent

FIRST_CONDITIONS = 16  # values of the parameters that annealed first states have
Drawn = tuple[Tensor, Tensor, Tensor]  # x (B, D), ∇E (B, D) and log w (B,)


class Source(ABC):
    """Terminal states distributed as the target.

    Attributes:
        rows: the states, of this rank.
        share: the weight of this rank's rows relative to the mean over the ranks: what a mean over
            draws of them counts in the mean over all ranks. 1 with one rank.
        scalars: of the last refresh, to log.
    """

    rows: WeightedBuffer | RefinedBuffer

    def __init__(self, config: GradientMatching) -> None:
        self.config = config
        self.scalars: dict[str, Tensor] = {}

    @property
    def share(self) -> float:
        """See the class."""
        masses = self.rows.masses()
        return masses[parallel.rank()] * len(masses) / sum(masses)

    def refresh(self, agent: ValueGradientAgent) -> Drawn | None:
        """Takes in new states of the agent's chain.

        Returns:
            The weighted states that the chain gave; None if it was not asked.

        Raises:
            ValueError: if no state so far has a finite energy and gradient.
        """
        drawn, seen = self._refresh(agent)
        (dropped,) = parallel.totals(self.rows.dropped)
        self.scalars["train/dropped_rows"] = torch.tensor(int(dropped))
        if not len(self.rows):
            name = type(agent.mdp.energy).__name__
            raise ValueError(
                f"{name}.energy and its gradient are finite at none of {len(seen):,} states with "
                f"coordinates up to {float(seen.abs().max()):.3g}: set agent.prior_std, "
                f"{agent.config.prior_std:g} now, to the size of the region where they are"
            )
        return drawn

    @abstractmethod
    def _refresh(self, agent: ValueGradientAgent) -> tuple[Drawn | None, Tensor]:
        """What :meth:`refresh` returns, and the states that were taken in."""

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """N states of this rank with their ∇E, both (n, D)."""
        return self.rows.draw(n, generator)

    def draw_part(self, n: int, generator: torch.Generator) -> Tensor:
        """This rank's part of as many states as n for every rank, by the weight of its rows."""
        masses, here = self.rows.masses(), parallel.rank()
        edges = [sum(masses[:k]) / sum(masses) for k in (here, here + 1)]
        first, last = (round(n * len(masses) * edge) for edge in edges)
        return self.draw(max(last - first, min(n, 2)), generator)[0]

    def mean_square(self, dim: int) -> Tensor:
        """E‖x‖² over the rows of all ranks, a scalar, of the first `dim` coordinates."""
        return parallel.mean(self.rows.mean_square(dim), self.share)

    def state_dict(self) -> dict[str, Any]:
        """Rows and scalars."""
        return {"rows": self.rows.state_dict(), "scalars": self.scalars}

    def load_state_dict(self, state: dict[str, Any], dim: int) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            ValueError: if it holds no rows of `dim` coordinates.
        """
        check_rows(state["rows"], {"x": 2}, "objective.rows", width=dim)
        self.rows.load_state_dict(state["rows"])
        self.scalars = state["scalars"]


class WeightedSource(Source):
    """The chain's latest states, drawn by their exact weights."""

    rows: WeightedBuffer

    def __init__(self, config: GradientMatching, agent: ValueGradientAgent) -> None:
        super().__init__(config)
        level = None if agent.mdp.conditions is None else agent.mdp.levelled
        self.rows = WeightedBuffer(config.capacity, config.least_ess, level)

    def _refresh(self, agent: ValueGradientAgent) -> tuple[Drawn, Tensor]:
        if self.config.first_range > 1 and not len(self.rows):
            x, log_weight = self._first_draws(agent)
            energy, gradient = agent.mdp.evaluate_gradient(x)
            log_weight = log_weight - energy / agent.mdp.temperature
        else:
            size = self.config.refresh_size if len(self.rows) else self.config.first_size
            with widened(agent.mdp.start, self.config.start_widening):
                rollout = agent.rollout(size, with_gradient=True)
            assert rollout.gradient is not None
            x, log_weight, gradient = rollout.x, rollout.log_weight, rollout.gradient
            self.scalars = rollout_scalars(agent.mdp, rollout)
        self.rows.add(x, gradient, log_weight)
        return (x, gradient, agent.mdp.levelled(x, log_weight)), x

    def _first_draws(self, agent: ValueGradientAgent) -> tuple[Tensor, Tensor]:
        """Draws of a mixture of Gaussians of many widths, with minus their log density."""
        mdp, reach = agent.mdp, math.log(self.config.first_range)
        dim = mdp.effective_dim
        log_r = torch.linspace(-reach, reach, 64, device=mdp.device, dtype=mdp.dtype)
        log_r = log_r + math.log(agent.config.prior_std)
        which = torch.arange(self.config.first_size, device=mdp.device) % len(log_r)
        x = log_r.exp()[which].unsqueeze(-1) * mdp.noise(self.config.first_size, agent.generator)
        squares = x.square().sum(-1, keepdim=True)
        components = -0.5 * squares * (-2 * log_r).exp() - dim * log_r
        constant = 0.5 * dim * math.log(2 * math.pi) + math.log(len(log_r))
        log_weight = constant - torch.logsumexp(components, dim=-1)
        return mdp.with_conditions(x, agent.generator), log_weight


class RefinedSource(Source):
    """A persistent set that takes in the chain's states by weight and then moves by MALA."""

    rows: RefinedBuffer

    def __init__(self, config: GradientMatching, agent: ValueGradientAgent) -> None:
        super().__init__(config)
        self.rows = RefinedBuffer(agent.mdp, config.capacity, config.max_drift)

    def _refresh(self, agent: ValueGradientAgent) -> tuple[Drawn | None, Tensor]:
        drawn, config, generator = None, self.config, agent.generator
        if not len(self.rows):
            x = self._first_states(agent)
            self.rows.add(x, config.first_refine_steps, generator)
        else:
            rollout = agent.rollout(config.refresh_size, with_gradient=True)
            assert rollout.gradient is not None
            log_weight = agent.mdp.levelled(rollout.x, rollout.log_weight)
            drawn = rollout.x, rollout.gradient, log_weight
            x, log_weight = (parallel.gather(each) for each in (rollout.x, log_weight))
            n = config.refresh_size * parallel.world_size()
            x = _part(resample(x, log_weight, n, config.least_ess, agent.common))
            self.rows.dropped += dead_paths(rollout.log_weight)
            self.rows.add(x, config.refine_steps, generator)
            self.scalars = rollout_scalars(agent.mdp, rollout)
        self.scalars["train/refinement_acceptance"] = self.rows.acceptance
        return drawn, x

    def _first_states(self, agent: ValueGradientAgent) -> Tensor:
        """The persistent set before MALA moves it, shape (capacity, D)."""
        mdp, scale = agent.mdp, agent.config.prior_std
        conditions = mdp.conditions
        if not self.config.first_anneal_steps:
            x = scale * mdp.noise(self.config.capacity, agent.generator)
            return mdp.with_conditions(x, agent.generator)
        if conditions is not None:
            assert isinstance(mdp.energy, JointEnergy)
            # Annealed at a few values of c; every row then has its own, and MALA brings it there.
            size = self.config.capacity
            n = -(-size // FIRST_CONDITIONS)
            own = conditions.draw(size, agent.generator, torch.float64)
            few = conditions.spread(FIRST_CONDITIONS, agent.generator)
            parts = [self._annealed(agent, mdp.energy.conditional.at(each), n).x for each in few]
            which = torch.cdist(conditions.unit(own), conditions.unit(few)).argmin(1)
            row = torch.arange(size, device=which.device) % n
            x = torch.stack([each[:n] for each in parts])[which, row].to(mdp.dtype)
            return torch.cat([x, own.to(x)], -1)
        samples = self._annealed(agent, mdp.energy, self.config.capacity)
        x = samples.x.to(mdp.dtype)
        if parallel.world_size() == 1 or samples.log_weight is None:
            return x
        # Every rank has an island, whose weight is its estimate of Z.
        x, log_weight = parallel.gather(x), parallel.gather(samples.log_weight)
        return _part(x[systematic_resample(log_weight, len(x), agent.common)])

    def _annealed(self, agent: ValueGradientAgent, energy: Energy, n: int) -> Samples:
        """N states of annealed SMC, resampled."""
        mdp = agent.mdp
        sampler = AnnealedSMC(
            energy,
            self.config.first_anneal_steps,
            scale=agent.config.prior_std,
            threshold=0.5,
            temperature=mdp.temperature,
            device=mdp.device,
        )
        samples = sampler.sample(n, agent.generator, resample=True, oversample=1)
        mdp.energy_evaluations += samples.energy_evaluations
        return samples


def _part(x: Tensor) -> Tensor:
    """This rank's rows of what is the same on all ranks."""
    return x[parallel.rank() :: parallel.world_size()]
