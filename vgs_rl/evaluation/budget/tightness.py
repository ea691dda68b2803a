"""How tight the bounds of docs/error_budget.md are: the exact control, with known densities."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vgs_rl.chain import ScheduleConfig
from vgs_rl.energy import Energy
from vgs_rl.evaluation.budget.estimate import error_budget
from vgs_rl.mdp import MDPConfig, SamplingMDP
from vgs_rl.registry import find
from vgs_rl.samplers.base import ChainSampler
from vgs_rl.samplers.oracle import oracle_sampler
from vgs_rl.starts import StartConfig
from vgs_rl.transitions import State

PAIRS = 1_024  # states at once
# Total noise, components of the start, and whether two dimensions let densities be estimated.
TARGETS: dict[str, tuple[float, int, bool]] = {
    "Gaussian": (0.8, 1, True),
    "GMM9": (0.8, 10, True),
    "Funnel10": (0.9, 20, False),
}


def tightness(num_steps: tuple[int, ...], *, n: int, paths: int, seed: int) -> list[dict[str, Any]]:
    """Rows of the table: each bound, and the distance that it bounds.

    Args:
        num_steps: values of T.
        n: bridge paths.
        paths: of the sampler, for distances, and states that it is fitted to.
        seed: of all draws.
    """
    return [_row(name, steps, n, paths, seed) for name in TARGETS for steps in num_steps]


@torch.no_grad()
def _row(name: str, steps: int, n: int, paths: int, seed: int) -> dict[str, Any]:
    noise, components, plane = TARGETS[name]
    config = MDPConfig(
        num_steps=steps,
        schedule=ScheduleConfig(total_noise=noise),
        start=StartConfig(kind="mixture", components=components, scale=2.0),
    )
    energy = find(name).make_energy()
    sampler = oracle_sampler(SamplingMDP(energy, config), n_fit=paths, seed=seed)
    budget = error_budget(sampler, n=n, paths=paths, seed=seed)
    kl = budget.total.value
    width = sampler.mdp.rho.double().square()  # fitted, so that it is r_t²
    widest = kl + 0.5 * energy.dim * float((width - 1 - width.log()).sum())
    smooth = budget.parts["start"].value + _curvature_bound(sampler, n, seed)
    generator = sampler.mdp.generator(seed)
    backward = sampler.reverse_log_weight(energy.sample(paths, generator), generator).double()
    assert energy.log_z is not None
    path_tv = float((-torch.expm1(energy.log_z - backward)).clamp_min(0.0).mean())
    own_kl, own_tv = _distances(sampler, paths, seed) if plane else (math.nan, math.nan)
    return {
        "target": name,
        "T": steps,
        "KL(p, samples)": _number(own_kl),
        "KL of paths": _number(kl),
        "at ρ = 1": _number(widest),
        "by curvature": _number(smooth),
        "TV(p, samples)": _number(own_tv),
        "TV of paths": _number(path_tv),
        "√(KL/2)": _number(math.sqrt(max(kl, 0.0) / 2)),
        "√(1 - e^-KL)": _number(math.sqrt(-math.expm1(-max(kl, 0.0)))),
    }


def _number(value: float) -> str:
    if math.isnan(value):
        return "not known"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.1e}"


def _curvature_bound(sampler: ChainSampler, n: int, seed: int) -> float:
    """¼ Σ σ_t⁴ E‖∇²V_{t+1}‖²_F, by central differences of ∇V along random directions."""
    mdp, generator = sampler.mdp, sampler.mdp.generator(seed)
    total = 0.0
    for t in range(mdp.num_steps):
        x = mdp.energy.sample(n, generator).to(mdp.dtype)
        x = mdp.noised(x, t + 1, generator).double()
        squares = _hessian_squares(mdp.energy, mdp, x, t + 1, generator)
        total += float(0.25 * mdp.chain.sigma[t].double() ** 4 * squares.mean())
    return total


def _hessian_squares(
    energy: Energy, mdp: SamplingMDP, x: Tensor, t: int, generator: torch.Generator
) -> Tensor:
    """Unbiased estimates of ‖∇²V_t(x)‖²_F, shape (B,): E‖H z‖² of standard normal z."""
    z = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    step = 1e-4
    chain = mdp.chain.to(x.device, x.dtype)
    ahead, behind = (energy.value_gradient(x + sign * step * z, t, chain) for sign in (1, -1))
    return ((ahead - behind) / (2 * step)).square().sum(-1)


def _distances(sampler: ChainSampler, paths: int, seed: int) -> tuple[float, float]:
    """KL(p ‖ q_T) and the total variation; q_T is the mean of the last step's kernels."""
    mdp, generator = sampler.mdp, sampler.mdp.generator(seed + 7)
    x = mdp.start.sample(5 * paths, generator)
    for t in range(mdp.num_steps - 1):
        x = mdp.step(State(x, t), mdp.control(sampler.policy, x, t), generator).state.x
    t = mdp.num_steps - 1
    control = mdp.control(sampler.policy, x, t)
    centre = (mdp.chain.a[t] * x + mdp.chain.sigma[t] * control).double()
    width = float((mdp.rho[t] * mdp.chain.sigma[t]).double().square())
    assert mdp.energy.log_z is not None
    y = mdp.energy.sample(8 * PAIRS, generator).double()
    log_q = torch.cat(
        [
            torch.logsumexp(-0.5 * torch.cdist(part, centre).square() / width, dim=-1)
            for part in y.split(PAIRS)
        ]
    )
    log_q = log_q - math.log(len(centre)) - 0.5 * mdp.dim * math.log(2 * math.pi * width)
    log_p = -mdp.energy(y).double() - mdp.energy.log_z
    ratio = log_p - log_q
    control = torch.expm1(-ratio)  # q/p - 1, whose mean under p is 0
    centred = control - control.mean()
    slope = (centred * ratio).mean() / centred.square().mean().clamp_min(1e-300)
    return float((ratio - slope * control).mean()), float((-control).clamp_min(0.0).mean())
