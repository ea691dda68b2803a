"""Data-parallel training: what the processes of one training agree on.

`torchrun --nproc-per-node N -m vgs_rl train gmm9` starts N processes, the ranks. Each runs the same
program on its part of every batch, and they meet in the functions below. A process by itself is
rank 0 of 1. Every function is then the identity, so there is one code path.

The ranks call these functions in the same order. What decides whether one is called has to be the
same on all of them, such as a counter that they have added up.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

PATIENCE = timedelta(days=1)  # for the first rank, which validates, saves and draws pictures alone

_joined = False
_sent = 0
_meetings = 0


class RankLost(OSError):
    """Another rank has ended, so that this one cannot go on."""


def rank() -> int:
    """The number of this process among those of the training, from 0."""
    return dist.get_rank() if _joined else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _joined else 1


def is_first() -> bool:
    """Whether this is rank 0, which logs, validates, saves and draws pictures."""
    return rank() == 0


def started_together() -> bool:
    """Whether the process was started as one of several, by `torchrun` or in its way."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(device: str = "auto") -> Iterator[None]:
    """Within it the process is one of those that `torchrun` has started; else it is by itself.

    Args:
        device: `auto`, `cpu` or `cuda`. On GPUs each rank of a machine has the one of its number.

    Raises:
        ValueError: if a machine has fewer GPUs than ranks, or `device` names one of them.
    """
    global _joined
    if not started_together():
        yield
        return
    backend = "gloo"
    if device != "cpu" and torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if device not in ("auto", "cuda"):
            raise ValueError(f"device must be auto, cpu or cuda with several ranks, got {device}")
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"device {device}: rank {local} of this machine has no GPU among its "
                f"{torch.cuda.device_count()}; start fewer ranks, or take --device cpu"
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"  # what is decided on the host needs no GPU
    dist.init_process_group(backend, timeout=PATIENCE)
    _joined = True
    try:
        yield
    finally:
        _joined = False
        dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Within it the process is by itself: every rank does the whole of the same work."""
    global _joined
    before, _joined = _joined, False
    try:
        yield
    finally:
        _joined = before


def sent() -> int:
    """Bytes of the tensors that this rank has brought to the meetings so far; no objects."""
    return _sent


def meetings() -> int:
    """How often this rank has met the others so far."""
    return _meetings


@contextmanager
def _meeting(*brought: Tensor) -> Iterator[None]:
    global _sent, _meetings
    _sent += sum(tensor.nbytes for tensor in brought)
    _meetings += 1
    try:
        yield
    except RuntimeError as error:
        raise RankLost(f"rank {rank()} cannot go on, another rank has ended: {error}") from error


# --- what each rank has for itself ---------------------------------------------------------------


def portion(name: str, n: int) -> int:
    """This rank's part of n rows of all ranks.

    Args:
        name: of the setting, for the error.
        n: of all ranks together.

    Raises:
        ValueError: if n cannot be divided by the number of ranks.
    """
    if n % world_size():
        raise ValueError(f"{name} must be divisible by the {world_size()} ranks, got {n}")
    return n // world_size()


def own_seed(seed: int) -> int:
    """A seed of this rank's own random numbers, which no other rank shares; rank 0 has `seed`."""
    return seed if is_first() else _derived(seed, rank())


def common_seed(seed: int) -> int:
    """A seed of random numbers that are the same on all ranks, and no rank's own."""
    return _derived(seed, 0)


def _derived(seed: int, key: int) -> int:
    state = np.random.SeedSequence(seed, spawn_key=(key,)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


# --- where they meet ------------------------------------------------------------------------------


def average_gradients(parameters: Iterable[Tensor], *numbers: Tensor) -> tuple[Tensor, ...]:
    """Averages the gradients over the ranks, in place, by one message.

    A gradient that is not finite on one rank is not finite on any afterwards, so that all of them
    skip the step.

    Args:
        parameters: those with a gradient are averaged; the same on every rank.
        *numbers: scalars that are averaged along with them.

    Returns:
        The averages of the numbers, detached; with one rank the numbers themselves.
    """
    if world_size() == 1:
        return numbers
    gradients = [p.grad for p in parameters if p.grad is not None]
    scalars = [number.detach().to(gradients[0]).reshape(1) for number in numbers]
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), *scalars])
    with _meeting(flat):
        dist.all_reduce(flat)
    flat /= world_size()
    sizes = [gradient.numel() for gradient in gradients]
    *parts, means = flat.split([*sizes, len(scalars)])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
    return tuple(means)


def gather(x: Tensor) -> Tensor:
    """The rows of all ranks, in the ranks' order; each may have another number of them."""
    return x if world_size() == 1 else torch.cat(gather_parts(x))


def gather_parts(x: Tensor) -> list[Tensor]:
    """The rows of every rank, in the ranks' order."""
    if world_size() == 1:
        return [x]
    counts = [int(n) for n in each_rank(len(x))]
    padded = x.new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    with _meeting(padded):
        dist.all_gather(parts, padded)
    return [part[:n] for part, n in zip(parts, counts, strict=True)]


def mean(x: Tensor, weight: float = 1.0) -> Tensor:
    """The mean of a tensor over the ranks.

    Args:
        x: of one shape on all ranks.
        weight: of this rank's.
    """
    if world_size() == 1:
        return x
    total = torch.cat([(x * weight).flatten(), x.new_full((1,), weight)])
    with _meeting(total):
        dist.all_reduce(total)
    return (total[:-1] / total[-1]).view_as(x)


def totals(*numbers: float) -> tuple[float, ...]:
    """Sums over the ranks."""
    if world_size() == 1:
        return numbers
    summed = torch.tensor(numbers, dtype=torch.float64)
    with _meeting(summed):
        dist.all_reduce(summed)
    return tuple(summed.tolist())


def each_rank(number: float) -> list[float]:
    """A number of every rank, in the ranks' order."""
    own = [0.0] * world_size()
    own[rank()] = number
    return list(totals(*own))


def all_of(holds: bool) -> bool:
    """Whether it holds on every rank."""
    return totals(float(holds))[0] == world_size()


def means(scalars: Mapping[str, float]) -> dict[str, float]:
    """Means over the ranks, of the same names on each."""
    summed = totals(*scalars.values())
    return {name: total / world_size() for name, total in zip(scalars, summed, strict=True)}


def equalise(tensors: Iterable[Tensor]) -> None:
    """Gives every rank the first one's numbers, in place."""
    if world_size() == 1:
        return
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor.detach())
    for alike in by_type.values():
        flat = torch.cat([tensor.flatten() for tensor in alike])
        with _meeting(flat):
            dist.broadcast(flat, 0)
        for tensor, part in zip(alike, flat.split([t.numel() for t in alike]), strict=True):
            tensor.copy_(part.view_as(tensor))


def from_first(value: T) -> T:
    """An object of rank 0, on every rank."""
    if world_size() == 1:
        return value
    values: list[Any] = [value]
    with _meeting():
        dist.broadcast_object_list(values, 0)
    found: T = values[0]
    return found


def to_first(value: T) -> Sequence[T]:
    """The objects of all ranks, on rank 0; nothing on the others."""
    if world_size() == 1:
        return [value]
    found: list[Any] | None = [None] * world_size() if is_first() else None
    with _meeting():
        dist.gather_object(value, found, 0)
    return found or []


def meet() -> None:
    """Waits for all ranks."""
    totals(0.0)
