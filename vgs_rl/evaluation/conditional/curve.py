"""Log Z(c) of a conditional energy as a curve with bounds: free energies from one training."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vgs_rl.checks import count_of, seed_of
from vgs_rl.conditional.conditions import ConditionLike
from vgs_rl.conditional.energy import JointEnergy
from vgs_rl.energy import Energy, Split
from vgs_rl.evaluation.certificate import Certificate, Premise, certificate
from vgs_rl.evaluation.confidence import check_confidence
from vgs_rl.samplers.base import Sampler


class Difference(NamedTuple):
    """Log Z(b) - log Z(a): estimate, standard error and bounds, None or infinite if not known."""

    value: float
    error: float | None
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class LogZCurve:
    """Log Z(c) at some values of c.

    The bounds of all of them hold at once with probability `confidence` (union bound), so that
    those of every difference do, too.

    Attributes:
        names: of the parameters.
        conditions: the values, one tuple each.
        certificates: bounds and diagnostics at each.
        elbos: mean log-weights at each; log Z is greater.
        exact: log Z at each where it is known, else None.
        confidence: with which all bounds hold.
    """

    names: tuple[str, ...]
    conditions: tuple[tuple[float, ...], ...]
    certificates: tuple[Certificate, ...]
    elbos: tuple[float, ...]
    exact: tuple[float | None, ...]
    confidence: float

    def __len__(self) -> int:
        return len(self.conditions)

    @property
    def log_z(self) -> list[float]:
        """Estimates: log mean weights, whose exponentials are unbiased for Z(c)."""
        return [each.log_z for each in self.certificates]

    def difference(self, first: int, second: int) -> Difference:
        """Log Z at one of the values less that at another, such as 0 and -1.

        Minus it, in units of the temperature, is a difference of free energies.

        Args:
            first: index of a.
            second: index of b.
        """
        a, b = self.certificates[first], self.certificates[second]
        errors = (a.log_z_error, b.log_z_error)
        known = [each for each in errors if each is not None]
        high_a, high_b = (math.inf if c.log_z_high is None else c.log_z_high for c in (a, b))
        return Difference(
            value=b.log_z - a.log_z,
            error=math.hypot(*known) if len(known) == 2 else None,
            low=b.log_z_low - high_a,
            high=high_b - a.log_z_low,
        )

    def rows(self) -> list[dict[str, float | None]]:
        """One mapping for each value, for tables and files."""
        found = []
        for i, (condition, proven) in enumerate(
            zip(self.conditions, self.certificates, strict=True)
        ):
            row: dict[str, float | None] = dict(zip(self.names, condition, strict=True))
            row |= {
                "log_z_low": proven.log_z_low,
                "log_z": proven.log_z,
                "log_z_high": proven.log_z_high,
                "exact": self.exact[i],
                "elbo": self.elbos[i],
                "ess": proven.ess,
                "k_hat": proven.k_hat,
            }
            found.append(row)
        return found

    def plot(self) -> Any:
        """A matplotlib figure of the curve; of several parameters along their first."""
        return importlib.import_module("vgs_rl.plots.conditional").plot_log_z(self)

    def __repr__(self) -> str:
        rows = self.rows()
        names = list(rows[0])

        def form(name: str) -> str:  # differences of log Z are read in nats
            return ".4f" if name in ("exact", "elbo") or name.startswith("log_z") else ".4g"

        cells = [names] + [
            ["" if row[name] is None else f"{row[name]:{form(name)}}" for name in names]
            for row in rows
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(c.rjust(w) for c, w in zip(r, widths, strict=True)) for r in cells]
        lines.append(f"all bounds hold at once with {100 * self.confidence:g} %")
        return "\n".join(lines)


@torch.no_grad()
def log_z_curve(
    sampler: Sampler,
    energy: Energy,
    conditions: int | Sequence[ConditionLike] = 11,
    n: int = 4_000,
    *,
    seed: int = 0,
    confidence: float = 0.95,
    split: Split = "test",
    references: Callable[[ConditionLike, int], Tensor] | None = None,
    progress_bar: bool = False,
) -> LogZCurve:
    """Log Z(c) of a sampler of a conditional energy.

    The lower bound needs no premise. The upper one needs samples of the target at c: exact ones, a
    shipped reference, or those that `references` gives. Without them there is none.

    Args:
        sampler: draws rows of the energy, and is a chain with weights.
        energy: of the rows.
        conditions: values of the parameters, or how many, evenly spaced over their range.
        n: forward paths at each, and as many backward paths.
        seed: of all draws.
        confidence: with which all bounds hold at once.
        split: which shipped samples.
        references: independent samples (m, D), m ≤ n, of the target at a value, from MCMC.
        progress_bar: whether to show one over the values.

    Raises:
        ValueError: if the energy has no parameters, a value is out of range, or a number is.
    """
    if not isinstance(energy, JointEnergy):
        raise ValueError(f"log_z_curve needs a conditional energy, got {type(energy).__name__}")
    n, seed = count_of("n", n, least=2), seed_of(seed)
    check_confidence(confidence)
    of = energy.conditions
    if isinstance(conditions, int):
        values = list(of.grid(count_of("conditions", conditions, least=2)))
    else:
        values = [of.tensor(each) for each in conditions]
        if not values:
            raise ValueError("conditions must be values or how many, got none")
    each = 1 - (1 - confidence) / len(values)
    certificates, elbos, exact = list[Certificate](), list[float](), list[float | None]()
    states = np.random.SeedSequence([seed, 2]).generate_state(3 * len(values), np.uint64)
    conditional = energy.conditional
    bar = tqdm(values, unit="value", leave=False, disable=not progress_bar)
    for i, value in enumerate(bar):
        draw, target, back = (
            torch.Generator(sampler.device).manual_seed(int(state >> np.uint64(1)))
            for state in states[3 * i : 3 * i + 3]
        )
        at, known = sampler.at(value), conditional.at(value)
        paths = at.sample(n, draw)
        if paths.log_weight is None:
            raise ValueError(
                f"log_z_curve needs log-weights, and {type(sampler).__name__} has none"
            )
        x, premise = _samples_of(known, n, split, target)
        if references is not None and premise != "exact samples":
            x, premise = references(value, n), "reference samples (MCMC)"
        backward = None
        if x is not None and at.has_reverse_weights:
            backward = at.reverse_log_weight(x.to(paths.x), back)
        certificates.append(
            certificate(
                paths.log_weight,
                backward,
                premise=None if backward is None else premise,
                confidence=each,
            )
        )
        elbos.append(float(paths.log_weight.double().mean()))
        exact.append(conditional.log_z(value))
    return LogZCurve(
        names=of.names,
        conditions=tuple(tuple(value.tolist()) for value in values),
        certificates=tuple(certificates),
        elbos=tuple(elbos),
        exact=tuple(exact),
        confidence=confidence,
    )


def _samples_of(
    energy: Energy, n: int, split: Split, generator: torch.Generator
) -> tuple[Tensor | None, Premise | None]:
    """Samples of a target, and what they are; (None, None) where there are none."""
    if energy.can_sample:
        return energy.sample(n, generator), "exact samples"
    try:
        return energy.reference(split)[:n].to(generator.device), "reference samples (MCMC)"
    except NotImplementedError:
        return None, None
