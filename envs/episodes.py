"""Episodes in flight: what both Gymnasium environments share. Arrays in, arrays out."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from vgs_rl.envs.observation import Observation
from vgs_rl.mdp import SamplingMDP
from vgs_rl.transitions import State

Array = NDArray[Any]

ENERGY_LIMIT = 1e6  # in units of tau: up to here the reward holds E as it is


class Outcome(NamedTuple):
    """One step of a batch: rewards (n,), episodes that ended (n,), and their metrics."""

    reward: Array
    ended: Array
    energy: Array | None
    log_weight: Array | None


class NoEpisode(ResetNeeded, ValueError):
    """Something was asked of episodes that have not begun or have ended."""


class Episodes:
    """N episodes in flight: x_t, t and log w so far.

    `t` is one integer while all rows agree, which spares the MDP its gather by row and the device
    a round trip; otherwise an array. It lives on the host; -1 marks rows that were never reset.
    Without `noise` the controls are the pushes of a stochastic policy, and log w lacks its
    density; without a density of the start it lacks that.
    """

    def __init__(
        self,
        mdp: SamplingMDP,
        n: int,
        observed: Observation | None = None,
        *,
        noise: bool = True,
    ) -> None:
        self.mdp, self.n, self.noise = mdp, n, noise
        self.observed = observed or Observation(mdp)
        self.generator: torch.Generator | None = None
        self.x = torch.zeros(n, mdp.dim, device=mdp.device, dtype=mdp.dtype)
        self.log_weight = torch.zeros(n, device=mdp.device, dtype=mdp.dtype)
        self.t: int | Array = -1

    def seed(self, np_random: np.random.Generator, anew: bool) -> None:
        """Seeds the tensor generator from Gymnasium's, if asked to or if there is none yet."""
        if anew or self.generator is None:
            self.generator = self.mdp.generator(int(np_random.integers(2**63 - 1)))

    def at(self, t: int) -> Array:
        """Which rows are at step t, shape (n,)."""
        return np.full(self.n, self.t == t) if isinstance(self.t, int) else self.t == t

    def any_at(self, t: int) -> bool:
        """Whether some row is at step t."""
        return self.t == t if isinstance(self.t, int) else bool((self.t == t).any())

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on.

        Raises:
            NoEpisode: before the first reset.
        """
        if self.generator is None:
            raise NoEpisode("state_dict needs a reset first: no episode has begun")
        t = self.t if isinstance(self.t, int) else torch.from_numpy(self.t.copy())
        state = {"x": self.x, "log_weight": self.log_weight, "t": t}
        return state | {"generator": self.generator.get_state(), "setting": self._setting}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            ValueError: if the state is of other episodes or damaged; nothing has changed then.
        """
        self.require_loadable(state)
        generator = torch.Generator(self.mdp.device)
        try:
            generator.set_state(state["generator"].cpu())
        except RuntimeError as error:
            raise ValueError(f"state['generator'] is no generator's state: {error}") from error
        self.generator = generator
        self.x, self.log_weight = (
            state[name].to(self.mdp.device, copy=True) for name in ("x", "log_weight")
        )
        t = state["t"]
        self.t = t if isinstance(t, int) else t.cpu().numpy().copy()

    def require_loadable(self, state: dict[str, Any]) -> None:
        """Raises a ValueError unless :meth:`load_state_dict` can restore this state."""
        keys = ["x", "log_weight", "t", "generator", "setting"]
        if not isinstance(state, dict) or sorted(state) != sorted(keys):
            got = sorted(state) if isinstance(state, dict) else type(state).__name__
            raise ValueError(f"state must hold {sorted(keys)}, got {got}")
        if state["setting"] != self._setting:
            raise ValueError(
                f"state must be of episodes with {self._setting}, got {state['setting']}"
            )
        t = state["t"]
        wanted = {"x": self.x, "log_weight": self.log_weight}
        if not isinstance(t, int):
            wanted["t"] = torch.zeros(self.n, dtype=torch.int64)
        wanted["generator"] = torch.Generator(self.mdp.device).get_state()
        for name, like in wanted.items():
            value = state[name]
            found = (
                (tuple(value.shape), value.dtype)
                if isinstance(value, Tensor)
                else type(value).__name__
            )
            if found != (tuple(like.shape), like.dtype):
                raise ValueError(
                    f"state[{name!r}] must be a tensor of shape {tuple(like.shape)} in "
                    f"{like.dtype}, got {found}"
                )
        steps = torch.as_tensor(t)
        if bool(((steps < -1) | (steps > self.mdp.num_steps)).any()):
            raise ValueError(
                f"state['t'] must be between -1 and num_steps = {self.mdp.num_steps}, got {t}"
            )

    @property
    def _setting(self) -> dict[str, Any]:
        """What a saved state must agree in."""
        return {
            "num_envs": self.n,
            "dim": self.mdp.dim,
            "num_steps": self.mdp.num_steps,
            "noise": self.noise,
        }

    def observation(self) -> Array:
        """The observation of every row, float32, shape (n, F): a new array."""
        if not self.observed.is_default:
            t = self.t if isinstance(self.t, int) else self._tensor(self.t)
            observed: Array = self.observed(self.x, t).detach().float().cpu().numpy()
            return observed
        observation = np.empty((self.n, self.mdp.dim + 1), np.float32)
        x = self.x.cpu().numpy()
        if self.mdp.dim <= 4:  # NumPy copies a few columns faster than many short rows
            for i in range(self.mdp.dim):
                observation[:, i] = x[:, i]
        else:
            observation[:, :-1] = x
        observation[:, -1] = self.t / self.mdp.num_steps
        return observation

    def control(self, actions: Any, name: str, shape: tuple[int, ...]) -> Tensor:
        """The actions, shape (n, D); they may share the array's memory."""
        array = np.require(actions, np.float32, ["C", "W"])
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
        moving = self.mdp.geometry.moving
        control = torch.from_numpy(array.reshape(self.n, moving))
        control = control.to(self.mdp.device, self.mdp.dtype)
        return control if moving == self.mdp.dim else pad(control, (0, self.mdp.dim - moving))

    @torch.no_grad()
    def reset(self, rows: Array | None = None, condition: Tensor | None = None) -> None:
        """Restarts all rows, or those of a mask; with parameters at a value, or random ones."""
        assert self.generator is not None
        if rows is None or rows.all():
            self.x, self.t = self.mdp.reset(self.n, self.generator, condition).x, 0
            self.log_weight = self.mdp.initial_log_weight(self.x)
            return
        index = self._index(rows)
        x = self.mdp.reset(len(index), self.generator, condition).x
        self.x = self.x.index_copy(0, index, x)
        self.log_weight = self.log_weight.index_copy(0, index, self.mdp.initial_log_weight(x))
        self._set_t(np.where(rows, 0, self.t))

    @torch.no_grad()
    def step(self, control: Tensor, rows: Array | None = None) -> Outcome:
        """Steps all rows, or those of a mask; the others keep their state and get reward 0.

        Raises:
            ValueError: on controls that are not finite or cost more than can be represented, and
                on energies that are NaN or -inf; the state is then as it was.
        """
        assert self.generator is not None
        if rows is not None:
            return self._step_some(control, rows)
        state = State(self.x, self.t if isinstance(self.t, int) else self._tensor(self.t))
        generator = self.generator if self.noise else None
        step, energy = self.mdp.step_with_energy(state, control, generator)
        cost = step.cost
        if energy is not None:
            cost = cost + rewarded_energy(energy, self.mdp.temperature)
        reward = cost.double().neg_().cpu().numpy()
        self._require_usable(reward, control, energy)
        self.x, self.log_weight = step.state.x, self.log_weight + step.log_ratio
        self.t = self.t + 1
        if energy is None or not self.any_at(self.mdp.num_steps):
            return Outcome(reward, np.zeros(self.n, np.bool_), None, None)
        ended = self.at(self.mdp.num_steps)
        return Outcome(reward, ended, _masked(energy, ended), _masked(self.log_weight, ended))

    def _step_some(self, control: Tensor, rows: Array) -> Outcome:
        index = self._index(rows)
        part = Episodes(self.mdp, len(index), self.observed, noise=self.noise)
        part.generator = self.generator
        part.x, part.log_weight = self.x[index], self.log_weight[index]
        t = np.broadcast_to(self.t, self.n)
        part._set_t(t[rows])
        outcome = part.step(control[index])
        self.x = self.x.index_copy(0, index, part.x)
        self.log_weight = self.log_weight.index_copy(0, index, part.log_weight)
        self._set_t(t + rows)

        def spread(values: Array) -> Array:
            full = np.zeros(self.n, values.dtype)
            full[rows] = values
            return full

        energy, log_weight = outcome.energy, outcome.log_weight
        return Outcome(
            spread(outcome.reward),
            spread(outcome.ended),
            None if energy is None else spread(energy),
            None if log_weight is None else spread(log_weight),
        )

    def _index(self, rows: Array) -> Tensor:
        return self._tensor(np.flatnonzero(rows))

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(array).to(self.mdp.device)

    def _set_t(self, t: Array) -> None:
        first = int(t[0])
        self.t = first if bool((t == first).all()) else t.astype(np.int64)

    def _require_usable(self, reward: Array, control: Tensor, energy: Tensor | None) -> None:
        if math.isfinite(float(reward.sum())):  # the usual case, at the price of one sum
            return
        wrong = int((~torch.isfinite(control)).any(-1).sum())
        if wrong:
            raise ValueError(f"actions must be finite, got NaN or infinity in {wrong} of {self.n}")
        name = type(self.mdp.energy).__name__
        if energy is not None:
            for value, bad in (("NaN", energy.isnan()), ("-inf", energy.isneginf())):
                if bool(bad.any()):
                    raise ValueError(
                        f"{name}.energy returned {value} on {int(bad.sum())} of {self.n} terminal "
                        "states"
                    )
        largest = float(control.abs().max())
        raise ValueError(f"actions must be small enough to have a finite cost, got {largest:g}")


def rewarded_energy(energy: Tensor, temperature: float) -> Tensor:
    """What enters the reward for E(x_T): E itself up to c = 10^6 tau, then c (1 + log(E / c)).

    So rewards are finite whatever the actions were, at most 10^8 tau in size, and still the
    smaller the larger E is. States up there have weight 0, and float32 energies of that size are
    no longer exact to a tenth of tau. Where noise may put two particles onto each other, the
    expectation of E itself does not even exist.
    """
    limit = ENERGY_LIMIT * temperature
    beyond = (energy / limit).clamp(1.0, torch.finfo(energy.dtype).max)
    return energy.clamp_max(limit) + limit * beyond.log()


def _masked(values: Tensor, mask: Array) -> Array:
    """A float64 copy of shape (n,), zero outside the mask."""
    array: Array = np.where(mask, values.double().cpu().numpy(), 0.0)
    return array
