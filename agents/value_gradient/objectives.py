"""Value-learning objectives: what a value network is regressed on, and on which states.

An objective is a strategy of the
:class:`~vgs_rl.agents.value_gradient.agent.ValueGradientAgent`, and its fields are its
hyper-parameters. It holds no state: what it builds for one agent, a :class:`ValueLearner`, does,
so that one objective may serve any number of agents.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from torch import Tensor

from vgs_rl.checks import require_at_least, require_positive
from vgs_rl.training import parallel

if TYPE_CHECKING:
    from vgs_rl.agents.value_gradient.agent import ValueGradientAgent


class ValueLearner(ABC):
    """An objective at work for one agent: its state, and the loss of each minibatch."""

    @abstractmethod
    def loss(self, agent: ValueGradientAgent) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the next minibatch, with scalars to log."""

    def averages_now(self) -> bool:
        """Whether the moving average takes in the network after this update."""
        return True

    def after_average(self, agent: ValueGradientAgent) -> None:  # noqa: B027  an optional hook
        """Called when the moving average has taken in the network."""

    def report_details(self) -> dict[str, Any]:
        """What a report says of the learner besides its metrics, as JSON holds it."""
        return {}

    def notes(self) -> list[str]:
        """What a user has to know of its state, a line each."""
        return []

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The learner's state, for checkpoints."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""


@dataclass(kw_only=True)
class ValueObjective(ABC):
    """Base of the objectives: hyper-parameters alone.

    Attributes:
        divided: sizes that are those of all ranks together, where several train one agent.
    """

    divided: ClassVar[tuple[str, ...]] = ()

    def of_one_rank(self) -> Self:
        """The same with this rank's part of every size that is divided among the ranks.

        Raises:
            ValueError: naming a size that cannot be divided, or the objective, if it says of none
                that it can.
        """
        if parallel.world_size() == 1:
            return self
        name = type(self).__name__
        if not self.divided:
            raise ValueError(
                f"{name} trains in one process, got {parallel.world_size()} ranks: start it "
                f"without torchrun, or name its sizes in {name}.divided"
            )
        parts = {
            each: parallel.portion(f"{name}.{each}", getattr(self, each)) for each in self.divided
        }
        return replace(self, **parts)

    @abstractmethod
    def build(self, agent: ValueGradientAgent) -> ValueLearner:
        """The objective at work for an agent that has its networks already."""


