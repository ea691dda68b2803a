"""The energy-based model in the loop: a sampler follows an energy that learns from its samples.

Repeat: the sampler of negatives learns on E_theta as it is (an agent; Langevin has nothing to
learn); it draws x-, from starts at data x+ that the chain has noised; E_theta takes one step of
contrastive divergence (:mod:`vgs_rl.ebm.contrastive`), which also watches over divergence and
collapse.
Reference: Yoon et al., arXiv:2502.13280, the experiment on MVTec-AD.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from vgs_rl.agents.ebm.negatives import AgentNegatives, NegativesConfig, NoNegatives
from vgs_rl.chain import ScheduleConfig
from vgs_rl.checks import require_at_least, require_positive
from vgs_rl.ebm.contrastive import ContrastiveConfig, EnergyLearner
from vgs_rl.ebm.energies import MLPEnergyConfig
from vgs_rl.ebm.learned import EnergyConfig
from vgs_rl.fields import settle
from vgs_rl.files.restore import check_like, fitting, load_module
from vgs_rl.mdp import MDPConfig, SamplingMDP
from vgs_rl.starts import StartConfig
from vgs_rl.training.config import BudgetConfig, allow_subclasses
from vgs_rl.training.folder import RunFolder
from vgs_rl.training.loop import Checkpoints, Counters, Loop, Recording, Scalars

allow_subclasses(EnergyConfig, NegativesConfig)


def _data_noised() -> MDPConfig:
    """The published chain on the sphere, with a = 1."""
    schedule = ScheduleConfig(kind="constant", first=1e-3)
    start = StartConfig(kind="data")
    return MDPConfig(chain="ve", num_steps=10, schedule=schedule, start=start)


@dataclass(kw_only=True)
class EBMConfig:
    """An energy-based model and how it learns.

    Args:
        energy: what E is: `class_path` of an :class:`~vgs_rl.ebm.learned.EnergyConfig`.
        on_sphere: whether data are unit vectors, and the sampler moves on the unit sphere.
        mdp: how a negative moves; `start.kind: data` begins at data noised by the chain.
        negatives: who samples: `AgentNegatives` (any agent), `LangevinNegatives`, or
            `NoNegatives`, which leaves the contrast out: E learns by its own loss alone.
        learner: how E learns.
        pretrain_steps: steps on the energy's own loss before the loop (autoencoders).
        pretrain_lr: their learning rate.
        warmup: the agent's updates on the first energy before that learns.
        agent_updates: the agent's updates whenever it is its turn.
        energy_updates: the energy's updates, each on new negatives, until it is the agent's turn
            again; above 1 where an update of the agent is a whole iteration of a library.
    """

    energy: EnergyConfig = field(default_factory=MLPEnergyConfig)
    on_sphere: bool = False
    mdp: MDPConfig = field(default_factory=_data_noised)
    negatives: NegativesConfig = field(default_factory=AgentNegatives)
    learner: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    pretrain_steps: int = 0
    pretrain_lr: float = 1e-3
    warmup: int = 0
    agent_updates: int = 2
    energy_updates: int = 1

    def __post_init__(self) -> None:
        settle(self, "ebm")
        for name in ("pretrain_steps", "warmup", "agent_updates"):
            require_at_least("ebm", 0, **{name: getattr(self, name)})
        require_at_least("ebm", 1, energy_updates=self.energy_updates)
        require_positive("ebm", pretrain_lr=self.pretrain_lr)


class EBMTrainer:
    """Alternates the sampler's and the energy's updates.

    Attributes:
        energy: E, trained in place.
        mdp: what the sampler moves in; environments may share it and see E change.
        negatives: the sampler.
        learner: E's optimiser, replay and guards.
        counters: updates of E; transitions and evaluations of everything together.
        drawn: the last update's new negatives, shape (M, D); empty before the first.

    Args:
        data: what E learns, shape (N, D); unit vectors if `on_sphere`.
        config: energy, chain, sampler, schedule.
        seed: of everything.
        device: where all of it lives.

    Raises:
        ValueError: if the parts do not fit each other, naming the field.

    Example:
        >>> data = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> trainer = EBMTrainer(data, EBMConfig())
        >>> trainer.learn(BudgetConfig(updates=3), progress_bar=False)
        True
        >>> trainer.score(data).shape
        torch.Size([200])
    """

    SCORE_ROWS = 16_384

    def __init__(
        self,
        data: Tensor,
        config: EBMConfig | None = None,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if data.ndim != 2:
            raise ValueError(f"data must have shape (N, D), got {tuple(data.shape)}")
        self.config = config = config or EBMConfig()
        self.energy = config.energy.build(data.shape[1], on_sphere=config.on_sphere, seed=seed)
        self.energy.to(device)
        self.energy.attach(data)
        self.mdp = SamplingMDP(self.energy, config.mdp, device=device)
        self.negatives = config.negatives.build(self.mdp, seed=seed + 1)
        self.learner = EnergyLearner(self.energy, config.learner, seed=seed + 2)
        self.counters = Counters()
        self.drawn = self.learner.data[:0]
        self._prepared = False

    def learn(
        self,
        budget: BudgetConfig,
        *,
        folder: RunFolder | None = None,
        log_every: int = 50,
        save_every: int = 500,
        save_seconds: float = 60.0,
        progress_bar: bool = True,
        callback: Callable[[EBMTrainer], bool | None] | None = None,
    ) -> bool:
        """Trains until the budget is used up, Ctrl-C is pressed or `callback` returns False.

        What comes before the first update (pre-training, warm-up) is one piece: stopped within it,
        training begins again from the start.

        Args:
            budget: when to stop; counts include what an earlier call used, updates are E's.
            folder: where to write records and checkpoints; None writes nothing.
            log_every: updates between scalar records.
            save_every: updates between checkpoints; there is one before the first, too.
            save_seconds: most seconds between checkpoints.
            progress_bar: whether to show one.
            callback: called after every update.

        Returns:
            Whether the budget was used up.
        """
        checkpoints = Checkpoints(folder, self.state_dict, save_seconds)
        with Loop(self, budget, progress_bar=progress_bar) as loop:

            def show(values: dict[str, float]) -> None:
                shown = values.get("train/energy_gap", values["train/ebm_loss"])
                loop.shown["gap or loss"] = f"{shown:.3g}"

            def save(scalars: Scalars) -> None:
                if self.counters.updates % save_every == 0:
                    checkpoints.save()

            if not self._prepared:
                checkpoints.save()
                if not self._prepare(loop.interrupted):
                    return False
                checkpoints.save()
            finished = loop.run(
                [
                    Recording(folder, self, log_every, show),
                    lambda scalars: None if callback is None else callback(self),
                    save,
                    checkpoints,
                ]
            )
            checkpoints.save()
            return finished and not loop.interrupted()

    def update(self) -> dict[str, Tensor]:
        """One update of E on new negatives, after the sampler's own where it is its turn."""
        if not self._prepared:
            self._prepare()
        scalars: dict[str, Tensor] = {}
        if self.counters.updates % self.config.energy_updates == 0:
            scalars = self.negatives.train(self.config.agent_updates)
        if isinstance(self.config.negatives, NoNegatives):
            scalars = self.learner.update_alone()
        else:
            self.drawn = self.negatives.draw(self.config.learner.fresh)
            scalars = scalars | self.learner.update(self.drawn)
        if self.learner.take_restart():
            self.negatives.restart()
        used = self.negatives.counters
        self.counters.updates = self.learner.counters.updates
        self.counters.env_steps = used.env_steps
        self.counters.energy_evaluations = (
            used.energy_evaluations + self.learner.counters.energy_evaluations
        )
        return {
            **scalars,
            "train/restarts": torch.tensor(used.restarts),
            "time/energy_evaluations_negatives": torch.tensor(used.energy_evaluations),
            "time/energy_evaluations_ebm": torch.tensor(self.learner.counters.energy_evaluations),
        }

    def _prepare(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """What comes before the loop, once; False if it was to stop within it."""
        config = self.config
        if config.pretrain_steps:
            self.learner.pretrain(config.pretrain_steps, config.pretrain_lr, stop)
        if stop():
            return False
        self.negatives.train(config.warmup)
        self._prepared = True
        return True

    @torch.no_grad()
    def score(self, x: Tensor) -> Tensor:
        """E(x) of states x (B, D), shape (B,), on their device: high where they are unlike data."""
        parts = x.to(self.mdp.device, self.mdp.dtype).split(self.SCORE_ROWS)
        return torch.cat([self.energy(part) for part in parts]).to(x.device)

    def state_dict(self) -> dict[str, Any]:
        """Both networks and all that training needs to go on exactly where it is, but the data."""
        return {
            "counters": asdict(self.counters),
            "prepared": self._prepared,
            "mdp": self.mdp.state_dict(),
            "negatives": self.negatives.state_dict(),
            "learner": self.learner.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            ValueError: if the state belongs to another configuration.
        """
        expected = {"counters", "prepared", "mdp", "negatives", "learner"}
        missing = expected - set(state)
        if missing:
            raise ValueError(f"the checkpoint lacks {', '.join(sorted(missing))}: another agent's?")
        with fitting():
            check_like(state["counters"], asdict(self.counters), "counters")
            check_like(state["prepared"], self._prepared, "prepared")
            self.learner.load_state_dict(state["learner"])
            load_module(self.mdp, state["mdp"], "mdp")
            self.negatives.load_state_dict(state["negatives"])
        self.counters, self._prepared = Counters(**state["counters"]), state["prepared"]
