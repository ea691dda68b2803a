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


class _Step(NamedTuple):
    """Constants of one step, of the MDP's transition."""

    rho: float
    a: float
    sigma: float
    cost: float
    log_ratio: float


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
        # Of one row, x and what log w gained may be NumPy's and Python's until they are asked for.
        self._array: Array | None = None
        self._gained = 0.0
        self._x: Tensor
        self._log_weight: Tensor
        self.x = torch.zeros(n, mdp.dim, device=mdp.device, dtype=mdp.dtype)
        self.log_weight = torch.zeros(n, device=mdp.device, dtype=mdp.dtype)
        self.t: int | Array = -1
        euclidean = mdp.geometry.linear and mdp.effective_dim == mdp.dim
        self.alone = n == 1 and noise and euclidean and mdp.device.type == "cpu"
        self._eps, self._last = torch.empty(1, mdp.dim, dtype=mdp.dtype), mdp.num_steps
        self._steps: tuple[object, list[_Step]] = (None, [])

    @property
    def x(self) -> Tensor:
        """x_t, shape (n, D)."""
        if self._array is not None:
            self._x, self._array = torch.from_numpy(self._array), None
        return self._x

    @x.setter
    def x(self, x: Tensor) -> None:
        self._x, self._array = x, None

    @property
    def log_weight(self) -> Tensor:
        """Log w so far, shape (n,)."""
        if self._gained:
            self._log_weight, self._gained = self._log_weight + self._gained, 0.0
        return self._log_weight

    @log_weight.setter
    def log_weight(self, log_weight: Tensor) -> None:
        self._log_weight, self._gained = log_weight, 0.0

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
        x = self.x.cpu().numpy() if self._array is None else self._array
        if self.mdp.dim <= 4:  # NumPy copies a few columns faster than many short rows
            for i in range(self.mdp.dim):
                observation[:, i] = x[:, i]
        else:
            observation[:, :-1] = x
        observation[:, -1] = self.t / self.mdp.num_steps
        return observation

    def checked(self, actions: Any, name: str, shape: tuple[int, ...]) -> Array:
        """The actions, float32, shape (n, D); they may share the array's memory."""
        array = np.asarray(actions, np.float32, order="C")
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
        return array.reshape(self.n, -1)

    def control(self, actions: Any, name: str, shape: tuple[int, ...]) -> Tensor:
        """As :meth:`checked`, in the MDP's type and on its device; what never moves gets none."""
        control = torch.from_numpy(np.require(self.checked(actions, name, shape), None, ["W"]))
        control = control.to(self.mdp.device, self.mdp.dtype)
        still = self.mdp.dim - self.mdp.geometry.moving
        return pad(control, (0, still)) if still else control

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

    def step_alone(self, action: Array) -> tuple[float, Tensor | None]:
        """One row's step on NumPy's numbers, where a tensor of one costs more than its arithmetic.

        The noise is that of :meth:`step`; numbers agree with it but for rounding.

        Args:
            action: as :meth:`checked` returned it, shape (1, D).

        Returns:
            The reward, and E(x_T) at the end of the episode.

        Raises:
            ValueError: as :meth:`step`.
        """
        mdp, t = self.mdp, self.t
        assert isinstance(t, int)
        here = self._constants()[t]
        eps = self._eps.normal_(generator=self.generator).numpy()
        before = self._x.numpy() if self._array is None else self._array
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
            push = here.rho * eps + action
            x = here.sigma * push + here.a * before
            cost = mdp.temperature * (0.5 * float(np.vdot(action, action)) + here.cost)
            ratio = 0.5 * float(np.vdot(eps, eps) - np.vdot(push, push)) + here.log_ratio
        energy = None
        if t + 1 == self._last:
            with torch.no_grad():
                energy = mdp.evaluate_energy(torch.from_numpy(x))
            cost += float(rewarded_energy(energy, mdp.temperature))
            ratio -= float(energy) / mdp.temperature
        if not math.isfinite(cost):
            self._require_usable(np.array([-cost]), torch.from_numpy(action), energy)
        self._array, self._gained, self.t = x, self._gained + ratio, t + 1
        return -cost, energy

    def _constants(self) -> list[_Step]:
        """What :meth:`step_alone` needs of each step, made again when rho_t has changed."""
        rho = self.mdp._buffers["rho"]  # an attribute of a module takes longer
        assert rho is not None
        made_of = (id(rho), rho._version)
        if self._steps[0] != made_of:
            mdp = self.mdp
            rho, chain, dim = rho.double(), mdp.chain, mdp.effective_dim
            ratio = dim * (chain.log_a.double() + rho.log())
            columns = (rho, chain.a, chain.sigma, 0.5 * dim * (rho.square() - 1) - ratio, ratio)
            rows = zip(*(column.tolist() for column in columns), strict=True)
            self._steps = (made_of, [_Step(*row) for row in rows])
        return self._steps[1]

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
