"""Conditional energies E(x; c), and how a chain sees them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from vgs_rl.conditional.conditions import ConditionLike, Conditions, check_range
from vgs_rl.energy import Energy, Split
from vgs_rl.geometry import Conditioned, Euclidean, Geometry

TEMPERATURE = "temperature"


class ConditionalEnergy(nn.Module, ABC):
    """Base class of energies with parameters: p(x; c) = exp(-E(x; c)) / Z(c).

    A subclass sets ``dim`` and ``ranges`` and writes :meth:`energy`. It may write the rest, as in
    :class:`~vgs_rl.Energy`; samples and log Z at a value of c switch on the metrics there.

    Attributes:
        dim: D of a state x.
        ranges: lower and upper end of each parameter, by name.
        logarithmic: names of the parameters whose scale is logarithmic.
        thread_safe: whether several threads may call E at once.
        dtype: floating type that E computes in, or None where it accepts any.

    Example:
        >>> class Wells(ConditionalEnergy):
        ...     dim = 1
        ...     ranges = {"barrier": (0.5, 3.0)}
        ...     def energy(self, x, c):
        ...         return c[:, 0] * (x[:, 0] ** 2 - 1) ** 2
        >>> Wells().at(2.0)(torch.zeros(3, 1))
        tensor([2., 2., 2.])
    """

    dim: int
    ranges: Mapping[str, Sequence[float]]
    logarithmic: Collection[str] = ()
    thread_safe: bool = False
    dtype: torch.dtype | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute, but none that would hide a method of this class."""
        if isinstance(vars(ConditionalEnergy).get(name), FunctionType | property):
            raise ValueError(
                f"{type(self).__name__}.{name} cannot hold this: the name is taken by "
                "vgs_rl.ConditionalEnergy; parameters are declared by `ranges`"
            )
        super().__setattr__(name, value)

    @property
    def called(self) -> str:
        """Its name in messages."""
        return type(self).__name__

    @abstractmethod
    def energy(self, x: Tensor, c: Tensor) -> Tensor:
        """E(x; c) for states (B, D) and values of the parameters (B, C): shape (B,)."""

    def energy_and_gradient(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """E(x; c), shape (B,), and its gradient by x, shape (B, D), both detached."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            energy = self.energy(leaf, c.detach())
            if not energy.requires_grad:
                raise ValueError(
                    f"{type(self).__name__}.energy hides its gradient from autograd: write "
                    "energy_and_gradient(x, c), or energy(x, c) in torch operations"
                )
            (gradient,) = torch.autograd.grad(energy.sum(), leaf)
        return energy.detach(), gradient

    @property
    def geometry(self) -> Geometry:
        """The space that x lives on: R^D."""
        return Euclidean(self.dim)

    @property
    def gradient_evaluations(self) -> int:
        """At how many states E is evaluated for E and its gradient at one."""
        return 1

    @property
    def conditions(self) -> Conditions:
        """The parameters."""
        return Conditions(self.ranges, self.logarithmic)

    @property
    def default(self) -> Tensor:
        """The value of c that is evaluated where none is named, shape (C,): mid-range."""
        return self.conditions.at_unit(torch.zeros(1, self.conditions.size)).double()[0]

    @property
    def can_sample(self) -> bool:
        """Whether :meth:`sample` draws exact samples."""
        return type(self).sample is not ConditionalEnergy.sample

    def can_sample_at(self, c: Tensor) -> bool:
        """Whether :meth:`sample` draws them at one value c (C,) in reasonable time."""
        return self.can_sample

    def sample(self, n: int, c: Tensor, generator: torch.Generator) -> Tensor:
        """Exact, independent samples of p(x; c) at one value c (C,): shape (n, D).

        Raises:
            NotImplementedError: if there is no exact sampler.
        """
        raise NotImplementedError(f"{type(self).__name__} has no exact sampler")

    def log_z(self, c: Tensor) -> float | None:
        """Log Z(c) at one value c (C,), or None where it is not known."""
        return None

    def at(self, condition: ConditionLike) -> Energy:
        """The energy of one value of the parameters.

        Raises:
            ValueError: if it is out of range, naming the parameter.
        """
        return EnergyAt(self, self.conditions.tensor(condition))


class EnergyAt(Energy):
    """E(x; c) at one value of c.

    Args:
        conditional: the energy.
        condition: c, shape (C,).
    """

    condition: Tensor

    def __init__(self, conditional: ConditionalEnergy, condition: Tensor) -> None:
        super().__init__()
        self.conditional = conditional
        self.dim, self.dtype = conditional.dim, conditional.dtype
        self.geometry = conditional.geometry
        self.register_buffer("condition", condition, persistent=False)
        self.thread_safe = conditional.thread_safe

    @cached_property
    def log_z(self) -> float | None:  # type: ignore[override]
        """Log Z at c; found when it is asked for, since a quadrature may take a second."""
        return self.conditional.log_z(self.condition)

    def _rows(self, x: Tensor) -> Tensor:
        return self.condition.to(x).expand(len(x), -1)

    def energy(self, x: Tensor) -> Tensor:
        """See :meth:`Energy.energy`."""
        return self.conditional.energy(x, self._rows(x))

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`ConditionalEnergy.energy_and_gradient`."""
        return self.conditional.energy_and_gradient(x, self._rows(x))

    @property
    def can_sample(self) -> bool:
        """See :attr:`Energy.can_sample`."""
        return self.conditional.can_sample_at(self.condition)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :meth:`ConditionalEnergy.sample`."""
        return self.conditional.sample(n, self.condition, generator)


class TemperedEnergy(ConditionalEnergy):
    """E(x)/τ over a range of temperatures, of any energy E.

    Exact samples and log Z at every τ are those of the energy's ``sample_at(n, temperature,
    generator)`` and ``log_z_at(temperature)``, where it has them; ``can_sample_at(temperature)``
    may say where it has not. At τ = 1 it is E itself.

    Args:
        inner: E.
        temperatures: the least and the greatest τ.

    Raises:
        ValueError: if that is no ascending range above 0.
    """

    logarithmic = (TEMPERATURE,)

    def __init__(self, inner: Energy, temperatures: Sequence[float]) -> None:
        super().__init__()
        check_range(TEMPERATURE, temperatures, 0.0)
        self.inner = inner
        self.dim, self.dtype, self.thread_safe = int(inner.dim), inner.dtype, inner.thread_safe
        self.ranges = {TEMPERATURE: tuple(temperatures)}

    @property
    def called(self) -> str:
        """The name of E."""
        return self.inner._called

    @property
    def geometry(self) -> Geometry:
        """See :attr:`ConditionalEnergy.geometry`."""
        return self.inner.geometry

    @property
    def gradient_evaluations(self) -> int:
        """See :attr:`ConditionalEnergy.gradient_evaluations`."""
        return self.inner.gradient_evaluations

    @property
    def default(self) -> Tensor:
        """1 where it is in the range, else mid-range."""
        conditions = self.conditions
        one = float(conditions.low) <= 1.0 <= float(conditions.high)
        return torch.ones(1, dtype=torch.float64) if one else super().default

    def energy(self, x: Tensor, c: Tensor) -> Tensor:
        """See :meth:`ConditionalEnergy.energy`."""
        energy: Tensor = self.inner(x)
        return energy / c[:, 0]

    def energy_and_gradient(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`ConditionalEnergy.energy_and_gradient`."""
        energy, gradient = self.inner.with_gradient(x)
        return energy / c[:, 0], gradient / c

    @property
    def can_sample(self) -> bool:
        """See :attr:`ConditionalEnergy.can_sample`."""
        return hasattr(self.inner, "sample_at")

    def can_sample_at(self, c: Tensor) -> bool:
        """See :meth:`ConditionalEnergy.can_sample_at`."""
        says: Any = getattr(self.inner, "can_sample_at", None)
        return self.can_sample and (says is None or bool(says(float(c[0]))))

    def sample(self, n: int, c: Tensor, generator: torch.Generator) -> Tensor:
        """See :meth:`ConditionalEnergy.sample`."""
        drawing: Any = self.inner
        samples: Tensor = drawing.sample_at(n, float(c[0]), generator)
        return samples

    def log_z(self, c: Tensor) -> float | None:
        """See :meth:`ConditionalEnergy.log_z`."""
        if float(c[0]) == 1.0 and self.inner.log_z is not None:
            return self.inner.log_z
        known = getattr(self.inner, "log_z_at", None)
        return None if known is None else known(float(c[0]))

    def at(self, condition: ConditionLike) -> Energy:
        """See :meth:`ConditionalEnergy.at`."""
        c = self.conditions.tensor(condition)
        return self.inner if float(c[0]) == 1.0 else EnergyAt(self, c)


