"""What is asked of an energy before any work starts: what it declares, and a look at its values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from vgs_rl.chain import Chain
from vgs_rl.energy import Energy, Particles
from vgs_rl.geometry import Geometry
from vgs_rl.starts.base import Start

# Far states, where none of the near ones has a finite energy: so many at a time, so many in all.
FAR_AT_ONCE, MOST_FAR = 1_024, 16_384


def check_declared(energy: object) -> None:
    """Checks the attributes that an energy declares, without a call of it.

    Raises:
        TypeError: if it is not an :class:`Energy`.
        ValueError: if an attribute is of another kind than the base class says, naming it.
    """
    name = type(energy).__name__
    if not isinstance(energy, Energy):
        raise TypeError(f"energy must be a vgs_rl.Energy, got {name}")
    if "_modules" not in vars(energy):
        raise ValueError(f"{name}.__init__ must call super().__init__() first")
    declared: Any = energy  # attributes may be anything still
    dim = getattr(declared, "dim", None)
    if isinstance(dim, bool) or not isinstance(dim, Integral) or dim < 1:
        raise ValueError(f"{name}.dim must be a positive integer, got {dim!r}")
    log_z, probabilities, symmetry = declared.log_z, declared.mode_probabilities, declared.symmetry
    geometry, dtype = declared.geometry, declared.dtype
    if log_z is not None and (isinstance(log_z, bool) or not isinstance(log_z, Real)):
        raise ValueError(f"{name}.log_z must be a float or None, {_got(log_z)}")
    if symmetry is not None and not isinstance(symmetry, Particles):
        raise ValueError(f"{name}.symmetry must be a vgs_rl.Particles or None, {_got(symmetry)}")
    if not isinstance(geometry, Geometry) or geometry.dim != dim:
        raise ValueError(
            f"{name}.geometry must be a vgs_rl.geometry.Geometry of dim {dim}, {_got(geometry)}"
        )
    if probabilities is not None and not (
        isinstance(probabilities, Tensor) and probabilities.ndim == 1
    ):
        raise ValueError(
            f"{name}.mode_probabilities must be a tensor of shape (M,) or None, "
            f"{_got(probabilities)}"
        )
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"{name}.dtype must be a floating torch.dtype or None, {_got(dtype)}")


def _got(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return f"got a {type(value).__name__} of shape {tuple(shape)}"
    return f"got {value!r}"


def probe(energy: Energy, near: Mapping[str, Tensor], far: Callable[[int], Tensor]) -> None:
    """Evaluates an energy once where a chain begins, and where it may come; without gradients on.

    Args:
        energy: the target, with its attributes checked.
        near: states (B, D) that the chain meets, by where they are from.
        far: draws as many others, (n, D), further out or between. Only where none of `near` has a
            finite energy must one of these have it, and only then are many drawn.

    Raises:
        ValueError: if E fails, has another shape than (B,) or no floating dtype, is -inf anywhere
            or finite nowhere.
    """
    name = energy._called
    values = {where: _evaluated(energy, x) for where, x in near.items()}
    energy.differentiable(next(iter(near.values())))
    together = torch.cat(list(values.values()))
    further = far(64)
    least = torch.cat([together, _evaluated(energy, further)])
    if bool((least == -torch.inf).any()):
        count = int((least == -torch.inf).sum())
        raise ValueError(
            f"{name}.energy returned -inf on {count} of {len(least)} states: exp(-E) must be "
            "finite everywhere"
        )
    finite = int(torch.isfinite(together).sum())
    if finite == len(together):
        return
    what = f"NaN on {int(together.isnan().sum())} and infinite on {int(together.isposinf().sum())}"
    places = " and ".join(
        f"{where} (up to {float(x.abs().max()):.3g} in a coordinate)" for where, x in near.items()
    )
    if finite:
        warnings.warn(
            f"{name}.energy is {what} of {len(together)} states drawn {places}: such states have "
            "weight 0 and teach nothing",
            stacklevel=6,
        )
        return
    drawn, reached = 0, 0.0
    found = False
    while not found and drawn < MOST_FAR:
        further = far(FAR_AT_ONCE)
        drawn, reached = drawn + len(further), max(reached, float(further.abs().max()))
        found = bool(_evaluated(energy, further).isfinite().any())
    if not found:
        raise ValueError(
            f"{name}.energy is finite nowhere: {what} of {len(together)} states drawn {places}, "
            f"and on none of {drawn} others, up to {reached:.3g}; move or scale E, or set "
            "mdp.start.scale and agent.prior_std to the size of the region where it is finite"
        )
    warnings.warn(
        f"{name}.energy is {what} of {len(together)} states drawn {places}, which are all, and "
        f"finite on some of {drawn} others: set agent.prior_std (or mdp.start.scale) to the "
        "size of the region where it is finite",
        stacklevel=6,
    )


@torch.no_grad()
def probe_chain(
    energy: Energy, chain: Chain, start: Start, generator: torch.Generator, dtype: torch.dtype
) -> None:
    """Looks at E where the untrained chain begins and ends, and up to 100 times as far out."""
    geometry, device = energy.geometry, generator.device

    def normal(n: int) -> Tensor:
        z = torch.randn(n, int(energy.dim), generator=generator, device=device, dtype=dtype)
        return geometry.tangent(z, z) if geometry.linear else geometry.project(z)

    x = start.sample(64, generator)
    if not geometry.linear:
        probe(energy, {"from the start": x}, normal)
        return
    # Without a control.
    end = geometry.scaled(x + chain.S[0].sqrt() * normal(64), chain.A[0])
    width = end[:, : geometry.moving].square().mean().sqrt()
    near = {"from the start": x, "from where the untrained chain ends": end}

    def far(n: int) -> Tensor:
        reach = torch.logspace(-1, 2, n, device=device, dtype=dtype)
        origin = geometry.scaled(x[torch.arange(n, device=device) % len(x)], 0.0)
        return origin + width * reach.unsqueeze(-1) * normal(n)

    probe(energy, near, far)


def _evaluated(energy: Energy, x: Tensor) -> Tensor:
    try:
        return energy(x)
    except ValueError:
        raise
    except Exception as error:  # of a user's code
        raise ValueError(
            f"{energy._called}.energy failed on states of shape {tuple(x.shape)} in "
            f"{x.dtype}: {type(error).__name__}: {error}"
        ) from error
