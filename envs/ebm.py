"""Environments whose energy is a trainable network, which changes while agents act in them.

They are the :class:`~vgs_rl.envs.sampling.SamplingEnv` and its vector form in all but the energy:
rewards and metrics are those of the energy as it is at the step that ends an episode. It changes
in one of two ways. Whoever trains it (`vgs_rl.agents.EBMTrainer`) shares the environment's MDP, or
hands its parameters over (`update_energy`). Or the environment trains it itself, with `learner`:
terminal states are negatives, and as soon as there are enough of them the energy takes a step of
contrastive divergence. Any agent of any library that acts here then samples for an energy-based
model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from vgs_rl.checks import one_line
from vgs_rl.ebm.contrastive import ContrastiveConfig, EnergyLearner
from vgs_rl.ebm.energies import AutoencoderEnergy
from vgs_rl.ebm.learned import LearnedEnergy
from vgs_rl.energy import Energy
from vgs_rl.envs.sampling import SamplingEnv
from vgs_rl.envs.vector import SamplingVectorEnv
from vgs_rl.mdp import SamplingMDP


def digits_energy(
    hidden: tuple[int, ...] = (256, 256), latent: int = 16, seed: int = 0
) -> AutoencoderEnergy:
    """An untrained autoencoder energy of scikit-learn's digits, 1,797 unit vectors in R^64.

    Args:
        hidden: units of the encoder's hidden layers.
        latent: dimension of the latent.
        seed: initialises the weights.
    """
    from sklearn.datasets import load_digits

    pixels = torch.as_tensor(load_digits().data, dtype=torch.float32)
    energy = AutoencoderEnergy(pixels.shape[1], hidden=hidden, latent=latent, seed=seed)
    energy.attach(energy.geometry.project(pixels))
    return energy


class TerminalLearner:
    """Trains a learned energy on terminal states, as they come.

    Attributes:
        learner: the energy's optimiser, replay and guards.
        scalars: of the last update, to log.

    Args:
        energy: with its data attached.
        config: how it learns.
        seed: seeds the choice of data rows.
    """

    def __init__(self, energy: LearnedEnergy, config: ContrastiveConfig, *, seed: int) -> None:
        self.learner = EnergyLearner(energy, config, seed=seed)
        self.scalars: dict[str, Tensor] = {}
        self._waiting = self.learner.data[:0]

    def add(self, x: Tensor) -> None:
        """Takes terminal states (B, D), and updates the energy for every batch that is complete."""
        fresh = self.learner.config.fresh
        self._waiting = torch.cat([self._waiting, x.detach().to(self._waiting)])
        while len(self._waiting) >= fresh:
            negatives, self._waiting = self._waiting.split([fresh, len(self._waiting) - fresh])
            with torch.enable_grad():
                self.scalars = self.learner.update(negatives)

    def state_dict(self) -> dict[str, Any]:
        """The learner's, and the states that wait."""
        return {"learner": self.learner.state_dict(), "waiting": self._waiting}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self.learner.load_state_dict(state["learner"])
        self._waiting = state["waiting"].clone()


class _LearnedTarget:
    """What both environments share: the energy of their MDP, and who trains it."""

    mdp: SamplingMDP
    learner: TerminalLearner | None

    @property
    def energy(self) -> LearnedEnergy:
        """The energy as it is now."""
        energy = self.mdp.energy
        if not isinstance(energy, LearnedEnergy):
            raise TypeError(f"target must be a LearnedEnergy, got {type(energy).__name__}")
        return energy

    def update_energy(self, parameters: Mapping[str, Tensor]) -> None:
        """Gives the energy new parameters, another's `state_dict`, also amid an episode.

        Raises:
            ValueError: if they belong to another network; nothing has changed then.
        """
        # torch's load_state_dict copies what fits before it raises.
        wanted, got = (
            {name: tuple(getattr(value, "shape", ())) for name, value in tensors.items()}
            for tensors in (self.energy.state_dict(), parameters)
        )
        wrong = [n for n in wanted.keys() | got.keys() if wanted.get(n) != got.get(n)]
        if wrong:
            n = min(wrong)
            raise ValueError(
                f"parameters do not fit {type(self.energy).__name__}: {n} must have shape "
                f"{wanted.get(n, 'none, it is unknown')}, got {got.get(n, 'none, it is missing')}"
            )
        self.energy.load_state_dict(dict(parameters))

    def _make_learner(self, config: ContrastiveConfig | None, seed: int) -> None:
        energy = self.energy
        self.learner = None if config is None else TerminalLearner(energy, config, seed=seed)

    def _finished(self, x: Tensor, ended: NDArray[Any]) -> None:
        if self.learner is not None:
            self.learner.add(x[torch.from_numpy(ended).to(x.device)])


