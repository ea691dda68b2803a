"""What passes between policy and MDP: the policies' faces, states, transitions, rollouts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

Policy = Callable[[Tensor, int], Tensor]
"""The control: maps states (B, D) at step t to u of shape (B, D)."""


class KernelPolicy(ABC):
    """A stochastic policy that is the sampling kernel: it draws v_t, and the MDP adds no noise.

    Called like any :data:`Policy` it returns the mean push, for pictures.

    Attributes:
        tangent: whether v lies within the linear space of the states, and its density is that in
            the space's own dimensions. Else the space must be all of R^D.
    """

    tangent: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, x: Tensor, t: int) -> Tensor:
        """The mean of v at states x (B, D), or its best-known centre; shape (B, D)."""

    @abstractmethod
    def draw(self, x: Tensor, t: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws v, shape (B, D), with its exact log-density, shape (B,)."""

    @abstractmethod
    def log_density(self, v: Tensor, x: Tensor, t: int) -> Tensor:
        """Log pi(v | x, t) for v and x of shape (B, D); -inf where v cannot be drawn; (B,)."""


class State(NamedTuple):
    """Where a batch is: x of shape (B, D); t one step for all, or one per row, shape (B,)."""

    x: Tensor
    t: int | Tensor


class Transition(NamedTuple):
    """What one step returns: the next state, its cost (B,) and its log-ratio (B,)."""

    state: State
    cost: Tensor
    log_ratio: Tensor


class Rollout(NamedTuple):
    """Whole episodes.

    Attributes:
        x: terminal states x_T, shape (B, D).
        log_weight: log w, shape (B,); without -log pi_0(x_0) where the start has no density.
        cost: summed cost (minus the return), shape (B,).
        energy: E(x_T), shape (B,).
        states: x_0 … x_T, shape (T + 1, B, D), if asked for.
        gradient: ∇E(x_T), shape (B, D), if asked for.
    """

    x: Tensor
    log_weight: Tensor
    cost: Tensor
    energy: Tensor
    states: Tensor | None
    gradient: Tensor | None = None


class CoordinateMap(Protocol):
    """A change of coordinates, from the z of a chain to the x of the target that is sampled."""

    def to_x(self, z: Tensor) -> Tensor:
        """X (B, D_x) of z (B, D_z)."""

    def to_z(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Z (B, D_z) of x (B, D_x); the generator chooses one of many."""
