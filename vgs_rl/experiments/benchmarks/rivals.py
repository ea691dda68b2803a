"""What users would pick instead: NUTS, tempered SMC and nested sampling, without any setting.

The libraries get E as it is in torch. JAX reaches it by a callback that takes all chains or
particles at once. Each method starts from the wide Gaussian that exploration finds first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vgs_rl.checks import require_module, require_positive, seed_of
from vgs_rl.energy import Energy
from vgs_rl.exploration.reference import GaussianReference, find_reference
from vgs_rl.fields import nearest
from vgs_rl.samplers.mcmc.kernels import FiniteEnergy

Array = NDArray[np.float64]

NOWHERE = 1e100  # E where it is not finite: far outside, yet a number
CHAINS, WARM_UP, BLOCK = 8, 500, 10  # of NUTS: chains, and transitions of each
PARTICLES, MOVES, LEAPS = 512, 5, 10  # of SMC at first; HMC moves of a temperature, steps of each
LIVE, REMAINING = 500, 0.1  # of nested sampling: points, and nats at which it ends


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a method gave.

    Attributes:
        x: samples, shape (n, D), float64; none where it did not get that far.
        log_weight: shape (n,), or None for equal weights.
        log_z: its estimate, or None of a method that gives none; NaN where it did not end.
        r_hat: largest split R-hat over coordinates, NaN without chains.
        note: what went wrong, or nothing.
    """

    x: Tensor
    log_weight: Tensor | None = None
    log_z: float | None = None
    r_hat: float = math.nan
    note: str = ""


class Clock:
    """Seconds that are left from now on.

    Args:
        seconds: how many.
    """

    def __init__(self, seconds: float) -> None:
        self.began, self.seconds = time.monotonic(), seconds

    def left(self) -> float:
        """Seconds that are left, below 0 when they are over."""
        return self.seconds - (time.monotonic() - self.began)


class TimeIsUp(Exception):
    """Ends a run that another loop watches."""


# --- NUTS ----------------------------------------------------------------------------------------


def nuts(energy: Energy, seconds: float, seed: int) -> Estimate:
    """NUTS of NumPyro: CHAINS vectorised chains, each with WARM_UP transitions that are dropped.

    It gives no log Z.

    Args:
        energy: the target, on R^D.
        seconds: about how long it may take, compilation included.
        seed: of every random number.
    """
    clock, generator = Clock(seconds), torch.Generator().manual_seed(seed)
    first = wide_start(energy, generator).sample(CHAINS, generator)
    kept: list[Array] = []
    took = 0.0
    with double_jax():
        before = clock.left()
        for number, states in enumerate(nuts_blocks(energy, first, seed)):
            if number > 0:  # the first one is compiled
                took = max(took, before - clock.left())
            if number * BLOCK >= WARM_UP:
                kept.append(states)
            before = clock.left()
            if before < took:
                break
    if not kept:
        return Estimate(x=first[:0], note="the time ended in warm-up")
    return _of_chains(np.concatenate(kept).swapaxes(0, 1))


def nuts_blocks(energy: Energy, first: Tensor, seed: int) -> Iterator[Array]:
    """States of NUTS after each transition, shape (BLOCK, chains, D), without end.

    Args:
        energy: the target.
        first: where the chains begin, shape (chains, D).
        seed: of every random number.
    """
    import jax
    from numpyro.infer import NUTS

    density = callback_density(energy)
    kernel = NUTS(potential_fn=lambda z: -density(z))
    keys = jax.random.split(jax.random.key(seed), len(first))
    state = kernel.init(keys, WARM_UP, jax.numpy.asarray(first.numpy()), (), {})

    def transition(state: Any, _: None) -> tuple[Any, Any]:
        state = kernel.sample(state, (), {})
        return state, state.z

    block = jax.jit(lambda state: jax.lax.scan(transition, state, None, length=BLOCK))
    while True:
        state, states = jax.block_until_ready(block(state))
        yield np.asarray(states)


def _of_chains(x: Array) -> Estimate:
    """The estimate of chains, shape (chains, n, D)."""
    from numpyro.diagnostics import split_gelman_rubin

    r_hat = float(np.max(split_gelman_rubin(x)))
    return Estimate(x=torch.from_numpy(x.reshape(-1, x.shape[-1])), r_hat=r_hat)