class JointEnergy(Energy):
    """E(x; c) as an energy of the row (x, c): what the chain of a conditional energy sees.

    The last C coordinates are the parameters. Nothing moves them
    (:class:`~vgs_rl.geometry.Conditioned`), and no density counts them.

    Args:
        conditional: the energy.

    Raises:
        ValueError: if its space is not linear, or dimension or parameters are not declared.
    """

    def __init__(self, conditional: ConditionalEnergy) -> None:
        super().__init__()
        name = conditional.called
        for attribute in ("dim", "ranges"):
            if not hasattr(conditional, attribute):
                raise ValueError(f"{name}.{attribute} must be set, see vgs_rl.ConditionalEnergy")
        space = conditional.geometry
        space.require_linear(f"conditional energy {name}")
        self.conditional, self.conditions = conditional, conditional.conditions
        self.dim = conditional.dim + self.conditions.size
        self.geometry = Conditioned(space, self.conditions.size)
        self.dtype, self.thread_safe = conditional.dtype, conditional.thread_safe

    @property
    def _called(self) -> str:
        return self.conditional.called

    @property
    def of_x(self) -> Energy:
        """The energy at the value of c that is evaluated where none is named."""
        return self.conditional.at(self.conditional.default)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, : self.conditional.dim], x[:, self.conditional.dim :]

    def energy(self, x: Tensor) -> Tensor:
        """See :meth:`Energy.energy`."""
        return self.conditional.energy(*self._parts(x))

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient's last C numbers are 0."""
        energy, gradient = self.conditional.energy_and_gradient(*self._parts(x))
        return energy, nn.functional.pad(gradient, (0, self.conditions.size))

    @property
    def gradient_evaluations(self) -> int:
        """See :attr:`ConditionalEnergy.gradient_evaluations`."""
        return self.conditional.gradient_evaluations

    def reference(self, split: Split = "test") -> Tensor:
        """There is none of all parameters together."""
        raise NotImplementedError(f"{type(self.conditional).__name__} has references at one value")