class EBMEnv(_LearnedTarget, SamplingEnv):
    """One negative on its way from noised data to an energy that learns.

    Attributes:
        learner: what trains the energy on terminal states, or None.

    Args:
        target: as :class:`SamplingEnv`'s; its energy must be a
            :class:`~vgs_rl.ebm.learned.LearnedEnergy`.
        learner: lets the environment train its energy on terminal states; None leaves the energy
            to others. Guards act but for restarts, which are the agent's: `take_restart` asks.
        learner_seed: seeds the choice of data rows.
        options: those of :class:`SamplingEnv`.

    Raises:
        TypeError: if the energy is not a learned one.
        ValueError: if it has no data, but `learner` is given.

    Example:
        >>> import gymnasium, vgs_rl.envs
        >>> env = gymnasium.make("vgs_rl/EBMDigits-v0")
        >>> env.reset(seed=0)[0].shape
        (65,)
    """

    def __init__(
        self,
        target: str | Energy | SamplingMDP,
        *,
        learner: ContrastiveConfig | None = None,
        learner_seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(target, **options)
        self._make_learner(learner, learner_seed)


class EBMVectorEnv(_LearnedTarget, SamplingVectorEnv):
    """A batch of negatives on their way to an energy that learns: one batched step, never a loop.

    Attributes:
        learner: what trains the energy on terminal states, or None.

    Args:
        target: as :class:`SamplingVectorEnv`'s; its energy must be a
            :class:`~vgs_rl.ebm.learned.LearnedEnergy`.
        learner: as :class:`EBMEnv`'s.
        learner_seed: seeds the choice of data rows.
        options: those of :class:`SamplingVectorEnv`.

    Raises:
        TypeError: if the energy is not a learned one.
        ValueError: if it has no data, but `learner` is given.

    Example:
        >>> import gymnasium, vgs_rl.envs
        >>> from vgs_rl.ebm.contrastive import ContrastiveConfig
        >>> learner = ContrastiveConfig(batch_size=64)
        >>> envs = gymnasium.make_vec("vgs_rl/EBMDigits-v0", num_envs=64, learner=learner)
        >>> observations, infos = envs.reset(seed=0)
        >>> for _ in range(10):
        ...     step = envs.step(0 * envs.action_space.sample())
        >>> envs.unwrapped.learner.learner.counters.updates
        1
    """

    def __init__(
        self,
        target: str | Energy | SamplingMDP,
        *,
        learner: ContrastiveConfig | None = None,
        learner_seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(target, **options)
        self._make_learner(learner, learner_seed)

    def state_dict(self) -> dict[str, Any]:
        """The episodes in flight, the generator, and the energy with all that trains it."""
        energy = self.energy.state_dict() if self.learner is None else self.learner.state_dict()
        return super().state_dict() | {"energy": energy}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`; no reset is needed.

        Raises:
            ValueError: if the state is of another environment; nothing has changed then.
        """
        if not isinstance(state, dict) or "energy" not in state:
            raise ValueError("state must hold 'energy', the state of the energy, got none")
        episodes = {name: value for name, value in state.items() if name != "energy"}
        self._episodes.require_loadable(episodes)
        if self.learner is None:
            self.update_energy(state["energy"])
        else:
            self._load_learner(self.learner, state["energy"])
        super().load_state_dict(episodes)

    @staticmethod
    def _load_learner(learner: TerminalLearner, state: Any) -> None:
        before = copy.deepcopy(learner.state_dict())
        try:
            learner.load_state_dict(state)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            learner.load_state_dict(before)
            reason = one_line(error)
            raise ValueError(f"state['energy'] is not of this learner: {reason}") from error
