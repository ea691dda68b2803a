"""What the untuned benchmark samples, and what is known of it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from vgs_rl.energy import Energy
from vgs_rl.envs import Gaussian, StudentMixture, StudentT
from vgs_rl.exploration import AffineMap, Composed, MappedEnergy, Rotation
from vgs_rl.registry import find
from vgs_rl.weights import cleaned

EXACT = 20_000  # exact samples behind the true means and standard deviations
KNOWN_STD = 0.03  # relative standard error up to which a true standard deviation counts as known
CLOSE_LOG_Z, CLOSE_MEAN = 0.1, 0.15  # errors of a right result: nats, standard deviations
CONDITION = 1e4  # of the copies' maps
SHIFT = 100.0  # standard deviation of what the copies are shifted by, before the map


class AffineCopy(MappedEnergy):
    """A target under a random affine map: badly scaled, correlated, far from 0, with the same Z.

    The copy has the coordinates z with x = m + A z. The singular values of A are spaced evenly in
    their logarithm between 1/√c and √c, and its singular vectors are random.

    Args:
        energy: the target of x, with exact samples.
        condition: c, the condition number of A, at least 1.
        seed: of m and A.
    """

    def __init__(self, energy: Energy, condition: float = CONDITION, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        dim = energy.dim
        left, right = (_rotation(dim, generator) for _ in range(2))
        half = 0.5 * math.log10(condition)
        singular = torch.logspace(-half, half, dim, dtype=torch.float64)
        shift = SHIFT * torch.randn(dim, generator=generator, dtype=torch.float64)
        scaled = Composed(AffineMap(torch.zeros_like(shift), singular), Rotation(right))
        placed = AffineMap(shift, torch.ones_like(shift))
        map_to_x = Composed(placed, Composed(Rotation(left), scaled))
        super().__init__(energy, map_to_x, dtype=torch.float64)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :meth:`Energy.sample`; float64."""
        return self.coordinates.to_z(self.inner.sample(n, generator))


def _rotation(dim: int, generator: torch.Generator) -> Tensor:
    """A random orthogonal matrix, shape (D, D)."""
    square = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    orthogonal: Tensor = torch.linalg.qr(square)[0]
    return orthogonal


def _copy(name: str) -> Energy:
    return AffineCopy(find(name).make_energy())


# Not registered: what is hard in them is their scale alone.
LOCAL: dict[str, Callable[[], Energy]] = {
    "scales": lambda: Gaussian((0.0,) * 3, (1e-6, 1.0, 1e6)),
    "narrow": lambda: Gaussian((0.0,) * 4, (1e-6,) * 4),
    "far": lambda: Gaussian((1_000.0,) * 3, (1.0,) * 3),
    **{f"{name}-affine": partial(_copy, name) for name in ("GMM9", "Funnel10", "ManyWell32")},
}

TARGETS: tuple[str, ...] = (
    *LOCAL,
    "GMM9",
    "GMM25",
    "GMM40",
    "TwoModes2",
    "TwoModes20",
    "TwoModes100",
    "FortyModes50",
    "Funnel10",
    "HardFunnel10",
    "Funnel20",
    "Funnel100",
    "Rosenbrock2",
    "Rosenbrock10",
    "StudentT10",
    "StudentMixture50",
    "ManyWell32",
    "ManyWell64",
    "ManyWell128",
    "EightSchools",
    "EightSchoolsNonCentred",
    "BrownianMotion",
    "MixtureMeans",
    "BreastCancer",
    "Cox10",
    "Phi4L8",
    "Phi4L8Broken",
)


def make_target(name: str) -> Energy:
    """The energy of a name.

    Args:
        name: one of :data:`LOCAL`, or of a target as :func:`~vgs_rl.registry.find` takes it.

    Raises:
        ValueError: if there is none, it has no Euclidean space, or nothing is known to compare
            samples with.
    """
    energy = LOCAL[name]() if name in LOCAL else _registered(name)
    if energy.geometry.effective_dim != energy.dim:
        raise ValueError(f"targets: {name} is not on R^D")
    if energy.log_z is None and _exact(energy, 2) is None:
        raise ValueError(f"targets: {name} has neither log Z nor exact or reference samples")
    return energy


def _registered(name: str) -> Energy:
    try:
        return find(name).make_energy()
    except ValueError as error:
        own = ", ".join(LOCAL)
        raise ValueError(f"targets: {error}; the benchmark's own are {own}") from error


