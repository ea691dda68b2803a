"""A log-Gaussian Cox process: the intensity of points on a grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vgs_rl.checks import count_of
from vgs_rl.energy import Split
from vgs_rl.envs.targets.references import ReferencedEnergy

SIGMA_2, BETA = 1.91, 1 / 33
MEAN = math.log(126) - 0.5 * SIGMA_2
GRID = 40
# Cells of a 40 x 40 grid that hold the points, once a point: drawn from the model with torch's
# seed 0 (the prior's field by its Cholesky factor, then Poisson counts).
CELLS = (
    11, 24, 51, 53, 54, 118, 145, 156, 219, 227, 251, 256, 256, 257, 258, 260, 263, 283, 296,
    297, 303, 342, 342, 361, 361, 375, 395, 406, 417, 418, 439, 481, 481, 521, 529, 539, 540,
    565, 565, 576, 581, 605, 605, 605, 634, 644, 660, 674, 697, 700, 700, 700, 733, 736, 738,
    791, 807, 808, 808, 811, 812, 821, 830, 830, 831, 840, 840, 842, 845, 847, 853, 859, 862,
    895, 909, 909, 919, 927, 938, 956, 967, 979, 1037, 1038, 1041, 1070, 1072, 1078, 1081, 1093,
    1116, 1128, 1131, 1132, 1150, 1150, 1157, 1195, 1203, 1224, 1250, 1283, 1301, 1307, 1308,
    1313, 1313, 1346, 1350, 1351, 1363, 1390, 1390, 1441, 1441, 1445, 1456, 1470, 1506, 1530,
    1531, 1532, 1547, 1575, 1584, 1596,
)  # fmt: skip


class CoxProcess(ReferencedEnergy):
    """Posterior of log-intensities on n x n cells of the unit square, D = n².

    Counts y_m ~ Poisson(exp(x_m)/D), x ~ N(mu, K), K(m, m') = 1.91 exp(-|m - m'|/(n β)) with
    distances in cells, β = 1/33, mu = log 126 - 1.91/2, as Møller, Syversveen and Waagepetersen
    (1998) model 126 Scots pines. The prior is normalised; of the likelihood only Π exp(x_m y_m -
    exp(x_m)/D) is kept, as in published log Z of this model: p(y) has Π D^-y_m / y_m! besides.

    The pines do not come with the package. The points are drawn from the model, and stand in this
    file; log Z is of them and not comparable with that of the pines, which `points` takes.
    Shipped for n = 10 and 40 and those points: samples and log Z by tempered SMC
    (`reference_notes()`).

    Args:
        side: n, at least 2.
        points: other data, points of the unit square, shape (N, 2), N from 0.
        whitened: whether a state is z, where x = mu + L z and K = L Lᵀ: the prior is then N(0, I),
            and log Z stays as it is.

    Raises:
        ValueError: if points are not in the unit square, naming the first.
    """

    SHIPPED = {10: "cox_10", 40: "cox_40"}
    counts: Tensor
    factor: Tensor
    precision: Tensor | None
    thread_safe = True

    def __init__(
        self, side: int = 10, points: Tensor | None = None, whitened: bool = False
    ) -> None:
        super().__init__()
        self.side, self.whitened = count_of("side", side, least=2), whitened
        self.own_points = points is not None
        self.dim = self.side**2
        self.register_buffer("counts", self._counts(points), persistent=False)
        factor = torch.linalg.cholesky(covariance(self.side))
        self.register_buffer("factor", factor, persistent=False)
        precision = None if whitened else torch.cholesky_inverse(factor)
        self.register_buffer("precision", precision, persistent=False)
        self._constant = 0.5 * self.dim * math.log(2 * math.pi)
        if not whitened:
            self._constant += float(factor.diagonal().log().sum())
        self.log_z = self.shipped_log_z()

    def _counts(self, points: Tensor | None) -> Tensor:
        """Points in each cell, row by row, shape (D,)."""
        if points is None:
            cells = torch.tensor(CELLS)
            points = torch.stack([cells // GRID, cells % GRID], -1).add(0.5) / GRID
        points = torch.as_tensor(points, dtype=torch.float64)
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"points must have shape (N, 2), got {tuple(points.shape)}")
        outside = ~((points >= 0) & (points <= 1)).all(-1)
        if bool(outside.any()):
            first = points[outside][0].tolist()
            raise ValueError(f"points must lie in the unit square [0, 1]², got {first}")
        row, column = (points * self.side).long().clamp_max(self.side - 1).T
        return torch.bincount(row * self.side + column, minlength=self.dim).double()

    def reference_name(self) -> str:
        """See :class:`ReferencedEnergy`."""
        if self.own_points or self.side not in self.SHIPPED:
            raise NotImplementedError(
                f"CoxProcess ships reference samples for side in {[*self.SHIPPED]} and its own "
                f"points, got side {self.side}{' and other points' if self.own_points else ''}"
            )
        return self.SHIPPED[self.side]

    def reference(self, split: Split = "test") -> Tensor:
        """See :class:`ReferencedEnergy`; the file holds log-intensities."""
        x = super().reference(split)
        return self.to_white(x.double()).float() if self.whitened else x

    def to_intensities(self, z: Tensor) -> Tensor:
        """Log-intensities x = mu + L z of whitened states (B, D)."""
        return MEAN + z @ self.factor.to(z).T

    def to_white(self, x: Tensor) -> Tensor:
        """Whitened states z of log-intensities x (B, D)."""
        solved: Tensor = torch.linalg.solve_triangular(self.factor.to(x), (x - MEAN).T, upper=False)
        return solved.T

    def energy(self, x: Tensor) -> Tensor:
        """See :meth:`Energy.energy`."""
        return self._parts(x)[0]

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form."""
        with torch.no_grad():
            energy, pull, push = self._parts(x)
            return energy, pull + (push @ self.factor.to(x) if self.whitened else push)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """E, (B,); slopes of prior by x and of likelihood by the log-intensities, (B, D)."""
        if self.precision is None:
            field, gap, pull = self.to_intensities(x), x, x
        else:
            field, gap = x, x - MEAN
            pull = gap @ self.precision.to(x)
        mean, counts = torch.exp(field) / self.dim, self.counts.to(x)
        likelihood = (field * counts - mean).sum(-1)
        energy = 0.5 * (gap * pull).sum(-1) + self._constant - likelihood
        return energy, pull, mean - counts


def covariance(side: int) -> Tensor:
    """K between the cells of a grid, shape (D, D), float64."""
    axis = torch.arange(side, dtype=torch.float64)
    cells = torch.cartesian_prod(axis, axis)
    distances = (cells.unsqueeze(1) - cells.unsqueeze(0)).norm(dim=-1)
    return SIGMA_2 * torch.exp(-distances / (side * BETA))