def as_energy(energy: Any) -> Any:
    """A conditional energy as the energy of a chain; anything else as it is."""
    return JointEnergy(energy) if isinstance(energy, ConditionalEnergy) else energy


def require_one(energy: Energy, what: str) -> None:
    """Refuses an energy with parameters where one energy is needed.

    Args:
        energy: of a chain, or of states.
        what: it is needed for, with its verb: `MALA draws from`.

    Raises:
        ValueError: naming the parameters.
    """
    if isinstance(energy, JointEnergy):
        names = ", ".join(energy.conditions.names)
        raise ValueError(
            f"{what} one energy, got {energy._called} with parameters ({names}): its `at` gives "
            "that of one value"
        )


def joint_energy(
    energy: Energy | ConditionalEnergy, temperature: float | tuple[float, float]
) -> Energy:
    """The energy of a chain whose temperature may be a range.

    Raises:
        ValueError: if both energy and temperature have parameters.
    """
    if not isinstance(temperature, tuple):
        made: Energy = as_energy(energy)
        return made
    if isinstance(energy, ConditionalEnergy | JointEnergy):
        of = energy.conditional if isinstance(energy, JointEnergy) else energy
        raise ValueError(
            f"mdp.temperature must be one number for {type(of).__name__}, which has parameters, "
            f"got {temperature}"
        )
    return JointEnergy(TemperedEnergy(energy, temperature))


def check_temperature(temperature: object) -> float | tuple[float, float]:
    """A temperature, or an ascending range of them, as a number or a tuple.

    Raises:
        ValueError: if it is neither, or not above 0.
    """
    if isinstance(temperature, tuple | list):
        check_range("mdp.temperature", temperature, 0.0)
        low, high = temperature
        return float(low), float(high)
    if isinstance(temperature, int | float) and math.isfinite(temperature) and temperature > 0:
        return temperature
    raise ValueError(f"temperature must be a positive number, got {temperature}")