# --- tempered SMC --------------------------------------------------------------------------------


def smc(energy: Energy, seconds: float, seed: int) -> Estimate:
    """Adaptive tempered SMC of BlackJAX with HMC moves, again with more particles while time is.

    The step size follows the acceptance rate, the mass matrix the particles' variances.

    Args:
        energy: the target, on R^D.
        seconds: about how long it may take, compilation included.
        seed: of every random number.
    """
    clock, generator = Clock(seconds), torch.Generator().manual_seed(seed)
    wide = wide_start(energy, generator)
    best = Estimate(x=wide.mean.new_empty(0, energy.dim), log_z=math.nan)
    particles = PARTICLES
    with double_jax():
        while True:
            before = clock.left()
            try:
                best = tempered(energy, wide, particles, clock, generator)
            except TimeIsUp:
                note = "" if len(best.x) else "the time ended before the last temperature"
                return Estimate(x=best.x, log_weight=best.log_weight, log_z=best.log_z, note=note)
            growth = min(0.8 * clock.left() / (before - clock.left()), 8.0)
            if growth < 1.2:
                return best
            particles = int(growth * particles)


def tempered(
    energy: Energy,
    wide: GaussianReference,
    particles: int,
    clock: Clock,
    generator: torch.Generator,
) -> Estimate:
    """One run of adaptive tempered SMC.

    Args:
        energy: the target.
        wide: where it begins.
        particles: how many.
        clock: watched between two temperatures.
        generator: source of randomness.

    Raises:
        TimeIsUp: if the clock ends it.
    """
    import jax
    from blackjax.mcmc import hmc
    from blackjax.smc import adaptive_tempered, resampling

    centre, spread = (jax.numpy.asarray(part.numpy()) for part in (wide.mean, wide.std))
    density = callback_density(energy)

    def log_start(x: Any) -> Any:
        return jax.scipy.stats.norm.logpdf(x, centre, spread).sum()

    move = hmc.build_kernel()
    kernel = adaptive_tempered.build_kernel(
        log_start,
        lambda x: density(x) - log_start(x),
        lambda *state, **tuned: move(*state, **tuned, num_integration_steps=LEAPS),
        hmc.init,
        resampling.systematic,
        0.5,
    )
    step = jax.jit(lambda key, state, tuned: kernel(key, state, MOVES, tuned))
    state = adaptive_tempered.init(jax.numpy.asarray(wide.sample(particles, generator).numpy()))
    key = jax.random.key(int(torch.randint(2**31, (), generator=generator)))
    log_z, size = 0.0, energy.dim**-0.25
    while float(state.tempering_param) < 1:
        if clock.left() < 0:
            raise TimeIsUp
        key, now = jax.random.split(key)
        weight, x = np.asarray(state.weights), np.asarray(state.particles)
        variance = np.maximum(weight @ np.square(x - weight @ x), 1e-300)
        tuned = {"step_size": np.array([size]), "inverse_mass_matrix": variance[None]}
        state, info = step(now, state, tuned)
        log_z += float(info.log_likelihood_increment)
        accepted = float(np.mean(info.update_info.acceptance_rate))
        size = float(np.clip(size * math.exp(accepted - 0.8), 1e-3, 2.0))
    last, share = (torch.from_numpy(np.array(part)) for part in (state.particles, state.weights))
    return Estimate(x=last, log_weight=share.log(), log_z=log_z)


# --- nested sampling -----------------------------------------------------------------------------


def dynesty(energy: Energy, seconds: float, seed: int) -> Estimate:
    """Nested sampling of dynesty, with its own choice of bounds and moves.

    Its prior is the wide Gaussian, and its likelihood exp(-E) over that. So no box cuts the
    density. Where the time ends first, the live points stand for what is left.

    Args:
        energy: the target, on R^D.
        seconds: about how long it may take.
        seed: of every random number.
    """
    from dynesty import NestedSampler
    from scipy.special import ndtri

    clock, generator = Clock(seconds), torch.Generator().manual_seed(seed)
    wide = wide_start(energy, generator)
    centre, spread = wide.mean.numpy(), wide.std.numpy()
    level = finite_density(energy)
    constant = float(wide.std.log().sum()) + 0.5 * energy.dim * math.log(2 * math.pi)

    def log_likelihood(x: Array) -> float:
        start = -0.5 * float(np.square((x - centre) / spread).sum()) - constant
        return float(level(x[None])[0][0]) - start

    sampler = NestedSampler(
        log_likelihood,
        lambda u: centre + spread * ndtri(u),
        energy.dim,
        nlive=LIVE,
        rstate=np.random.default_rng(seed),
    )
    note = ""
    for _ in sampler.sample(dlogz=REMAINING):
        if clock.left() < 0:
            note = "the time ended before the last likelihood"
            break
    sampler.add_final_live(print_progress=False)
    found = sampler.results
    return Estimate(
        x=torch.from_numpy(np.array(found.samples)),
        log_weight=torch.from_numpy(np.array(found.logwt)),
        log_z=float(found.logz[-1]),
        note=note,
    )