class Counted(Energy):
    """E and ∇E of a target and nothing else that is known of it, with a count of evaluations.

    Attributes:
        evaluations: states at which E, or E and ∇E, were evaluated so far.

    Args:
        energy: the target.
    """

    def __init__(self, energy: Energy) -> None:
        super().__init__()
        self.dim, self.dtype, self.inner = energy.dim, energy.dtype, energy
        self._count = _Count()
        vars(self)["thread_safe"] = energy.thread_safe

    def energy(self, x: Tensor) -> Tensor:
        """See :meth:`Energy.energy`."""
        self._count.add(len(x))
        return self.inner(x)

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Energy.energy_and_gradient`."""
        self._count.add(len(x) * self.gradient_evaluations)
        return self.inner.with_gradient(x)

    @property
    def gradient_evaluations(self) -> int:
        """See :attr:`Energy.gradient_evaluations`."""
        return self.inner.gradient_evaluations

    @property
    def evaluations(self) -> int:
        """States at which E, or E and ∇E, were evaluated so far."""
        return self._count.total


class _Count:
    """A sum that several threads add to; copies of its owner share it."""

    def __init__(self) -> None:
        self.total, self._lock = 0, threading.Lock()

    def add(self, n: int) -> None:
        with self._lock:
            self.total += n

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is known of a target.

    Attributes:
        log_z: log Z, exact or of a reference, or None.
        mean: true means, shape (D,), or None where there are no exact or reference samples.
        std: true standard deviations, shape (D,), or None.
        counted: the coordinates in which errors are measured, shape (D,), bool.
    """

    log_z: float | None
    mean: Tensor | None = None
    std: Tensor | None = None
    counted: Tensor | None = None

    @classmethod
    def of(cls, energy: Energy, n: int = EXACT, seed: int = 0) -> Truth:
        """The truth about a target, moments from exact samples or else from reference samples.

        A coordinate counts where its standard deviation exists and the samples give it to
        KNOWN_STD, by their kurtosis.

        Args:
            energy: the target.
            n: how many exact samples.
            seed: of the exact samples.
        """
        x = None if _variance_is_infinite(energy) else _exact(energy, n, seed)
        if x is None:
            return cls(log_z=energy.log_z)
        mean = x.mean(0)
        variance = (x - mean).square().mean(0)
        kurtosis = (x - mean).pow(4).mean(0) / variance.square()
        known = ((kurtosis - 1) / (4 * len(x))).sqrt() <= KNOWN_STD
        return cls(log_z=energy.log_z, mean=mean, std=variance.sqrt(), counted=known)

    @property
    def has_moments(self) -> bool:
        """Whether errors of means and standard deviations can be measured at all."""
        return self.counted is not None and bool(self.counted.any())

    def errors(self, x: Tensor, log_weight: Tensor | None = None) -> tuple[float, float]:
        """Largest error of a weighted mean, in true standard deviations, and of a weighted std.

        The second is relative. Both are NaN where they cannot be measured, or no sample has a
        weight.

        Args:
            x: samples, shape (n, D).
            log_weight: their log-weights, shape (n,), or None for equal weights.
        """
        if not self.has_moments or not len(x):
            return math.nan, math.nan
        assert self.mean is not None and self.std is not None and self.counted is not None
        x = x.double()
        level = x.new_zeros(len(x)) if log_weight is None else cleaned(log_weight.double())
        used = level > -torch.inf  # 0 times an infinite coordinate is no number
        weight = torch.softmax(level[used], 0)
        mean = weight @ x[used]
        std = (weight @ (x[used] - mean).square()).sqrt()
        far = ((mean - self.mean).abs() / self.std)[self.counted].max()
        wide = (std / self.std - 1).abs()[self.counted].max()
        return (float(far), float(wide)) if bool(used.any()) else (math.nan, math.nan)

    def is_right(self, log_z: float | None, mean_error: float) -> bool | None:
        """Whether all that can be compared is close; None where nothing can.

        Args:
            log_z: the estimate, or None of a method that gives none.
            mean_error: the first of :meth:`errors`.
        """
        checks = []
        if self.log_z is not None and log_z is not None:
            checks.append(abs(log_z - self.log_z) <= CLOSE_LOG_Z)
        if self.has_moments:
            checks.append(mean_error <= CLOSE_MEAN)
        return all(checks) if checks else None


def _variance_is_infinite(energy: Energy) -> bool:
    return isinstance(energy, StudentT | StudentMixture) and energy.degrees <= 2


def _exact(energy: Energy, n: int, seed: int = 0) -> Tensor | None:
    """Exact samples, or else all reference samples, float64, or None where there are none."""
    if energy.can_sample:
        return energy.sample(n, torch.Generator().manual_seed(seed)).double()
    try:
        return energy.reference().double()
    except NotImplementedError:
        return None
