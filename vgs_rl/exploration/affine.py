"""An exact affine change of coordinates between a user's energy and the chain's."""

from __future__ import annotations

import torch
from torch import Tensor

from vgs_rl.energy import Energy

MOST_FULL = 256  # dimensions up to which a covariance is full; above, it is diagonal


class AffineEnergy(Energy):
    """The energy of z where x = shift + factor z: E(x) - log |det factor|.

    So ∫ exp(-E) is the same in both coordinates, and so are log-weights, ELBO and log Z.

    Args:
        energy: the target of x, on R^D.
        shift: shape (D,).
        factor: lower triangular, shape (D, D), or the diagonal of one, shape (D,).
        dtype: in which x is computed; that of the states by default. Where scales differ by much
            or the target is far from 0, float64 keeps digits that float32 has not.

    Raises:
        ValueError: if the space is not R^D or the factor is singular.
    """

    shift: Tensor
    factor: Tensor

    def __init__(
        self, energy: Energy, shift: Tensor, factor: Tensor, *, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if energy.geometry.effective_dim != energy.dim:
            raise ValueError("an affine change of coordinates needs a Euclidean geometry")
        diagonal = factor if factor.ndim == 1 else factor.diagonal()
        if not bool((diagonal > 0).all() & factor.isfinite().all()):
            raise ValueError("factor must be finite with a positive diagonal")
        self.dim = energy.dim
        self.inner = energy
        self.computes_in = energy.dtype or dtype
        self.register_buffer("shift", shift.detach().double())
        self.register_buffer("factor", factor.detach().double())
        self.log_det = float(diagonal.double().log().sum())
        self.log_z = energy.log_z
        vars(self)["thread_safe"] = energy.thread_safe

    def to_x(self, z: Tensor) -> Tensor:
        """User's coordinates of z (B, D), in the type that the energy computes in."""
        z = z.double()
        x: Tensor = self.shift + (z * self.factor if self.factor.ndim == 1 else z @ self.factor.T)
        return x if self.computes_in is None else x.to(self.computes_in)

    def to_z(self, x: Tensor) -> Tensor:
        """The chain's coordinates of x (B, D), float64."""
        gap = x.double() - self.shift
        if self.factor.ndim == 1:
            return gap / self.factor
        solved: Tensor = torch.linalg.solve_triangular(self.factor, gap.T, upper=False)
        return solved.T

    def energy(self, x: Tensor) -> Tensor:
        """See :meth:`Energy.energy`; x are states z of the chain."""
        return self._received_in(self.inner(self._given(x)), x) - self.log_det

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Energy.energy_and_gradient`."""
        energy, gradient = self.inner.with_gradient(self._given(x))
        gradient = gradient.double()
        slope = gradient * self.factor if self.factor.ndim == 1 else gradient @ self.factor
        return self._received_in(energy, x) - self.log_det, slope.to(x)

    def _given(self, z: Tensor) -> Tensor:
        x = self.to_x(z)
        return x if self.computes_in is not None else x.to(z)

    def _received_in(self, energy: Tensor, x: Tensor) -> Tensor:
        return energy.to(x)

    @property
    def gradient_evaluations(self) -> int:
        """See :attr:`Energy.gradient_evaluations`."""
        return self.inner.gradient_evaluations


def whitening(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and Cholesky factor, (D, D) or (D,), of states x (B, D), float64.

    The covariance is shrunk towards its diagonal, the more the fewer states there are, and is
    diagonal above MOST_FULL dimensions.
    """
    x = x.double()
    n, dim = x.shape
    mean, std = x.mean(0), x.std(0)
    # A coordinate that all states share has no width: a millionth of its size stands in.
    std = std.clamp_min(1e-6 * mean.abs().clamp_min(1e-6))
    if dim > MOST_FULL or dim == 1:
        return mean, std
    scaled = (x - mean) / std
    shrinkage = dim / (n + dim)
    correlation = (1 - shrinkage) * scaled.T @ scaled / (n - 1)
    correlation.diagonal().add_(shrinkage + 1e-9)
    factor, info = torch.linalg.cholesky_ex(correlation)
    if int(info):
        return mean, std
    return mean, std.unsqueeze(-1) * factor
