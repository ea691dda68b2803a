"""Checks of how an energy may be called: by several threads, and what it does to its states."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from vgs_rl.energy import Energy
from vgs_rl.envs.checks.report import CheckReport, expect

TORCH = str(Path(torch.__file__).parent)


def check_states_left_alone(energy: Energy, x: Tensor, report: CheckReport) -> None:
    """Whether E changes its x in place."""
    with report.check("states are left as they were"):
        for method in (energy.energy, energy.energy_and_gradient):
            given = x.to(energy.dtype or x.dtype, copy=True)
            before = given.clone()
            with torch.no_grad():
                method(given)
            changed = int((given != before).any(-1).sum())
            expect(
                changed == 0,
                f"expected {method.__name__} to leave x as it was, it changed {changed} of "
                f"{len(x)} states in place; samplers hand over a copy, others may not",
            )


def check_threads(energy: Energy, x: Tensor, report: CheckReport) -> None:
    """Whether E has the same values where two threads are at it; an error if it promises them."""
    name = "two threads at once"
    found = next(
        filter(None, (differs(method, x) for method in (energy, energy.with_gradient))), ""
    )
    if energy.thread_safe:
        with report.check(name):
            expect(not found, f"expected thread_safe to hold, but {found}: set it to False")
    elif found:
        report.skipped[name] = f"thread_safe is False, and so it must be: {found}"
    else:
        report.skipped[name] = "thread_safe is False, though no difference was found"


def differs(
    method: Callable[[Tensor], Any], x: Tensor, *, stops: int = 200, limit: float = 0.5
) -> str:
    """How results differ where two threads call a method, or an empty string.

    One thread is stopped before every line of its call, while another calls the method from
    beginning to end for other states. So whatever the call keeps between two lines shows.

    Args:
        method: maps states (B, D) to a tensor or several.
        x: at least two states; the threads share them.
        stops: most stops.
        limit: seconds after which the first thread goes on without stops.
    """
    mine, other = x[::2], x[1::2]
    begin = time.perf_counter()
    right, others_right = method(mine), method(other)
    patience = 0.2 + 10 * (time.perf_counter() - begin)
    calls: list[Future[Any]] = []
    until = time.perf_counter() + limit

    def stop(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal until
        if frame.f_code.co_filename.startswith(TORCH):
            return None
        if event == "line" and len(calls) < stops and time.perf_counter() < until:
            calls.append(second.submit(method, other))
            try:
                calls[-1].exception(patience)
            except TimeoutError:  # a lock lets nobody else in: there is nothing to see
                until = 0.0
        return stop

    def stopped() -> Any:
        sys.settrace(stop)
        try:
            return method(mine)
        finally:
            sys.settrace(None)

    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        results = [(first.submit(stopped), right)]
        results[0][0].exception()
        for call, expected in [*results, *((call, others_right) for call in calls)]:
            error = call.exception()
            if error is not None:
                return f"in a thread it raised {type(error).__name__}: {error}"
            if not _same(call.result(), expected):
                return "it gave other values than in one thread"
    return ""


def _same(got: Any, right: Any) -> bool:
    if isinstance(right, Tensor):
        return torch.allclose(got, right, rtol=1e-5, atol=1e-8, equal_nan=True)
    return all(_same(a, b) for a, b in zip(got, right, strict=True))
