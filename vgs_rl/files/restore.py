"""Restoring state from checkpoints: types and shapes are checked before anything is changed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vgs_rl.checks import one_line


def check_like(value: Any, own: Any, name: str = "") -> None:
    """Checks that a state has the structure of an object's own state.

    Keys, types, dtypes and shapes must agree. What the own state leaves open (None, an empty
    mapping or list) takes anything, and a tensor without elements takes any shape.

    Args:
        value: the state to restore.
        own: what the object's `state_dict` returns now.
        name: dotted name of the state, for messages.

    Raises:
        ValueError: naming what differs.
    """
    if own is None:
        return
    if isinstance(own, Tensor):
        _check_tensor(value, own, name)
    elif isinstance(own, Mapping):
        if not isinstance(value, Mapping):
            raise _error(name, "a mapping", value)
        if not own:
            return
        if missing := [key for key in own if key not in value]:
            raise ValueError(f"{name or 'the state'} lacks {', '.join(map(str, missing))}")
        if unknown := [key for key in value if key not in own]:
            known = f"{name or 'the state'} has no"
            raise ValueError(f"{known} {', '.join(map(str, unknown))} in this configuration")
        for key in own:
            check_like(value[key], own[key], f"{name}.{key}" if name else str(key))
    elif isinstance(own, (list, tuple)):
        if not isinstance(value, (list, tuple)):
            raise _error(name, "a list", value)
        if own and len(value) != len(own):
            raise _error(name, f"a list of {len(own)}", value)
        for i, (each, mine) in enumerate(zip(value, own, strict=False)):
            check_like(each, mine, f"{name}[{i}]")
    elif isinstance(own, bool) or not isinstance(own, (int, float)):
        if type(value) is not type(own):
            raise _error(name, f"a {type(own).__name__}", value)
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _error(name, "a number", value)


def load_module(module: nn.Module, state: Any, name: str) -> None:
    """Restores a module whose parameters and buffers have these shapes and dtypes.

    Raises:
        ValueError: naming what differs.
    """
    check_like(state, module.state_dict(), name)
    module.load_state_dict(state)


def restore(target: Any, state: Any, name: str) -> None:
    """Restores a module, an optimiser, or whatever has `load_state_dict` and checks by itself.

    Raises:
        ValueError: naming what differs.
    """
    if isinstance(target, nn.Module):
        load_module(target, state, name)
    elif isinstance(target, Optimizer):
        load_optimizer(target, state, name)
    else:
        target.load_state_dict(state)


@contextmanager
def fitting(what: str = "the checkpoint") -> Iterator[None]:
    """Turns what restoring a foreign state raises into one ValueError of one line."""
    try:
        yield
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        reason = one_line(error)
        reason = f"it lacks {reason}" if isinstance(error, KeyError) else reason
        raise ValueError(f"{what} does not fit this configuration: {reason}") from error


def load_optimizer(optimizer: Optimizer, state: Any, name: str = "optimizer") -> None:
    """Restores an optimiser whose state fits its parameters.

    PyTorch itself checks the number of parameters only; moments of another shape end the process.

    Raises:
        ValueError: naming what differs.
    """
    check_optimizer(optimizer, state, name)
    optimizer.load_state_dict(state)


def check_optimizer(optimizer: Optimizer, state: Any, name: str = "optimizer") -> None:
    """The check of :func:`load_optimizer`, which changes nothing.

    Raises:
        ValueError: as there.
    """
    own = optimizer.state_dict()
    check_like(state, {"state": {}, "param_groups": own["param_groups"]}, name)
    for group, mine in zip(state["param_groups"], own["param_groups"], strict=True):
        if list(group["params"]) != list(mine["params"]):
            raise _error(f"{name}.param_groups.params", f"{mine['params']}", group["params"])
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    expected = _state_of_a_step(optimizer) if state["state"] else {}
    for index, moments in state["state"].items():
        if not (isinstance(index, int) and 0 <= index < len(parameters)):
            raise _error(f"{name}.state", f"a parameter's index below {len(parameters)}", index)
        shape = parameters[index].shape
        fitting = {
            key: value.new_zeros(shape) if value.ndim else value
            for key, value in expected.items()
            if isinstance(value, Tensor)
        }
        check_like(moments, {**expected, **fitting}, f"{name}.state.{index}")


def _state_of_a_step(optimizer: Optimizer) -> dict[str, Any]:
    """What this kind of optimiser keeps for a parameter, of one with two elements."""
    taken = inspect.signature(type(optimizer)).parameters
    options = {key: value for key, value in optimizer.defaults.items() if key in taken}
    first = optimizer.param_groups[0]["params"][0]
    parameter = nn.Parameter(torch.zeros(2, dtype=first.dtype))
    parameter.grad = torch.zeros_like(parameter)
    other = type(optimizer)([parameter], **options)
    other.step()
    return dict(other.state[parameter])


def load_generator(generator: torch.Generator, state: Any, name: str = "generator") -> None:
    """Restores a generator.

    Raises:
        ValueError: if it is no generator's state.
    """
    _check_tensor(state, generator.get_state(), name)
    try:
        generator.set_state(state.cpu())
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{name} is no state of a generator: {error}") from error


def check_rows(state: Any, dims: Mapping[str, int], name: str, *, width: int | None = None) -> None:
    """Checks tensors of as many rows each, as buffers hold them.

    Args:
        state: the state to restore.
        dims: the tensors' names and numbers of dimensions.
        name: the buffer, for messages.
        width: length of the rows of two-dimensional ones, where it is known.

    Raises:
        ValueError: naming what does not fit.
    """
    if not isinstance(state, Mapping):
        raise _error(name, "a mapping", state)
    shapes, lengths, widths = list[str](), set[int](), {width} - {None}
    for key, ndim in dims.items():
        value = state.get(key)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise _error(f"{name}.{key}", "a floating tensor", value)
        shapes.append(f"{key} {tuple(value.shape)}")
        if value.numel() and value.ndim != ndim:
            raise ValueError(f"{name}.{key} must have {ndim} dimensions, got {tuple(value.shape)}")
        lengths.add(len(value) if value.ndim else 0)
        if value.numel() and ndim == 2:
            widths.add(value.shape[1])
    if len(lengths) > 1 or len(widths) > 1:
        wide = "" if width is None else f" of length {width}"
        raise ValueError(f"{name} must hold as many rows{wide} of each, got {', '.join(shapes)}")


def _check_tensor(value: Any, own: Tensor, name: str) -> None:
    if not isinstance(value, Tensor):
        raise _error(name, "a tensor", value)
    scalars = own.ndim == 0 and value.is_floating_point() and own.is_floating_point()
    if value.dtype != own.dtype and not scalars:
        raise ValueError(f"{name} must have dtype {own.dtype}, got {value.dtype}")
    if own.numel() and value.shape != own.shape:
        raise ValueError(f"{name} must have shape {tuple(own.shape)}, got {tuple(value.shape)}")


def _error(name: str, expected: str, value: Any) -> ValueError:
    shown = repr(value) if isinstance(value, (str, int, float)) else type(value).__name__
    return ValueError(f"{name or 'the state'} must be {expected}, got {shown[:80]}")