Rival = Callable[[Energy, float, int], Estimate]

# Of each: the method, and the library that it needs.
RIVALS: dict[str, tuple[Rival, str]] = {
    "nuts": (nuts, "numpyro"),
    "smc": (smc, "blackjax"),
    "dynesty": (dynesty, "dynesty"),
}


def require_rivals(names: tuple[str, ...]) -> None:
    """Refuses unknown names, and methods whose library is missing.

    Raises:
        ValueError: if a name is unknown, with the nearest.
        ModuleNotFoundError: if a library is missing, with the extra to install.
    """
    for name in names:
        if name not in RIVALS:
            raise ValueError(f"rivals: there is no {name!r}; {nearest(name, RIVALS)}")
        require_module(f"rival {name}", RIVALS[name][1], "rivals")


def run_rival(name: str, energy: Energy, seconds: float, seed: int) -> Estimate:
    """Runs one of :data:`RIVALS` on a target.

    Args:
        name: of the method.
        energy: the target, on R^D.
        seconds: about how long it may take.
        seed: of every random number.

    Raises:
        ValueError: if there is no such method, or an argument is wrong.
        ModuleNotFoundError: if its library is missing.
    """
    require_rivals((name,))
    require_positive("run_rival", seconds=seconds)
    return RIVALS[name][0](energy, seconds, seed_of(seed))


# --- the border ----------------------------------------------------------------------------------


def wide_start(energy: Energy, generator: torch.Generator) -> GaussianReference:
    """The wide Gaussian that exploration finds first, by descents from every width."""
    return find_reference(FiniteEnergy(energy), energy.dim, generator)


def finite_density(energy: Energy) -> Callable[[Array], tuple[Array, Array]]:
    """-E (...) and -∇E (..., D) of states (..., D), float64; -NOWHERE and 0 if not finite."""

    def density(states: Any) -> tuple[Array, Array]:
        given = np.array(states)
        if given.dtype != np.float64:
            raise TypeError(f"states must be float64, got {given.dtype}")
        x = torch.from_numpy(given.reshape(-1, given.shape[-1]))
        level, gradient = energy.with_gradient(x)
        outside = ~(level.isfinite() & gradient.isfinite().all(-1))
        level = level.masked_fill(outside, NOWHERE)
        gradient = gradient.masked_fill(outside.unsqueeze(-1), 0.0)
        return -level.numpy().reshape(given.shape[:-1]), -gradient.numpy().reshape(given.shape)

    return density


def callback_density(energy: Energy) -> Callable[[Any], Any]:
    """-E of one state (D,) as a function of JAX, with its gradient; `vmap` makes it one call.

    E and ∇E come from one evaluation. JAX must have 64 bits in all its threads, for callbacks run
    in any of them.
    """
    import jax

    density = finite_density(energy)

    def pair(x: Any) -> Any:
        shapes = jax.ShapeDtypeStruct((), x.dtype), jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(density, shapes, x, vmap_method="expand_dims")

    differentiable = jax.custom_vjp(lambda x: pair(x)[0])
    differentiable.defvjp(pair, lambda gradient, outer: (outer * gradient,))
    value: Callable[[Any], Any] = differentiable
    return value


@contextmanager
def double_jax() -> Iterator[None]:
    """64 bits in every thread of JAX, and calls that wait: callbacks then find a free thread."""
    import jax

    wanted = {"jax_enable_x64": True, "jax_cpu_enable_async_dispatch": False}
    before = {name: jax.config.read(name) for name in wanted}
    try:
        for name, value in wanted.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
