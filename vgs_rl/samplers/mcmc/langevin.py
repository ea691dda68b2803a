"""Unadjusted Langevin and Hamiltonian Monte Carlo on the target itself."""

from __future__ import annotations

import torch
from torch import Tensor

from vgs_rl.checks import count_of, require_positive, whole
from vgs_rl.energy import Energy
from vgs_rl.samplers.base import Sampler, Samples
from vgs_rl.samplers.mcmc.kernels import FiniteEnergy
from vgs_rl.samplers.mcmc.mala import MALAKernel, evaluations_each, spaced_states
from vgs_rl.samplers.mcmc.tempering import ParallelTempering


class LangevinKernel:
    """Unadjusted Langevin steps x - ½ h ∇E(x)/tau + √h z: no acceptance test, so a bias of O(h).

    On N(0, v) at tau = 1 the chain's own stationary variance is v / (1 - h/(4 v)), and it diverges
    from h = 4 v on. Reference: Roberts and Tweedie, Bernoulli 2 (1996). A step to where the energy
    or its gradient is not finite is not taken. On a sphere the step is tangent and follows the
    geodesic.

    Attributes:
        x: states, shape (B, D).

    Args:
        energy: the target.
        x: initial states, in the energy's geometry.
        step_size: h, variance of a step per coordinate.
        temperature: tau.
    """

    def __init__(
        self, energy: Energy, x: Tensor, *, step_size: float | Tensor, temperature: float = 1.0
    ) -> None:
        self.energy, self.x = FiniteEnergy(energy, temperature), x
        self.step_size = torch.as_tensor(step_size, device=x.device, dtype=x.dtype)
        _, self.slope = self.energy(x)

    @property
    def energy_evaluations(self) -> int:
        """States at which ∇E has been evaluated."""
        return self.energy.evaluations

    @torch.no_grad()
    def step(self, generator: torch.Generator) -> None:
        """One step of every chain."""
        x, h = self.x, self.step_size
        z = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        space = self.energy.geometry
        if space.linear:
            proposal = x - 0.5 * h * self.slope + h.sqrt() * space.project(z)
        else:
            drift = -0.5 * h * self.slope + h.sqrt() * space.tangent(z, x)
            proposal = space.move(x, drift, torch.ones_like(h))
        energy, slope = self.energy(proposal)
        taken = energy.isfinite().unsqueeze(-1)
        self.x = torch.where(taken, proposal, x)
        self.slope = torch.where(taken, slope, self.slope)


class ULASampler(Sampler):
    """Unadjusted Langevin alone, with a given number of energy evaluations for all samples.

    As :class:`~vgs_rl.samplers.mcmc.mala.MALASampler`: chains start from N(0, scale² I), the first
    half is thrown away, samples are states of the second half, evenly spaced over time. In that
    first half MALA moves the chains and finds the step that it would accept with probability
    `acceptance`; the second half goes on with it, unadjusted. A given `step_size` is used from
    the start instead.

    Args:
        energy: the target.
        energy_evaluations: budget of one call of ``sample``.
        chains: number of parallel chains, at most n.
        scale: standard deviation of the initial states.
        step_size: variance of a step per coordinate; None adapts it.
        acceptance: rate that MALA would have; higher means smaller steps, so less bias.
        temperature: tau.
        device: where the chains run.
    """

    has_weights = False

    def __init__(
        self,
        energy: Energy,
        energy_evaluations: int,
        *,
        chains: int = 1_000,
        scale: float = 1.0,
        step_size: float | None = None,
        acceptance: float = 0.98,
        temperature: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> None:
        energy.geometry.require_linear("ULASampler")
        chains = count_of("chains", chains)
        energy_evaluations = whole("energy_evaluations", energy_evaluations)
        require_positive("ULASampler", scale=scale, temperature=temperature)
        if step_size is not None:
            require_positive("ULASampler", step_size=step_size)
        if energy_evaluations < 4 * chains:
            raise ValueError(
                f"energy_evaluations must be at least 4 x chains = {4 * chains}, "
                f"got {energy_evaluations}"
            )
        self.energy, self.budget, self.chains, self.scale = (
            energy,
            energy_evaluations,
            chains,
            scale,
        )
        self.step_size, self.acceptance = step_size, acceptance
        self.temperature, self.device = temperature, torch.device(device)
        self.chunk_size = 2**62  # one call is one run: its budget is not split

    def _draw(self, n: int, generator: torch.Generator) -> Samples:
        chains = min(self.chains, n)
        x = torch.randn(chains, self.energy.dim, generator=generator, device=self.device)
        x = self.energy.geometry.project(x) * self.scale
        used = 0
        if self.step_size is None:
            mala = MALAKernel(
                self.energy,
                x,
                temperature=self.temperature,
                step_size=0.1 * self.scale**2,
                acceptance=self.acceptance,
            )
            steps = self._steps(chains)
            for _ in range(steps // 2):
                mala.step(generator, adapt=True)
            used = mala.energy_evaluations
            kernel = self._kernel(mala.x, mala.step_size)
        else:
            kernel = self._kernel(x, self.step_size)
            steps = self._steps(chains)
            for _ in range(steps // 2 + 1):
                kernel.step(generator)
        x = spaced_states(
            lambda: kernel.step(generator), lambda: kernel.x, steps - steps // 2, -(-n // chains)
        )
        used += kernel.energy_evaluations
        return Samples(x=x[:n], log_weight=None, energy_evaluations=used)

    def _kernel(self, x: Tensor, step_size: float | Tensor) -> LangevinKernel:
        return LangevinKernel(self.energy, x, step_size=step_size, temperature=self.temperature)

    def _steps(self, chains: int) -> int:
        """Of each chain: two evaluations are where the kernels begin."""
        return evaluations_each(self.energy, self.budget, chains, least=4) - 2


class HMCSampler(ParallelTempering):
    """Hamiltonian Monte Carlo alone: :class:`ParallelTempering` with a single temperature.

    Neal, arXiv:1206.1901. Step sizes vary by a fifth around one adapted in the first quarter; the
    first half is thrown away.

    Args:
        energy: the target.
        energy_evaluations: budget of one call of ``sample``, over all chains.
        chains: number of independent chains, at most n.
        leapfrog_steps: steps of a trajectory; each evaluates ∇E once.
        scale: standard deviation of the initial states.
        temperature: tau.
        device: where the chains run.
    """

    def __init__(
        self,
        energy: Energy,
        energy_evaluations: int,
        *,
        chains: int = 500,
        leapfrog_steps: int = 8,
        scale: float = 1.0,
        temperature: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(
            energy,
            energy_evaluations,
            chains=chains,
            replicas=1,
            hottest=1.0,
            leapfrog_steps=leapfrog_steps,
            scale=scale,
            temperature=temperature,
            device=device,
        )