@dataclass(kw_only=True)
class GradientMatching(ValueObjective):
    """Regresses ∇V_t on the noised target's score, without simulating the chain.

    States x_t = x_T / A_t + √S_t z come from a buffer of the sampler's own terminal states, drawn
    by their exact weights. Two unbiased targets for ∇V_t(x_t) are tau z/√S_t (denoising) and
    A_t ∇E(x_T) (target score), the second for densities without jumps only. Any mixture of them
    whose coefficient depends on x_t alone is unbiased too; the network learns the coefficient that
    makes it vary least, by the same loss.
    That is the path KL that the drift would lose: T · mean[ s_t²/(2 tau²) ‖∇V_t(x_t) - target‖² ],
    or for the `bellman` drift the same with a_t ∇V_{t+1}(a_t x_t).

    Args:
        batch_size: states per update, stratified over t.
        refresh_every: updates between additions to the buffer.
        refresh_size: chain samples added each time.
        first_size: samples added at first.
        first_range: the first samples come from the untrained chain if 1; else from Gaussians
            N(0, r² I) with r from prior_std / first_range to prior_std · first_range, weighted
            exactly: for targets with heavy tails, which a sampler finds late by itself.
        capacity: rows that the buffer keeps.
        least_ess: effective sample size that tempering keeps, as a fraction of the buffer.
        start_every: refreshes between fits of the start distribution.
        start_size: states drawn from the buffer for each of them.
        start_widening: factor on the start's widths while chains are drawn for the buffer, whose
            weights stay exact: above 1, what the start lacks is found.
        references: terminal states that each target is averaged over, by their posterior
            probability of having been noised into x_t; 0 uses x_t's own x_T alone. Unbiased (it
            is the expectation over which of them it was), and in few dimensions far less noisy.
            Beside posterior_steps, step t takes the share 1 - 1/ESS_t of its targets from these
            averages, ESS_t being the effective number of references there.
        refine_steps: above 0, the buffer is a persistent set of `capacity` equally weighted states
            instead: at every refresh `refresh_size` chain samples, drawn by weight, replace random
            ones, and all move by so many MALA steps. For targets that MCMC explores locally.
        first_anneal_steps: levels of annealed SMC from N(0, prior_std² I) that the first states
            come from; 0 takes draws of that Gaussian as they are. Resampling on the way gets the
            shares of modes right that MALA rarely moves between.
        first_refine_steps: MALA steps on the first states.
        posterior_steps: MALA steps on x_T given x_t that each target is averaged over; 0 uses
            x_t's own x_T alone. Unbiased too, in any dimension.
        max_drift: bound of the norm of ∇E/tau in these MALA proposals.
        targets: `both`, or `denoising` alone, which needs E itself and no gradient: where E jumps
            or ends at a wall, ∇E does not tell where the mass is, and its target is wrong. `auto`
            takes both unless weighted samples show that the density jumps
            (:class:`~vgs_rl.agents.value_gradient.continuity.ContinuityTest`), and says so.
    """

    divided: ClassVar[tuple[str, ...]] = (
        "batch_size",
        "refresh_size",
        "first_size",
        "capacity",
        "start_size",
    )

    batch_size: int = 2048
    refresh_every: int = 50
    refresh_size: int = 2048
    first_size: int = 8192
    first_range: float = 1.0
    capacity: int = 40_000
    least_ess: float = 0.1
    start_every: int = 5
    start_size: int = 16_384
    start_widening: float = 1.0
    references: int = 0
    refine_steps: int = 0
    first_anneal_steps: int = 0
    first_refine_steps: int = 0
    posterior_steps: int = 0
    max_drift: float = 100.0
    targets: Literal["auto", "both", "denoising"] = "auto"

    def __post_init__(self) -> None:
        require_at_least(
            "GradientMatching",
            1,
            batch_size=self.batch_size,
            refresh_every=self.refresh_every,
            refresh_size=self.refresh_size,
            first_size=self.first_size,
            first_range=self.first_range,
            capacity=self.capacity,
            start_every=self.start_every,
            start_size=self.start_size,
        )
        require_at_least(
            "GradientMatching",
            0,
            least_ess=self.least_ess,
            references=self.references,
            refine_steps=self.refine_steps,
            first_anneal_steps=self.first_anneal_steps,
            first_refine_steps=self.first_refine_steps,
            posterior_steps=self.posterior_steps,
        )
        require_positive("GradientMatching", max_drift=self.max_drift)
        if self.refine_steps and (self.first_range != 1 or self.start_widening != 1):
            raise ValueError(
                "GradientMatching.first_range and start_widening are of the weighted buffer and "
                f"must be 1 with refine_steps, got {self.first_range} and {self.start_widening}"
            )
        for name in ("first_anneal_steps", "first_refine_steps"):
            if getattr(self, name) and not self.refine_steps:
                raise ValueError(f"GradientMatching.{name} needs refine_steps above 0, got 0")
        if self.least_ess > 1:
            raise ValueError(f"GradientMatching.least_ess must be at most 1, got {self.least_ess}")
        if 0 < self.references < self.batch_size:
            raise ValueError(
                f"GradientMatching.references must be 0 or at least batch_size "
                f"{self.batch_size}, got {self.references}"
            )

    def build(self, agent: ValueGradientAgent) -> ValueLearner:
        """See :meth:`ValueObjective.build`.

        Raises:
            ValueError: on a sphere, with a start whose density is unknown, and where start_size
                cannot show a cluster's network every step.
        """
        from vgs_rl.agents.value_gradient.gradient_matching import GradientMatchingLearner

        return GradientMatchingLearner(self, agent)
