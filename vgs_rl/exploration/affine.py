"""An exact affine change of coordinates between a user's energy and the chain's."""

from __future__ import annotations

import torch
from torch import Tensor

from vgs_rl.energy import Energy

MOST_FULL = 256  # dimensions up to which a covariance is full; above, it is diagonal


class AffineMap:
    """x = shift + factor z, in float64.

    Args:
        shift: shape (D,).
        factor: lower triangular, shape (D, D), or the diagonal of one, shape (D,).

    Raises:
        ValueError: if the factor is singular or not finite.
    """

    def __init__(self, shift: Tensor, factor: Tensor) -> None:
        diagonal = factor if factor.ndim == 1 else factor.diagonal()
        if not bool((diagonal > 0).all() & factor.isfinite().all()):
            raise ValueError("factor must be finite with a positive diagonal")
        self.shift, self.factor = shift.detach().double(), factor.detach().double()
        self.log_det = float(diagonal.double().log().sum())

    def to_x(self, z: Tensor) -> Tensor:
        """X (B, D) of z (B, D)."""
        z = z.double()
        return self.shift + (z * self.factor if self.factor.ndim == 1 else z @ self.factor.T)

    def to_z(self, x: Tensor) -> Tensor:
        """Z (B, D) of x (B, D)."""
        gap = x.double() - self.shift
        if self.factor.ndim == 1:
            return gap / self.factor
        solved: Tensor = torch.linalg.solve_triangular(self.factor, gap.T, upper=False)
        return solved.T

    def gradient(self, gradient: Tensor) -> Tensor:
        """The gradient by z (B, D) of a function whose gradient by x is given (B, D)."""
        gradient = gradient.double()
        return gradient * self.factor if self.factor.ndim == 1 else gradient @ self.factor

    def gradient_of_x(self, gradient: Tensor) -> Tensor:
        """The gradient by x (B, D) of a function whose gradient by z is given (B, D)."""
        gradient = gradient.double()
        if self.factor.ndim == 1:
            return gradient / self.factor
        solved: Tensor = torch.linalg.solve_triangular(self.factor.T, gradient.T, upper=True)
        return solved.T

    @classmethod
    def whitening(cls, x: Tensor) -> AffineMap:
        """The map in whose coordinates states x (B, D) have mean 0 and unit covariance.

        The covariance is shrunk towards its diagonal, the more the fewer states there are, and is
        diagonal above MOST_FULL dimensions.
        """
        x = x.double()
        n, dim = x.shape
        mean, std = x.mean(0), x.std(0)
        # A coordinate that all states share has no width: a millionth of its size stands in.
        std = std.clamp_min(1e-6 * mean.abs().clamp_min(1e-6))
        if dim > MOST_FULL or dim == 1:
            return cls(mean, std)
        scaled = (x - mean) / std
        shrinkage = dim / (n + dim)
        correlation = (1 - shrinkage) * scaled.T @ scaled / (n - 1)
        correlation.diagonal().add_(shrinkage + 1e-9)
        factor, info = torch.linalg.cholesky_ex(correlation)
        return cls(mean, std if int(info) else std.unsqueeze(-1) * factor)


class AffineEnergy(Energy):
    """The energy of z where x = shift + factor z: E(x) - log |det factor|.

    So ∫ exp(-E) is the same in both coordinates, and so are log-weights, ELBO and log Z.

    Args:
        energy: the target of x, on R^D.
        coordinates: the map from z to x.
        dtype: in which x is computed; that of the states by default. Where scales differ by much
            or the target is far from 0, float64 keeps digits that float32 has not.

    Raises:
        ValueError: if the space is not R^D.
    """

    def __init__(
        self, energy: Energy, coordinates: AffineMap, *, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if energy.geometry.effective_dim != energy.dim:
            raise ValueError("an affine change of coordinates needs a Euclidean geometry")
        self.dim, self.log_z = energy.dim, energy.log_z
        self.inner, self.coordinates = energy, coordinates
        self.computes_in = energy.dtype or dtype
        vars(self)["thread_safe"] = energy.thread_safe

    def to_x(self, z: Tensor) -> Tensor:
        """User's coordinates of z (B, D), in the type that the energy computes in."""
        return self.coordinates.to_x(z).to(self.computes_in or z.dtype)

    def energy(self, x: Tensor) -> Tensor:
        """See :meth:`Energy.energy`; x are states z of the chain."""
        return self.inner(self.to_x(x)).to(x) - self.coordinates.log_det

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Energy.energy_and_gradient`."""
        energy, gradient = self.inner.with_gradient(self.to_x(x))
        return energy.to(x) - self.coordinates.log_det, self.coordinates.gradient(gradient).to(x)

    @property
    def gradient_evaluations(self) -> int:
        """See :attr:`Energy.gradient_evaluations`."""
        return self.inner.gradient_evaluations
