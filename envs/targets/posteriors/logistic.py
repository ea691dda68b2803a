"""Bayesian logistic regression on tables that everybody uses."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from torch import Tensor

from vgs_rl.checks import path_of, require_positive
from vgs_rl.energy import Energy
from vgs_rl.envs.targets.references import ReferencedEnergy


class LogisticRegression(Energy):
    """Posterior of the weights w of p(label = 1 | row) = sigmoid(row · w), w ~ N(0, prior_std² I).

    Features are standardised (mean 0, variance 1 over the rows, a constant feature becomes 0), and
    a feature that is always 1 comes first: the intercept, which has the same prior. So D is one
    more than the features. Prior and likelihood are normalised, so that Z = p(labels).

    Args:
        features: shape (N, D - 1).
        labels: 0 or 1, shape (N,).
        prior_std: standard deviation of the prior.

    Raises:
        ValueError: on wrong shapes or values, naming the argument.
    """

    rows: Tensor
    thread_safe = True

    def __init__(self, features: Tensor, labels: Tensor, prior_std: float = 1.0) -> None:
        super().__init__()
        require_positive("LogisticRegression", prior_std=prior_std)
        features = torch.as_tensor(features, dtype=torch.float64)
        labels = torch.as_tensor(labels, dtype=torch.float64)
        if features.ndim != 2 or 0 in features.shape or not bool(features.isfinite().all()):
            raise ValueError(
                f"features must be finite numbers of shape (N, D - 1), got {tuple(features.shape)}"
            )
        if labels.shape != features.shape[:1] or not bool(((labels == 0) | (labels == 1)).all()):
            raise ValueError(
                f"labels must be {len(features)} numbers that are 0 or 1, got "
                f"{labels.unique().tolist()[:5]} in shape {tuple(labels.shape)}"
            )
        self.prior_std = float(prior_std)
        centred = features - features.mean(0)
        std = centred.square().mean(0).sqrt()
        constant = std <= 1e-12 * features.abs().amax(0)
        scaled = torch.where(constant, 0.0, centred / torch.where(constant, 1.0, std))
        rows = torch.cat([torch.ones(len(scaled), 1, dtype=torch.float64), scaled], 1)
        # softplus(-row · w) for label 1, softplus(row · w) for label 0
        self.register_buffer("rows", rows * (1 - 2 * labels).unsqueeze(-1), persistent=False)
        self.dim = rows.shape[1]
        self._constant = self.dim * (0.5 * math.log(2 * math.pi) + math.log(self.prior_std))

    def energy(self, x: Tensor) -> Tensor:
        """See :meth:`Energy.energy`."""
        losses = torch.nn.functional.softplus(x @ self.rows.to(x).T).sum(-1)
        return losses + 0.5 * x.square().sum(-1) / self.prior_std**2 + self._constant

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form."""
        with torch.no_grad():
            rows = self.rows.to(x)
            logits = x @ rows.T
            losses = torch.nn.functional.softplus(logits).sum(-1)
            energy = losses + 0.5 * x.square().sum(-1) / self.prior_std**2 + self._constant
            return energy, torch.sigmoid(logits) @ rows + x / self.prior_std**2


class BreastCancer(ReferencedEnergy, LogisticRegression):
    """Logistic regression on scikit-learn's breast cancer table: 569 rows, 30 features, 31 D.

    Prior N(0, I), as in :class:`LogisticRegression`; label 1 is benign.
    """

    thread_safe = True

    def __init__(self) -> None:
        from sklearn.datasets import load_breast_cancer

        table = load_breast_cancer()
        super().__init__(torch.from_numpy(table.data), torch.from_numpy(table.target))
        self.log_z = self.shipped_log_z()

    def reference_name(self) -> str:
        """See :class:`ReferencedEnergy`."""
        return "breast_cancer"


class _FileTable(LogisticRegression):
    """A table of a file that the user has, one row a line, the label last."""

    rows_expected: int
    features_expected: tuple[int, ...]
    labels_expected: tuple[str, str]  # of 0 and of 1
    source: str

    def __init__(self, path: str | os.PathLike[str], prior_std: float = 1.0) -> None:
        super().__init__(*self._read(path_of(path)), prior_std)

    def _read(self, path: Path) -> tuple[Tensor, Tensor]:
        if not path.is_file():
            raise FileNotFoundError(f"path: there is no file {path}; {self.source}")
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [line.replace(",", " ").split() for line in lines if line.strip()]
        expected = (
            f"{path} must have {self.rows_expected} lines of "
            f"{' or '.join(map(str, self.features_expected))} numbers and a label, "
            f"{' or '.join(self.labels_expected)}"
        )
        if len(rows) != self.rows_expected:
            raise ValueError(f"{expected}, got {len(rows)} lines; {self.source}")
        features = []
        for number, row in enumerate(rows, 1):
            try:
                features.append([float(value) for value in row[:-1]])
            except ValueError as error:
                raise ValueError(f"{expected}, got line {number}: {error}; {self.source}") from None
            if len(row) - 1 not in self.features_expected or len(row) != len(rows[0]):
                raise ValueError(f"{expected}, got {len(row)} fields on line {number}")
            if row[-1] not in self.labels_expected:
                raise ValueError(f"{expected}, got {row[-1]!r} on line {number}")
        labels = [self.labels_expected.index(row[-1]) for row in rows]
        return torch.tensor(features, dtype=torch.float64), torch.tensor(labels)


class GermanCredit(_FileTable):
    """Logistic regression on `german.data-numeric` of Statlog: 1,000 rows, 24 features, 25 D.

    Label 1 is a good credit, the file's 1; 0 is its 2. Nothing is shipped with it, neither the
    table nor a log Z. Published values of log Z depend on the prior: they are of this density only
    where standardisation, intercept and prior are those of :class:`LogisticRegression`.

    Args:
        path: the file.
        prior_std: see :class:`LogisticRegression`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not that table, naming the line.
    """

    thread_safe = True
    rows_expected, features_expected, labels_expected = 1_000, (24,), ("2", "1")
    source = "get german.data-numeric from https://archive.ics.uci.edu/dataset/144"


class Sonar(_FileTable):
    """Logistic regression on UCI's `sonar.all-data`: 208 rows, 60 features, 61 D.

    Label 1 is a mine, `M`; 0 is a rock, `R`. Papers report a log Z of -108.388.

    Args:
        path: the file.
        prior_std: see :class:`LogisticRegression`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not that table, naming the line.
    """

    thread_safe = True
    rows_expected, features_expected, labels_expected = 208, (60,), ("R", "M")
    source = "get sonar.all-data from https://archive.ics.uci.edu/dataset/151"


class Ionosphere(_FileTable):
    """Logistic regression on UCI's `ionosphere.data`: 351 rows, 34 features, 35 D.

    Label 1 is a good return, `g`; 0 is a bad one, `b`. The second feature is constant: its weight
    keeps the prior. Copies of the file without it are read, too; log Z is the same. Papers report
    -111.611.

    Args:
        path: the file.
        prior_std: see :class:`LogisticRegression`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not that table, naming the line.
    """

    thread_safe = True
    rows_expected, features_expected, labels_expected = 351, (34, 33), ("b", "g")
    source = "get ionosphere.data from https://archive.ics.uci.edu/dataset/52"
