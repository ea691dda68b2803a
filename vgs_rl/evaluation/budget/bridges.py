"""Bridge states of a chain whose steps are halved, and what each step says there.

The states of the halved chain include those of the chain itself, so both are measured on the same
paths. Every number of a path is kept, and controls of mean zero take out what they explain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vgs_rl.chain import Chain
from vgs_rl.evaluation.budget.posterior import Posterior
from vgs_rl.samplers.base import ChainSampler

CHUNK = 2_048  # paths at once


def halved(chain: Chain) -> Chain:
    """The chain of 2 T steps with the same total noise, two in place of each.

    vp: both shrink by the same factor. ve: the cube roots of S_t are evenly spaced. For schedules
    of kind `auto` it is the chain that `num_steps: 2 T` gives.
    """
    s2 = chain.s.double().square()
    if chain.kind == "vp":
        half = 1 - (1 - s2).sqrt()
        return Chain(torch.stack([half, half], dim=-1).flatten(), "vp")
    noise = torch.cat([s2.flip(0).cumsum(0).flip(0), s2.new_zeros(1)])  # S_t
    root = noise.pow(1 / 3)
    middle = (0.5 * (root[1:] + root[:-1])).pow(3)
    halves = torch.stack([noise[:-1] - middle, middle - noise[1:]], dim=-1)
    return Chain(halves.flatten(), "ve")


@dataclass(frozen=True, kw_only=True)
class Bridges:
    """What n bridge paths say, shape (n, T) unless said otherwise, with controls taken out.

    v is the push that leads from x_t to x_{t+1}, u the sampler's control, u* = E[v | x_t] the best.

    Attributes:
        learning: ‖u - u*‖².
        spread: ‖v - u*‖².
        halves: the same of the two half steps, shape (n, T, 2).
        slopes: ‖∇V_t‖² at t and in the middle of the step, shape (n, T, 2).
        log_kernel: log density of v given x_t, or None where values are not known.
        start: log p_0 - log pi_0 at x_0, of these paths or of others, shape (m,).
    """

    learning: Tensor
    spread: Tensor
    halves: Tensor
    slopes: Tensor
    log_kernel: Tensor | None
    start: Tensor


@torch.no_grad()
def draw_bridges(
    sampler: ChainSampler, x: Tensor, posterior: Posterior, generator: torch.Generator
) -> Bridges:
    """Noises final states x (n, D) down the halved chain and measures every step.

    Args:
        sampler: whose control is measured.
        x: independent samples of the target.
        posterior: says what the best control is.
        generator: source of all noise.
    """
    parts = [_paths(sampler, part, posterior, generator) for part in x.double().split(CHUNK)]
    start = torch.cat([start for start, _ in parts])
    table = torch.cat([rows for _, rows in parts])  # (n, T, statistics and controls)
    controls, values = table[..., :CONTROLS], table[..., CONTROLS:]
    values = _without(controls, values)
    learning, spread, first, second, slope, middle = values[..., :6].unbind(-1)
    return Bridges(
        learning=learning,
        spread=spread,
        halves=torch.stack([first, second], dim=-1),
        slopes=torch.stack([slope, middle], dim=-1),
        log_kernel=values[..., 6] if posterior.knows_values else None,
        start=start,
    )


CONTROLS = 6


def _paths(
    sampler: ChainSampler, x_T: Tensor, posterior: Posterior, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Log p_0 - log pi_0, shape (B,), and controls and statistics of every step (B, T, ·)."""
    mdp, chain = sampler.mdp, posterior.chain
    dim = mdp.effective_dim
    x, rows = x_T, list[Tensor]()
    value = posterior.value(x, chain.num_steps)
    for t in reversed(range(mdp.num_steps)):
        levels = (2 * t, 2 * t + 1)
        (a1, a2), (s1, s2) = chain.a[list(levels)], chain.s[list(levels)]
        z1, z2 = (_noise(sampler, x, generator) for _ in range(2))
        middle = x / a2 + s2 * z2
        x = middle / a1 + s1 * z1
        s = (s1.square() + s2.square() / a1.square()).sqrt()
        control = mdp.control(sampler.policy, x.to(mdp.dtype), t).to(x)
        at, between = (
            posterior.slopes(y, k, x_T, generator) for y, k in zip((x, middle), levels, strict=True)
        )
        pushes = (
            (-(s1 * z1 + s2 * z2 / a1) / s, [-s * each for each in at]),
            (-z1, [-s1 * each for each in at]),
            (-z2, [-s2 * each for each in between]),
        )
        controls, statistics = list[Tensor](), list[Tensor]()
        for v, (left, right) in pushes:
            along = (0.5 * v * (left + right)).sum(-1)
            controls += [v.square().sum(-1) - dim, along - (left * right).sum(-1)]
            statistics.append(((v - left) * (v - right)).sum(-1))
        left, right = pushes[0][1]
        statistics.insert(0, ((left - control) * (right - control)).sum(-1))
        statistics += [(each[0] * each[1]).sum(-1) for each in (at, between)]
        if value is not None:
            before, value = value, posterior.value(x, 2 * t)
            assert value is not None
            noise = 0.5 * (controls[0] + dim + dim * math.log(2 * math.pi))
            statistics.append(value - before - noise + dim * (a1 * a2).log())
        rows.append(torch.stack([*controls, *statistics], dim=-1))
    return _missed(sampler, x, posterior), torch.stack(rows[::-1], dim=1)


@torch.no_grad()
def start_part(
    sampler: ChainSampler, x: Tensor, posterior: Posterior, generator: torch.Generator
) -> Tensor:
    """Log p_0 - log pi_0 at final states (n, D) noised at once, shape (n,).

    It needs no path, so there can be many: where the target's tails are heavier than the start's, a
    state in a thousand makes most of the mean.

    Args:
        sampler: whose start is measured.
        x: independent samples of the target.
        posterior: says what the best start is.
        generator: source of all noise.
    """
    scale, noise = posterior.chain.A[0], posterior.chain.S[0]
    parts = []
    for part in x.double().split(CHUNK):
        noised = part / scale + noise.sqrt() * _noise(sampler, part, generator)
        parts.append(_missed(sampler, noised, posterior))
    return torch.cat(parts)


def _missed(sampler: ChainSampler, x: Tensor, posterior: Posterior) -> Tensor:
    """Log p_0 - log pi_0 at x_0 (B, D), shape (B,)."""
    start = sampler.mdp.start.log_prob(x.to(sampler.mdp.dtype)).to(x)
    return posterior.log_start(x) - start


def _noise(sampler: ChainSampler, x: Tensor, generator: torch.Generator) -> Tensor:
    z = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return sampler.mdp.geometry.project(z)


def _without(controls: Tensor, values: Tensor) -> Tensor:
    """Values (n, T, K) less their regression on controls (n, T, C), whose means are 0."""
    centred = (controls - controls.mean(0)).transpose(0, 1)  # (T, n, C)
    others = (values - values.mean(0)).transpose(0, 1)
    gram = centred.mT @ centred
    gram = gram + 1e-9 * gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] * torch.eye(
        gram.shape[-1], dtype=gram.dtype, device=gram.device
    )
    slope = torch.linalg.solve(gram, centred.mT @ others)
    explained: Tensor = controls.transpose(0, 1) @ slope
    return values - explained.transpose(0, 1)
