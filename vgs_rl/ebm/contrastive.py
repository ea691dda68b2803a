"""Contrastive divergence: an energy goes down at data and up where a sampler's states are.

loss = mean(e+) - mean(e-) + gamma (mean(e+²) + mean(e-²)),  e = E/D, D the space's dimension;
its gradient without the regulariser is that of the log-likelihood, as far as the negatives are
samples of exp(-E/tau). The regulariser bounds the gap: its minimum is at e± = ∓1/(2 gamma).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vgs_rl.checks import require_at_least, require_positive, seed_of
from vgs_rl.ebm.learned import LearnedEnergy
from vgs_rl.fields import settle
from vgs_rl.files.restore import (
    check_like,
    check_optimizer,
    check_rows,
    load_generator,
    load_module,
    load_optimizer,
)
from vgs_rl.training.optim import Tally, guarded_step

# Smaller differences between energies than this, relative to their size, are rounding.
SAME_ENERGY = 1e-6


@dataclass(kw_only=True)
class ContrastiveConfig:
    """How the energy learns, and what happens when it diverges.

    Three guards. A step whose gradient is not finite or longer than `max_gradient_norm` is skipped
    (on the device, without a host round trip). Every `guard_every` updates the host looks: a gap
    |mean e- - mean e+| above `max_gap`, a metric that is not finite, or nothing but skipped steps
    means explosion: energy and optimiser go back to the last good state, the learning rate is
    halved, the replay is emptied and the negatives restart. Negatives in one place (spread below
    `min_std` of the data's), or all of one energy, mean collapse: the replay is emptied and the
    negatives restart. Everything is counted.

    Args:
        batch_size: data rows, and negatives, of an update.
        lr: Adam's learning rate.
        gamma: weight of the regulariser; 0 leaves it out.
        data_noise: standard deviation per coordinate of noise on the data rows of an update: few
            data are else learned by heart. The energy's own loss gets none.
        replay_size: past negatives that are kept, the oldest go first.
        replay_fraction: part of each update's negatives that comes from them.
        clip_norm: bound of the gradient's norm; None leaves it.
        max_gradient_norm: steps whose gradient has a larger norm are skipped.
        max_gap: a larger |mean e- - mean e+| means explosion; the regulariser alone keeps the gap
            below 1/gamma.
        min_std: negatives whose spread is below this multiple of the data's have collapsed; the
            spread is the root of the summed variances.
        guard_every: updates between the host's looks.
    """

    changeable: ClassVar[tuple[str, ...]] = ("lr",)

    batch_size: int = 256
    lr: float = 1e-3
    gamma: float = 1.0
    data_noise: float = 0.0
    replay_size: int = 0
    replay_fraction: float = 0.0
    clip_norm: float | None = None
    max_gradient_norm: float = 1e3
    max_gap: float = 20.0
    min_std: float = 0.01
    guard_every: int = 10

    def __post_init__(self) -> None:
        settle(self, "learner")
        require_at_least("learner", 2, batch_size=self.batch_size)
        require_at_least("learner", 1, guard_every=self.guard_every)
        for name in ("gamma", "data_noise", "replay_size", "min_std"):
            require_at_least("learner", 0, **{name: getattr(self, name)})
        for name in ("lr", "max_gradient_norm", "max_gap"):
            require_positive("learner", **{name: getattr(self, name)})
        if self.clip_norm is not None:
            require_positive("learner", clip_norm=self.clip_norm)
        if not 0 <= self.replay_fraction < 1:
            raise ValueError(
                f"learner.replay_fraction must be in [0, 1), got {self.replay_fraction}"
            )
        if self.replay_fraction and not self.replay_size:
            raise ValueError("learner.replay_fraction needs a replay_size of at least 1, got 0")

    @property
    def fresh(self) -> int:
        """New negatives that an update needs."""
        return self.batch_size - int(self.replay_fraction * self.batch_size)


@dataclass(kw_only=True)
class LearnerCounters:
    """What the learner has done: updates, evaluated states, and what its guards did."""

    updates: int = 0
    energy_evaluations: int = 0
    rollbacks: int = 0
    collapses: int = 0


def contrastive_loss(
    data: Tensor, negatives: Tensor, gamma: float, present: Tensor | None = None
) -> Tensor:
    """mean(e+) - mean(e-) + gamma (mean(e+²) + mean(e-²)), a scalar.

    Args:
        data: e+ = E(x+)/D, shape (B,).
        negatives: e- = E(x-)/D, shape (M,).
        gamma: weight of the regulariser.
        present: which negatives count, shape (M,); all by default.
    """
    if present is None:
        present = torch.ones_like(negatives, dtype=torch.bool)
    share = present / present.sum().clamp_min(1)
    away = (negatives * share).sum()
    size = data.square().mean() + (negatives.square() * share).sum()
    return data.mean() - away + gamma * size


class EnergyLearner:
    """Moves a :class:`~vgs_rl.ebm.learned.LearnedEnergy` by contrastive divergence, under guard.

    The energy is changed in place, so whoever samples it meanwhile follows.

    Attributes:
        energy: the energy.
        counters: updates, evaluations, rollbacks, collapses.
        lr: the current learning rate.

    Args:
        energy: with its data attached, on its device.
        config: loss, replay and guards.
        seed: seeds the choice of rows.

    Raises:
        ValueError: if the energy has no data.
    """

    def __init__(
        self, energy: LearnedEnergy, config: ContrastiveConfig | None = None, *, seed: int = 0
    ) -> None:
        if energy.data is None:
            raise ValueError(f"{type(energy).__name__} has no data to learn from: attach some")
        self.energy, self.config = energy, config or ContrastiveConfig()
        self.data = energy.data
        self.generator = torch.Generator(self.data.device).manual_seed(seed_of(seed))
        self.lr = self.config.lr
        self.optimizer = torch.optim.Adam(energy.parameters(), lr=self.lr, fused=True)
        self.counters = LearnerCounters()
        self.replay = self.data[:0]
        self._data_std = float(_spread(self.data))
        self._tally = Tally(self.data.device)
        self._lost = torch.zeros((), device=self.data.device)
        self._skipped_before = 0.0
        self._restart = False
        self._good = self._snapshot()

    # --- one update ---------------------------------------------------------------------------

    def rows(self, n: int) -> Tensor:
        """Random rows of the data, with replacement, shape (n, D)."""
        count, device = len(self.data), self.data.device
        return self.data[torch.randint(count, (n,), generator=self.generator, device=device)]

    def update(self, negatives: Tensor) -> dict[str, Tensor]:
        """One gradient step; returns scalars to log, as tensors.

        Args:
            negatives: the sampler's states, shape (M, D); rows that are not finite are left out
                and counted.
        """
        config = self.config
        x_data = self._noised(self.rows(config.batch_size))
        x = self._with_replay(negatives.detach())
        present = torch.isfinite(x).all(-1)
        x = torch.where(present.unsqueeze(-1), x, x_data[torch.arange(len(x)) % len(x_data)])
        energies = self.energy(torch.cat([x_data, x])) / self.energy.geometry.effective_dim
        self.counters.energy_evaluations += len(energies)
        data, away = energies.split([len(x_data), len(x)])
        loss = contrastive_loss(data, away, config.gamma, present)
        norm = self._step(loss, present)
        self._remember(negatives.detach())
        self.counters.updates += 1
        self._lost += (~present).sum()
        with torch.no_grad():
            gap = away.mean() - data.mean()
            fresh = len(negatives)  # the replay would hide a collapse
            spread = _spread(x[:fresh]) / self._data_std
            same = away[:fresh].std() <= SAME_ENERGY * away[:fresh].abs().max()
            if self.counters.updates % config.guard_every == 0:
                self._guard(torch.stack([gap, spread, same.to(gap), self._tally.skipped]))
        return {
            "train/ebm_loss": loss.detach(),
            "train/energy_gap": gap,
            "train/energy_data": data.detach().mean(),
            "train/energy_negatives": away.detach().mean(),
            "train/negatives_std": spread,
            "train/ebm_gradient_norm": norm,
            "train/ebm_learning_rate": torch.tensor(self.lr),
            "train/ebm_skipped_updates": self._tally.skipped,
            "train/lost_negatives": self._lost.clone(),
            "train/ebm_rollbacks": torch.tensor(self.counters.rollbacks),
            "train/collapses": torch.tensor(self.counters.collapses),
        }

    def update_alone(self) -> dict[str, Tensor]:
        """One gradient step on the energy's own `pretraining_loss`; returns scalars to log."""
        x = self.rows(self.config.batch_size)
        loss = self.energy.pretraining_loss(x)
        norm = self._step(loss, torch.ones(1, dtype=torch.bool, device=x.device))
        self.counters.updates += 1
        self.counters.energy_evaluations += len(x)
        return {
            "train/ebm_loss": loss.detach(),
            "train/ebm_gradient_norm": norm,
            "train/ebm_learning_rate": torch.tensor(self.lr),
            "train/ebm_skipped_updates": self._tally.skipped,
        }

    def _step(self, loss: Tensor, present: Tensor) -> Tensor:
        """Adam's step, or none; returns the gradient's norm."""
        return guarded_step(
            self.optimizer,
            loss,
            self._tally,
            clip_norm=self.config.clip_norm,
            max_norm=self.config.max_gradient_norm,
            wanted=present.any(),
        )

    def _noised(self, x: Tensor) -> Tensor:
        if not self.config.data_noise:
            return x
        noise = torch.randn(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)
        return self.energy.geometry.project(x + self.config.data_noise * noise)

    def _with_replay(self, negatives: Tensor) -> Tensor:
        wanted = self.config.batch_size - self.config.fresh
        if not wanted or not len(self.replay):
            return negatives
        rows = torch.randint(
            len(self.replay), (wanted,), generator=self.generator, device=self.replay.device
        )
        return torch.cat([negatives, self.replay[rows]])

    def _remember(self, negatives: Tensor) -> None:
        if self.config.replay_size:
            kept = torch.cat([self.replay, negatives])
            self.replay = kept[-self.config.replay_size :]

    def pretrain(self, steps: int, lr: float, stop: Callable[[], bool] = lambda: False) -> Tensor:
        """Gradient steps on the energy's own `pretraining_loss`; returns the last loss.

        Args:
            steps: their number.
            lr: Adam's learning rate.
            stop: asked before every step, whether to end here.
        """
        optimizer = torch.optim.Adam(self.energy.parameters(), lr=lr, fused=True)
        loss = torch.full((), torch.nan, device=self.data.device)
        for _ in range(steps):
            if stop():
                break
            loss = self.energy.pretraining_loss(self.rows(self.config.batch_size))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        self._good = self._snapshot()
        return loss.detach()

    # --- guards -------------------------------------------------------------------------------

    def _guard(self, metrics: Tensor) -> None:
        """The host's look: goes back after an explosion, asks for a restart after a collapse."""
        gap, spread, same, skipped = metrics.tolist()
        all_skipped = skipped - self._skipped_before >= self.config.guard_every
        self._skipped_before = skipped
        if not abs(gap) <= self.config.max_gap or all_skipped:  # NaN too
            self._roll_back()
        elif not spread >= self.config.min_std or same:
            self.counters.collapses += 1
            self._start_anew()
        else:
            self._good = self._snapshot()

    def _roll_back(self) -> None:
        self.counters.rollbacks += 1
        self.energy.load_state_dict(self._good["energy"])
        self.optimizer.load_state_dict(copy.deepcopy(self._good["optimizer"]))
        self._set_lr()
        self._start_anew()

    def _set_lr(self) -> None:
        """The configured learning rate, halved at every rollback."""
        self.lr = self.config.lr * 0.5**self.counters.rollbacks
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr

    def _start_anew(self) -> None:
        self.replay = self.data[:0]
        self._restart = True

    def take_restart(self) -> bool:
        """Whether the guards want the negatives to restart; asks once."""
        asked, self._restart = self._restart, False
        return asked

    def _snapshot(self) -> dict[str, Any]:
        weights = {name: value.clone() for name, value in self.energy.state_dict().items()}
        return {"energy": weights, "optimizer": copy.deepcopy(self.optimizer.state_dict())}

    # --- state --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Energy, optimiser, replay, generator, counters and the last good state."""
        return {
            "energy": self.energy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "good": self._good,
            "generator": self.generator.get_state(),
            "replay": self.replay,
            "counters": asdict(self.counters),
            "lr": self.lr,
            "skipped": self._tally.skipped,
            "skipped_before": self._skipped_before,
            "lost": self._lost,
            "restart": self._restart,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`; the data must be the same, it does not hold them.

        Raises:
            ValueError: if it is another energy's, or another configuration's.
        """
        moving = {"energy": {}, "optimizer": {}, "good": {}, "replay": self.replay[:0]}
        check_like(state, {**self.state_dict(), **moving}, "learner")
        good = state["good"]
        check_like(good, {"energy": self.energy.state_dict(), "optimizer": {}}, "learner.good")
        check_optimizer(self.optimizer, good["optimizer"], "learner.good.optimizer")
        check_rows(state, {"replay": 2}, "learner", width=self.data.shape[1])
        load_module(self.energy, state["energy"], "learner.energy")
        load_optimizer(self.optimizer, copy.deepcopy(state["optimizer"]), "learner.optimizer")
        load_generator(self.generator, state["generator"], "learner.generator")
        self._good = copy.deepcopy(state["good"])
        self.replay = state["replay"].clone()
        self.counters = LearnerCounters(**state["counters"])
        self._skipped_before = state["skipped_before"]
        self._set_lr()  # today's, which a resumed run may have changed
        self._tally.skipped, self._lost = state["skipped"].clone(), state["lost"].clone()
        self._restart = state["restart"]


def _spread(x: Tensor) -> Tensor:
    """Root of the summed variances of rows (B, D), a scalar."""
    return x.var(0).sum().sqrt()
