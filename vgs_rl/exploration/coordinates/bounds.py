"""A target's support as users say it: bounds, or constraints of torch.distributions."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from vgs_rl.checks import count_of
from vgs_rl.exploration.coordinates.support import Block, Periodic, Support


def support_of(dim: int, *, bounds: Any = None, support: Any = None) -> Support:
    """The coordinates of a target on a part of R^D, given in one of two ways.

    Constraints are `real` (or None), `positive`, `nonnegative`, `greater_than`, `greater_than_eq`,
    `less_than`, `interval`, `unit_interval`, `half_open_interval` and `simplex` of
    `torch.distributions.constraints`, `independent` around them, and
    :func:`~vgs_rl.exploration.coordinates.support.periodic`. Matrices, discrete values and all
    others are refused.

    Args:
        dim: D.
        bounds: a pair (low, high). Each is a number for all coordinates or a sequence of D;
            None, or an infinity, means that there is no bound.
        support: one constraint for all coordinates, or a list in the order of the coordinates. Its
            entries are a constraint or None for one coordinate, or a pair (constraint, k) for k of
            them. A simplex without k, of which there may be one, takes what the others leave.

    Raises:
        ValueError: if both are given, or what is given does not fit D or itself.

    Example:
        >>> shape = support_of(3, support=[(constraints.simplex, 2), constraints.positive])
        >>> shape.dim_z, shape.dim_x
        (2, 3)
    """
    dim = count_of("dim", dim)
    if bounds is not None and support is not None:
        raise ValueError("give either bounds or support, got both")
    if bounds is not None:
        return Support(_bounded(bounds, dim))
    if isinstance(support, list | tuple):
        return Support(_listed(support, dim))
    return Support([_block("support", support, dim)])


def _bounded(bounds: Any, dim: int) -> list[Block]:
    if not isinstance(bounds, Sequence | Tensor) or len(bounds) != 2:
        raise ValueError(f"bounds must be a pair (low, high), got {bounds!r}")
    low = _numbers("bounds low", bounds[0], dim, -math.inf)
    high = _numbers("bounds high", bounds[1], dim, math.inf)
    names = []
    for i, (a, b) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        if not a < b:
            raise ValueError(f"bounds: low must be below high in coordinate {i}, got {a:g}, {b:g}")
        kinds = {(False, False): "real", (True, False): "above", (False, True): "below"}
        names.append(kinds.get((math.isfinite(a), math.isfinite(b)), "between"))
    runs = [(name, len([*run])) for name, run in itertools.groupby(names)]
    sizes = [size for _, size in runs]
    rows = zip(runs, low.split(sizes), high.split(sizes), strict=True)
    return [Block(name, lows, highs) for (name, _), lows, highs in rows]


def _listed(entries: Sequence[Any], dim: int) -> list[Block]:
    sizes: list[int | None] = []
    found: list[Any] = []
    for i, entry in enumerate(entries):
        name = f"support[{i}]"
        constraint, size = entry, 1
        if isinstance(entry, tuple):
            if len(entry) != 2:
                raise ValueError(f"{name} must be a constraint or (constraint, k), got {entry!r}")
            constraint, size = entry[0], count_of(f"{name} k", entry[1])
        found.append(constraint)
        open_size = not isinstance(entry, tuple) and _is_simplex(constraint)
        sizes.append(None if open_size else size)
    known = sum(size for size in sizes if size is not None)
    unknown = [i for i, size in enumerate(sizes) if size is None]
    if len(unknown) > 1:
        rest = ", ".join(f"support[{i}]" for i in unknown)
        raise ValueError(f"only one simplex may be without its size, got {rest}: give (simplex, k)")
    if unknown:
        if dim - known < 2:
            raise ValueError(
                f"support[{unknown[0]}] is a simplex of what is left, at least 2 of the {dim} "
                f"coordinates, got {dim - known}"
            )
    elif known != dim:
        raise ValueError(f"support must cover the {dim} coordinates, got {known}")
    return [
        _block(f"support[{i}]", constraint, dim - known if size is None else size)
        for i, (constraint, size) in enumerate(zip(found, sizes, strict=True))
    ]


def _is_simplex(constraint: Any) -> bool:
    return isinstance(constraint, type(constraints.simplex))


def _block(name: str, constraint: Any, size: int) -> Block:
    """One constraint for `size` coordinates."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    low: Any = None
    high: Any = None
    if constraint is None or isinstance(constraint, type(constraints.real)):
        kind = "real"
    elif isinstance(constraint, Periodic):
        kind, low, high = "periodic", constraint.low, constraint.low + constraint.period
    elif _is_simplex(constraint):
        if size < 2:
            raise ValueError(f"{name} is a simplex, which needs at least 2 coordinates, got {size}")
        kind, low, high = "simplex", 0.0, 1.0
    elif isinstance(constraint, constraints.greater_than | constraints.greater_than_eq):
        kind, low = "above", constraint.lower_bound
    elif isinstance(constraint, constraints.less_than):
        kind, high = "below", constraint.upper_bound
    elif isinstance(constraint, constraints.interval | constraints.half_open_interval):
        kind, low, high = "between", constraint.lower_bound, constraint.upper_bound
    else:
        raise ValueError(
            f"{name} must be None, real, positive, nonnegative, greater_than, greater_than_eq, "
            "less_than, interval, unit_interval, half_open_interval or simplex of "
            "torch.distributions.constraints, or vgs_rl.exploration.periodic() for angles, "
            f"got {constraint!r}"
        )
    lows = _numbers(f"{name} low", low, size, -math.inf)
    highs = _numbers(f"{name} high", high, size, math.inf)
    wrong = ~(lows < highs)
    if low is not None:
        wrong |= ~lows.isfinite()
    if high is not None:
        wrong |= ~highs.isfinite()
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        raise ValueError(
            f"{name}: bounds must be finite and low below high, got {lows[i]:g}, {highs[i]:g}"
        )
    return Block(kind, lows, highs)


def _numbers(name: str, value: Any, size: int, absent: float) -> Tensor:
    """A bound as numbers of shape (size,), float64, where None is `absent`."""
    if value is None or isinstance(value, numbers.Real):
        value = [value] * size
    elif isinstance(value, Tensor) and value.ndim == 0:
        value = [float(value)] * size
    try:
        row = [absent if each is None else float(each) for each in value]
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number or a sequence of them, got {value!r}") from None
    if len(row) != size:
        raise ValueError(f"{name} must be a number or {size} of them, got {len(row)}")
    if any(math.isnan(each) for each in row):
        raise ValueError(f"{name} must not be NaN, got {row}")
    return torch.tensor(row, dtype=torch.float64)
