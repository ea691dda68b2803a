"""The scalar field phi⁴ on a periodic square lattice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vgs_rl.checks import count_of, require_at_least, require_positive
from vgs_rl.conditional.conditions import ConditionLike
from vgs_rl.conditional.energy import ConditionalEnergy
from vgs_rl.energy import Energy
from vgs_rl.envs.targets.references import ReferencedEnergy


class Phi4(ReferencedEnergy):
    """E(φ) = Σ_x [ -2 κ Σ_μ φ_x φ_{x+μ} + (1 - 2 λ) φ_x² + λ φ_x⁴ ] on L x L sites, periodic.

    The sum over μ has the two forward neighbours. Couplings κ and λ as in Nicoli et al.
    (arXiv:2007.07115), who have λ = 0.022 and κ from 0.2 to 0.3. The same density in the couplings
    m² and λ' of ½ (∂φ)² + ½ m² φ² + λ'/4! φ⁴ has φ' = √(2 κ) φ, m² = (1 - 2 λ)/κ - 4 and
    λ' = 6 λ/κ². A state is the flattened field, row by row.

    At κ = 0.2 the field is disordered. At κ = 0.3 it has two modes, around plus and minus its
    magnetisation, each of weight ½ since E(-φ) = E(φ). Shipped for L = 8 and 16 at both, with λ =
    0.022: samples and log Z by tempered SMC (`reference_notes()`).

    Args:
        side: L, at least 2. For L = 2 both neighbours along an axis are one site.
        kappa: κ.
        lam: λ, above 0.
    """

    SHIPPED = {
        (side, kappa, 0.022): f"phi4_{side}_{name}"
        for side in (8, 16)
        for kappa, name in ((0.2, "disordered"), (0.3, "broken"))
    }
    thread_safe = True

    def __init__(self, side: int = 8, kappa: float = 0.2, lam: float = 0.022) -> None:
        super().__init__()
        require_positive("Phi4", lam=lam)
        require_at_least("Phi4", 0.0, kappa=kappa)
        self.side, self.kappa, self.lam = count_of("side", side, least=2), float(kappa), float(lam)
        self.dim = self.side**2
        self.mode_probabilities = torch.tensor([0.5], dtype=torch.float64)
        self.log_z = self.shipped_log_z()

    @property
    def ordered(self) -> bool:
        """Whether κ is on the broken side of mean-field theory, where 4 κ > 1 - 2 λ."""
        return 4 * self.kappa > 1 - 2 * self.lam

    def reference_name(self) -> str:
        """See :class:`ReferencedEnergy`."""
        constants = (self.side, self.kappa, self.lam)
        if constants not in self.SHIPPED:
            raise NotImplementedError(
                f"Phi4 ships reference samples for (side, kappa, lam) in {[*self.SHIPPED]}, "
                f"got {constants}"
            )
        return self.SHIPPED[constants]

    def energy(self, x: Tensor) -> Tensor:
        """See :meth:`Energy.energy`."""
        field = x.unflatten(-1, (self.side, self.side))
        forward = field.roll(-1, -1) + field.roll(-1, -2)
        square = field.square()
        site = (1 - 2 * self.lam) * square + self.lam * square.square()
        energy: Tensor = (site - 2 * self.kappa * field * forward).sum((-1, -2))
        return energy

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form."""
        with torch.no_grad():
            field = x.unflatten(-1, (self.side, self.side))
            forward = field.roll(-1, -1) + field.roll(-1, -2)
            backward = field.roll(1, -1) + field.roll(1, -2)
            square = field.square()
            site = (1 - 2 * self.lam) * square + self.lam * square.square()
            energy = (site - 2 * self.kappa * field * forward).sum((-1, -2))
            slope = (2 * (1 - 2 * self.lam) + 4 * self.lam * square) * field
            slope = slope - 2 * self.kappa * (forward + backward)
            return energy, slope.flatten(-2)

    def mode_indicators(self, x: Tensor) -> Tensor:
        """1 where the field's mean is positive, shape (B, 1); its exact mean is ½."""
        return (x.mean(-1, keepdim=True) > 0).to(x.dtype)


class ConditionalPhi4(ConditionalEnergy):
    """φ⁴ over its coupling κ: E(φ; κ) of :class:`Phi4`, from the disordered to the broken phase.

    At the couplings that :class:`Phi4` is shipped for, its samples and log Z are known.

    Args:
        side: L.
        kappa: the least and the greatest κ.
        lam: λ.
    """

    thread_safe = True

    def __init__(
        self, side: int = 8, kappa: Sequence[float] = (0.2, 0.3), lam: float = 0.022
    ) -> None:
        super().__init__()
        self.ranges = {"kappa": tuple(kappa)}
        self.free = Phi4(side, 0.0, lam)
        self.dim = self.free.dim

    def energy(self, x: Tensor, c: Tensor) -> Tensor:
        """See :meth:`ConditionalEnergy.energy`."""
        return self.free.energy(x) - 2 * c[:, 0] * self._bonds(x)[0]

    def energy_and_gradient(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form."""
        energy, slope = self.free.energy_and_gradient(x)
        with torch.no_grad():
            bonds, pull = self._bonds(x)
            return energy - 2 * c[:, 0] * bonds, slope - 2 * c * pull

    def _bonds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_x Σ_μ φ_x φ_{x+μ}, shape (B,), and its gradient, shape (B, D)."""
        field = x.unflatten(-1, (self.free.side, self.free.side))
        forward = field.roll(-1, -1) + field.roll(-1, -2)
        backward = field.roll(1, -1) + field.roll(1, -2)
        return (field * forward).sum((-1, -2)), (forward + backward).flatten(-2)

    def at(self, condition: ConditionLike) -> Energy:
        """The lattice at one κ, with what is known there."""
        (kappa,) = self.conditions.tensor(condition).tolist()
        return Phi4(self.free.side, kappa, self.free.lam)

    def log_z(self, c: Tensor) -> float | None:
        """Of the couplings that :class:`Phi4` is shipped for, else None."""
        return self.at(c).log_z
