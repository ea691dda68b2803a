"""Classical anomaly detectors on the same features: what an energy has to beat.

`isolation_forest`, `one_class_svm` and `local_outlier_factor` are scikit-learn's;
`nearest_neighbour` and `mahalanobis` are the scores inside PatchCore (arXiv:2106.08265) and,
without its dependence on position, PaDiM (arXiv:2011.08785). All see normal data only, and score
rows (B, D) as (B,), high where a row is anomalous, as :mod:`vgs_rl.evaluation.detection` wants it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from vgs_rl.checks import require_at_least, require_positive
from vgs_rl.fields import settle

OutlierMethod = Literal[
    "isolation_forest",
    "one_class_svm",
    "local_outlier_factor",
    "nearest_neighbour",
    "mahalanobis",
]
OUTLIER_METHODS: tuple[OutlierMethod, ...] = get_args(OutlierMethod)


@dataclass(frozen=True, kw_only=True)
class OutlierConfig:
    """Settings of the classical detectors; none was tuned on anomalies.

    Args:
        max_rows: rows to fit on at most, a random subsample; grids have hundreds of thousands of
            positions, and time grows with the square of the rows (one_class_svm) or with their
            product with the scored ones (local_outlier_factor, nearest_neighbour).
        trees: of the isolation forest.
        nu: one_class_svm: the share of training rows that may lie outside.
        neighbours: local_outlier_factor: neighbours that a density is estimated from.
        shrinkage: mahalanobis: variance added to every direction, relative to the mean variance.
        seed: of the subsample and of the isolation forest.
    """

    max_rows: int = 4_000
    trees: int = 200
    nu: float = 0.05
    neighbours: int = 20
    shrinkage: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        settle(self, "outliers")
        require_at_least("outliers", 2, max_rows=self.max_rows)
        require_at_least("outliers", 1, trees=self.trees, neighbours=self.neighbours)
        require_at_least("outliers", 0, seed=self.seed)
        require_positive("outliers", nu=self.nu, shrinkage=self.shrinkage)
        if self.nu > 1:
            raise ValueError(f"outliers.nu must be at most 1, got {self.nu}")


class OutlierDetector:
    """A detector fitted to normal features.

    Args:
        method: one of ``OUTLIER_METHODS``.
        train: normal features, shape (N, D), or grids (N, H, W, D), whose positions are the rows.
        config: settings; the defaults if left out.

    Attributes:
        method: which.
        rows: number of rows that it was fitted to.

    Raises:
        ValueError: if the method is unknown, or the features have another shape or less than two
            rows.

    Example:
        >>> train = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> detector = OutlierDetector("mahalanobis", train)
        >>> near, far = detector(torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]))
        >>> bool(far > near)
        True
    """

    def __init__(
        self, method: OutlierMethod, train: Tensor, config: OutlierConfig | None = None
    ) -> None:
        if method not in OUTLIER_METHODS:
            raise ValueError(f"method must be one of {', '.join(OUTLIER_METHODS)}, got {method!r}")
        if train.ndim not in (2, 4) or train.numel() // max(train.shape[-1], 1) < 2:
            raise ValueError(
                "train must have shape (N, D) or (N, H, W, D) with at least 2 rows, "
                f"got {tuple(train.shape)}"
            )
        self.method, self.config = method, config or OutlierConfig()
        rows = _subsample(train.reshape(-1, train.shape[-1]), self.config)
        self.rows = len(rows)
        self._model = _fit(method, rows.detach().double().cpu().numpy(), self.config)

    def __call__(self, x: Tensor) -> Tensor:
        """Scores of rows x, shape (B, D) to (B,), on x's device in its dtype."""
        values = x.detach().double().cpu().numpy()
        if self.method == "nearest_neighbour":
            scores = self._model.kneighbors(values)[0][:, 0]
        elif self.method == "mahalanobis":
            scores = self._model.mahalanobis(values)
        else:
            scores = -self._model.score_samples(values)
        return torch.from_numpy(np.ascontiguousarray(scores)).to(x)


def _subsample(rows: Tensor, config: OutlierConfig) -> Tensor:
    if len(rows) <= config.max_rows:
        return rows
    generator = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(len(rows), generator=generator)[: config.max_rows]
    return rows[chosen.to(rows.device)]


def _fit(method: OutlierMethod, rows: Any, config: OutlierConfig) -> Any:
    """The fitted scikit-learn model; imported here, since it takes a second."""
    if method == "isolation_forest":
        from sklearn.ensemble import IsolationForest

        return IsolationForest(n_estimators=config.trees, random_state=config.seed).fit(rows)
    if method == "one_class_svm":
        from sklearn.svm import OneClassSVM

        return OneClassSVM(nu=config.nu, gamma="scale").fit(rows)
    if method == "mahalanobis":
        from sklearn.covariance import EmpiricalCovariance

        model = EmpiricalCovariance(store_precision=True).fit(rows)
        covariance = model.covariance_
        ridge = config.shrinkage * max(float(np.trace(covariance)) / len(covariance), 1e-12)
        model.precision_ = np.linalg.inv(covariance + ridge * np.eye(len(covariance)))
        return model
    from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

    if method == "local_outlier_factor":
        neighbours = min(config.neighbours, len(rows) - 1)
        return LocalOutlierFactor(n_neighbors=neighbours, novelty=True).fit(rows)
    return NearestNeighbors(n_neighbors=1).fit(rows)
