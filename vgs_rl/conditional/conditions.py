"""Parameters of an energy: their names, ranges and scales, and functions of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vgs_rl.weights import cleaned

ConditionLike = float | Sequence[float] | Mapping[str, float] | Tensor
"""One value of every parameter: a number where there is one, numbers in order, or by name."""

MOST_KNOTS = 32


class Conditions:
    """C named parameters c, each in a range.

    A parameter's unit u in [-1, 1] is linear in it, or in its logarithm. In training u is uniform.
    Functions of c are interpolated between K knots, a regular grid in u: hat functions h_k(c) ≥ 0
    are 1 at their knot, 0 at the others, and sum to 1.

    Attributes:
        names: of the parameters.
        low: lower ends of their ranges, float64, shape (C,).
        high: upper ends.
        logarithmic: whether each is logarithmic, shape (C,).
        knots: along each axis.

    Args:
        ranges: lower and upper end of each parameter, by name.
        logarithmic: names of those whose scale is logarithmic.

    Raises:
        ValueError: if there is none, a range is not finite or not ascending, or a logarithmic one
            is not above 0.

    Example:
        >>> conditions = Conditions({"kappa": (0.2, 0.3)})
        >>> conditions.tensor({"kappa": 0.25})
        tensor([0.2500], dtype=torch.float64)
    """

    def __init__(
        self, ranges: Mapping[str, Sequence[float]], logarithmic: Collection[str] = ()
    ) -> None:
        if not ranges:
            raise ValueError("conditions must name at least one parameter, got none")
        for name, ends in ranges.items():
            least = 0.0 if name in logarithmic else -math.inf
            check_range(name, ends, least)
        if unknown := [name for name in logarithmic if name not in ranges]:
            raise ValueError(f"logarithmic must be some of {', '.join(ranges)}, got {unknown[0]!r}")
        self.names = tuple(ranges)
        self.low = torch.tensor([float(low) for low, _ in ranges.values()], dtype=torch.float64)
        self.high = torch.tensor([float(high) for _, high in ranges.values()], dtype=torch.float64)
        self.logarithmic = torch.tensor([name in logarithmic for name in ranges])
        self._ends: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor, Tensor]] = {}
        # Five along one axis, three along three of them; one where a grid would have too many.
        self.knots = next(k for k in (5, 3, 2, 1) if k**self.size <= MOST_KNOTS)

    @property
    def size(self) -> int:
        """C, the number of parameters."""
        return len(self.names)

    @property
    def count(self) -> int:
        """K, the number of knots."""
        return int(self.knots**self.size)

    def __repr__(self) -> str:
        ends = zip(self.names, self.low.tolist(), self.high.tolist(), strict=True)
        return f"Conditions({', '.join(f'{name} in [{a:g}, {b:g}]' for name, a, b in ends)})"

    def tensor(self, value: ConditionLike) -> Tensor:
        """One value of every parameter as a tensor of shape (C,), float64.

        Args:
            value: a number where C = 1, C numbers in the order of `names`, or a mapping by name.

        Raises:
            ValueError: naming the parameter, its value and its range.
        """
        if isinstance(value, Mapping):
            if sorted(value) != sorted(self.names):
                got = ", ".join(map(str, value)) or "none"
                raise ValueError(f"condition must name {', '.join(self.names)}, got {got}")
            value = [value[name] for name in self.names]
        numbers_given = isinstance(value, Tensor) and not value.is_floating_point()
        given = value.detach().cpu() if isinstance(value, Tensor) else value
        if isinstance(given, str | bool) or numbers_given:
            raise ValueError(f"condition must be {self._expected}, got {value!r}")
        try:
            c = torch.as_tensor(given, dtype=torch.float64).reshape(-1)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"condition must be {self._expected}, got {value!r}") from error
        if len(c) != self.size:
            raise ValueError(f"condition must be {self._expected}, got {len(c)} numbers")
        for name, number, low, high in zip(
            self.names, c.tolist(), self.low.tolist(), self.high.tolist(), strict=True
        ):
            if not low <= number <= high:
                raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {number:g}")
        return c

    @property
    def _expected(self) -> str:
        one = f"a number, {self.names[0]}"
        return one if self.size == 1 else f"{self.size} numbers, {', '.join(self.names)}"

    def unit(self, c: Tensor) -> Tensor:
        """Where values c (B, C) are in their ranges, in [-1, 1]: (B, C)."""
        low, high, logarithmic = self._on(c)
        return 2 * (self._scaled(c, logarithmic) - low) / (high - low) - 1

    def at_unit(self, u: Tensor) -> Tensor:
        """The values at u (B, C) in [-1, 1]: the inverse of :meth:`unit`."""
        low, high, logarithmic = self._on(u)
        scaled = torch.lerp(low.expand_as(u), high.expand_as(u), 0.5 * (u + 1))
        c = torch.where(logarithmic, scaled.exp(), scaled)
        return torch.minimum(torch.maximum(c, self.low.to(u)), self.high.to(u))

    def _on(self, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ends of the ranges on their scales, and which are logarithmic, where c is."""
        key = c.device, c.dtype
        if key not in self._ends:
            ends = (self._scaled(end, self.logarithmic).to(c) for end in (self.low, self.high))
            low, high = ends
            self._ends[key] = low, high, self.logarithmic.to(c.device)
        return self._ends[key]

    @staticmethod
    def _scaled(c: Tensor, logarithmic: Tensor) -> Tensor:
        return torch.where(logarithmic, c.clamp_min(1e-30).log(), c)

    def draw(self, n: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """N values as training draws them, uniform in u: shape (n, C)."""
        device = generator.device
        shape = (n, self.size)
        u = torch.rand(shape, generator=generator, device=device, dtype=torch.float64)
        return self.at_unit(2 * u - 1).to(dtype)

    def spread(self, n: int, generator: torch.Generator) -> Tensor:
        """N values that fill the ranges evenly, by a Sobol sequence in u: shape (n, C), float64."""
        device = generator.device
        seed = int(torch.randint(2**31, (), generator=generator, device=device))
        sobol = torch.quasirandom.SobolEngine(self.size, scramble=True, seed=seed)
        return self.at_unit(2 * sobol.draw(n, dtype=torch.float64).to(device) - 1)

    def grid(self, n: int) -> Tensor:
        """N values evenly spaced in u, along the diagonal where C > 1: shape (n, C), float64."""
        u = torch.linspace(-1, 1, n, dtype=torch.float64).unsqueeze(-1)
        return self.at_unit(u.expand(n, self.size))

    def hats(self, c: Tensor) -> Tensor:
        """The hat functions h_k(c) of values (B, C): shape (B, K)."""
        if self.knots == 1:
            return c.new_ones(len(c), 1)
        place = (0.5 * (self.unit(c) + 1) * (self.knots - 1)).clamp(0, self.knots - 1)
        index = torch.arange(self.knots, device=c.device, dtype=c.dtype)
        axes = (1 - (place.unsqueeze(-1) - index).abs()).clamp_min(0.0)  # (B, C, knots)
        product = axes[:, 0]
        for axis in axes.unbind(1)[1:]:
            product = (product.unsqueeze(-1) * axis.unsqueeze(1)).flatten(1)
        return product

    def fit(self, c: Tensor, values: Tensor) -> Tensor:
        """Numbers at the knots whose interpolation is nearest to values (B,) at c (B, C): (K,)."""
        hats = self.hats(c).double()
        gram = hats.T @ hats
        # Knots that few values are near stay with the others' mean.
        ridge = 1e-6 * len(c) / self.count
        gram.diagonal().add_(ridge)
        mean = values.double().mean()
        around: Tensor = torch.linalg.solve(gram, hats.T @ (values.double() - mean))
        return (mean + around).to(values)

    def _trend(self, c: Tensor, log_weight: Tensor) -> Tensor:
        """Log-weights (B,) as a function of c (B, C), by least squares without outliers: (B,)."""
        hats = self.hats(c).double()
        place = (0.5 * (self.unit(c) + 1) * (self.knots - 1)).clamp(0, self.knots - 1).double()
        cells = torch.arange(self.knots - 1, device=c.device, dtype=torch.float64)
        share = (place.unsqueeze(-1) - cells).clamp(0, 1)
        columns = torch.cat([hats, (share * (1 - share)).flatten(1)], -1)
        live = torch.isfinite(log_weight)
        y, known = torch.where(live, log_weight, 0.0).double(), live.double().unsqueeze(-1)
        gram = columns.T @ (known * columns)
        gram.diagonal().add_(1e-6 * len(c) / self.count)
        mean = (known[:, 0] * y).sum() / known.sum().clamp_min(1)
        rest = known[:, 0] * (y - mean)
        trend = torch.zeros_like(rest)
        for _ in range(3):
            trend = columns @ torch.linalg.solve(gram, columns.T @ (known[:, 0] * rest))
            gap = rest - trend
            most = 2 * (known[:, 0] * gap.abs()).sum() / known.sum().clamp_min(1)
            rest = trend + gap.clamp(-most, most)
        return (mean + trend).to(log_weight)

    def levelled(self, c: Tensor, log_weight: Tensor) -> Tensor:
        """Log-weights (B,) less an estimate of log Z(c), at values c (B, C).

        What is subtracted depends on c alone: at every c weights keep their ratios, and the states
        of all c together get the shares that training draws c with, whatever Z(c) is.
        """
        log_weight = cleaned(log_weight)
        # Between knots log Z may bend by several nats, and then the mean weight is that of one end.
        log_weight = log_weight - self._trend(c, log_weight)
        log_hats = self.hats(c).to(log_weight).log()  # (B, K)
        log_mean = torch.logsumexp(log_weight.unsqueeze(-1) + log_hats, 0)
        log_mean = log_mean - torch.logsumexp(log_hats, 0)
        known = torch.isfinite(log_mean)
        fallback = torch.where(known, log_mean, 0.0).sum() / known.sum().clamp_min(1)
        level = log_hats.exp() @ torch.where(known, log_mean, fallback)
        return log_weight - level


def check_range(name: str, ends: object, least: float = -math.inf) -> None:
    """Refuses what is no ascending range of finite numbers above `least`.

    Raises:
        ValueError: naming the parameter.
    """
    pair: list[Any] = list(ends) if isinstance(ends, tuple | list) else []
    fine = len(pair) == 2 and all(
        isinstance(end, int | float) and not isinstance(end, bool) and math.isfinite(end)
        for end in pair
    )
    if not (fine and least < pair[0] < pair[1]):
        above = "" if least == -math.inf else f" above {least:g}"
        raise ValueError(f"{name} must be a range of two ascending numbers{above}, got {ends!r}")
