"""Samplers that know the answer: the ideal (exact samples) and the ceiling (exact values)."""

from __future__ import annotations

import torch

from vgs_rl.energy import Energy
from vgs_rl.mdp import SamplingMDP
from vgs_rl.networks.base import ExactValue
from vgs_rl.networks.policies import Drift, ValueGradientPolicy
from vgs_rl.samplers.base import ChainSampler, Sampler, Samples, pilot_generator


class ExactSampler(Sampler):
    """The target's own exact sampler: what every metric's ideal is measured with."""

    has_weights = False

    def __init__(self, energy: Energy, device: torch.device | str = "cpu") -> None:
        if not energy.can_sample:
            raise ValueError(f"{type(energy).__name__} has no exact sampler")
        self.energy, self.device = energy, torch.device(device)

    def _draw(self, n: int, generator: torch.Generator) -> Samples:
        return Samples(x=self.energy.sample(n, generator), log_weight=None, energy_evaluations=0)


def require_exact_values(energy: Energy, temperature: float | tuple[float, float]) -> None:
    """Refuses a target that the oracle does not know.

    Raises:
        ValueError: if it has no exact values or samples, or tau is not 1.
    """
    if temperature != 1.0:
        raise ValueError(f"exact values need temperature 1, got {temperature}")
    if not energy.can_sample:
        raise ValueError(f"{type(energy).__name__} has no exact sampler")
    if not energy.has_value:
        raise ValueError(f"{type(energy).__name__} has no exact values")


def oracle_sampler(
    mdp: SamplingMDP,
    drift: Drift = "posterior",
    *,
    fit_noise_scale: bool | None = None,
    fit_start: bool = True,
    n_fit: int = 20_000,
    seed: int = 0,
) -> ChainSampler:
    """The chain driven by exact values: what perfect learning reaches with this schedule.

    The start and rho_t are fitted to exact samples of the target, as learning would fit them to
    its own.

    Args:
        mdp: the MDP whose ceiling is asked for; its start and rho_t are overwritten.
        drift: how the control is read off the value.
        fit_noise_scale: whether rho_t is fitted; by default for `posterior` only, since the
            published form has rho_t = 1.
        fit_start: whether pi_0 is fitted to exactly noised states, if it may be learned.
        n_fit: exact samples used for the fits.
        seed: seed of the fits, whose samples no draw shares.

    Raises:
        ValueError: if the target has no exact values or samples, or tau is not 1.
    """
    require_exact_values(mdp.energy, mdp.temperature)
    policy = ValueGradientPolicy(mdp, ExactValue(mdp.energy, mdp.chain), drift)
    generator = pilot_generator(mdp.device, seed)
    x = mdp.energy.sample(n_fit, generator).to(mdp.dtype)
    if fit_start and mdp.config.start.learned:
        mdp.start.fit(mdp.noised(x, 0, generator), generator)
    mdp.rho.fill_(1.0)
    if drift == "posterior" if fit_noise_scale is None else fit_noise_scale:
        mdp.fit_noise_scale(policy, x, generator)
    sampler = ChainSampler(mdp, policy)
    sampler.chunk_size = 16_384  # exact values may share their quadratures within a chunk
    return sampler
