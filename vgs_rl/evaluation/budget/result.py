"""The error budget as a user sees it: a table, a sentence, a picture, JSON."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

PartName = Literal["start", "discretisation", "learning", "noise scale"]
PARTS: tuple[PartName, ...] = ("start", "discretisation", "learning", "noise scale")
Purchase = Literal["a better start", "more steps", "longer training", "a fitted noise scale"]
LEAST = 0.01  # nats, a gain below which nothing is worth buying


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number of nats.

    Attributes:
        value: the estimate.
        error: its standard error.
    """

    value: float
    error: float

    def __str__(self) -> str:
        digits = min(6, max(2, 1 - math.floor(math.log10(self.error)))) if self.error > 0 else 4
        return f"{self.value:.{digits}f} ± {self.error:.{digits}f}"


@dataclass(frozen=True, kw_only=True)
class Part(Estimate):
    """A part of the gap.

    Attributes:
        per_step: what it is at each step, T numbers that add up to `value`; none for the start.
        per_step_error: their standard errors.
    """

    per_step: tuple[float, ...] = ()
    per_step_error: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, repr=False)
class ErrorBudget:
    """The path gap EUBO - log Z = KL(target's paths ‖ sampler's paths), by what causes it.

    Attributes:
        parts: start, discretisation, learning and noise scale, by name.
        total: their sum.
        gap: EUBO - log Z, measured on other paths drawn backwards.
        elbo_gap: log Z - ELBO, measured on the sampler's own paths. It is not split.
        predictions: by how much each purchase lowers `gap`, by name. More steps: twice as many, at
            the same total noise and the same learning part. Longer training: the best control and
            its noise scale, so at most this. A better start: the exact one. A fitted noise scale:
            that of the control as it is.
        num_steps: T.
        n: bridge paths.
        seed: of the estimate.
        log_z: log Z.
        log_z_error: its standard error, NaN where the weights are too uneven to have one; it is
            part of the errors of both gaps.
        log_z_known: whether it is, or was estimated from the sampler's own weights.
        method: where the best control comes from.
        premise: what the bridge paths start from.
        target: the target's name.
    """

    parts: dict[PartName, Part]
    total: Estimate
    gap: Estimate
    elbo_gap: Estimate
    predictions: dict[Purchase, Estimate]
    num_steps: int
    n: int
    seed: int
    log_z: float
    log_z_error: float
    log_z_known: bool
    method: Literal["exact values", "posterior draws"]
    premise: str
    target: str

    @property
    def adds_up(self) -> bool:
        """Whether the parts' sum is the measured gap within 10 % or three standard errors."""
        apart = abs(self.total.value - self.gap.value)
        error = math.hypot(self.total.error, self.gap.error)
        return apart <= max(0.1 * abs(self.gap.value), 3 * error)

    @property
    def best(self) -> Purchase | None:
        """What lowers the gap most, or None where nothing gains 0.01 nats and two errors."""
        name = max(self.predictions, key=lambda each: self.predictions[each].value)
        gain = self.predictions[name]
        return name if gain.value > max(LEAST, 2 * gain.error) else None

    @property
    def sentence(self) -> str:
        """What to buy, and what it is predicted to gain."""
        gap, steps = f"the gap of {self.gap.value:.3g} nats", self.num_steps
        if self.best is None:
            return f"Nothing is worth buying: no purchase lowers {gap} by {LEAST:g} nats or more."
        what = {
            "more steps": f"more steps: T = {2 * steps} instead of {steps} lowers {gap} by",
            "longer training": f"longer training: it lowers {gap} by at most",
            "a better start": f"a better start: it lowers {gap} by at most",
            "a fitted noise scale": f"nothing, and fit the noise scale: it lowers {gap} by",
        }
        others = [
            f"{name} {gain.value:.2g}"
            for name, gain in self.predictions.items()
            if name != self.best
        ]
        best = self.predictions[self.best]
        said = f"Buy {what[self.best]} {best}. Alternatives: {', '.join(others)}."
        return said if self.adds_up else f"{said} But the parts do not add up to the gap."

    def rows(self) -> Iterator[tuple[str, str]]:
        """Names and values, as a table shows them."""
        for name, part in self.parts.items():
            yield name, str(part)
        yield "sum", str(self.total)
        yield "EUBO - log Z, measured", str(self.gap)
        yield "log Z - ELBO, measured", f"{self.elbo_gap}, not split"
        for purchase, gain in self.predictions.items():
            yield f"gain of {purchase}", str(gain)
        known = "known"
        if not self.log_z_known:
            known = f"± {self.log_z_error:.4f}, from the sampler's own weights"
        if math.isnan(self.log_z_error):
            known = "from the sampler's own weights, too uneven for a standard error"
        yield "log Z", f"{self.log_z:.4f}, {known}"
        yield "from", f"{self.n:,} {self.premise}, {self.method}"

    def as_dict(self) -> dict[str, Any]:
        """All fields and the sentence, for strict JSON: numbers that are not finite are None."""
        return {"sentence": self.sentence, "adds_up": self.adds_up, **_strict(asdict(self))}

    def plot(self) -> Any:
        """A matplotlib figure of the parts, stacked over t."""
        return importlib.import_module("vgs_rl.plots.budget").plot_budget(self)

    def __repr__(self) -> str:
        rows = list(self.rows())
        width = max(len(name) for name, _ in rows)
        title = f"{self.target}, T = {self.num_steps}, nats"
        return "\n".join([title, *(f"{a.ljust(width)}  {b}" for a, b in rows), self.sentence])


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _strict(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
