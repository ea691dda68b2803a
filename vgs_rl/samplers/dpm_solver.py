"""Few calls of a trained chain's own network, by DPM-Solver++; without log-weights.

The noised states y_t = A_t x_t of a linear space are x_T + σ_t z with σ_t = A_t √S_t. A control
that is the reversed kernel's mean is the score, u_t = s_t ∇log p_t(x_t), and so the mean of x_T
given x_t is d_t = A_t (x_t + S_t u_t / s_t). With λ = -log σ, and for any η ≥ 0, the process

    dy = (1 + η) (d - y) dλ + √(2 η) σ dW

has the marginals of the chain: η = 1 is the chain with short steps, and η = 0 its probability flow
(Song et al., arXiv:2011.13456). Where d is a smooth function of λ, steps may be longer than the
chain's. The multistep method of second order of DPM-Solver++ (Lu et al., arXiv:2211.01095) calls
the network once a step, at steps of the chain that lie as the noises of EDM (Karras et al.,
arXiv:2206.00364). The last call is the chain's own last step.

A step of the solver depends on the one before it, and no density of what it draws is known.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import torch

from vgs_rl.chain import Chain
from vgs_rl.checks import count_of
from vgs_rl.conditional.conditions import ConditionLike
from vgs_rl.samplers.base import ChainSampler, Sampler, Samples
from vgs_rl.threads import leave_if_unwanted
from vgs_rl.transitions import KernelPolicy, State

__all__ = ["DPMSolver", "note_on", "solver_steps"]

SPACING = 7.0  # EDM's exponent


def solver_steps(chain: Chain, calls: int) -> list[int]:
    """The steps of a chain at which the network is called: the first, the last, some between.

    Args:
        chain: of T steps.
        calls: how many, 2 to T.

    Returns:
        As many different steps, rising. Their σ_t^(1/7) are as even as the chain has them.
    """
    noise = (chain.A * chain.S.sqrt())[:-1].double().cpu()
    ends = noise[[0, -1]] ** (1 / SPACING)
    wanted = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, calls, dtype=torch.float64))
    nearest = (noise - (wanted**SPACING).unsqueeze(-1)).abs().argmin(-1).tolist()
    steps = [0]
    for k, t in enumerate(nearest[1:], 1):
        steps.append(min(max(t, steps[-1] + 1), chain.num_steps - calls + k))
    return steps


def note_on(calls: int) -> str:
    """What is to be said wherever samples of so many calls are shown."""
    return (
        f"drawn in {calls} network calls: there are no log-weights, so log Z and ESS are not known "
        "and nothing corrects these samples; the control is taken for the score of the noised "
        "target, as that of a value gradient is"
    )


class DPMSolver(ChainSampler):
    """A trained chain in few calls of its network, without log-weights.

    What it draws has the errors of the control and those of the solver, and nothing corrects them:
    compare it with the chain's own samples, or move it by MALA
    (:class:`~vgs_rl.samplers.mcmc.mala.RefinedSampler`). Noise forgets errors of the control, and
    needs more calls. The default is the best of 0, 1/4, 1/2 and 3/4 for both DW-4 and LJ-13 in 16
    calls, on their validation samples.

    Args:
        chain: what is trained. Its control has to be the score, as that of a value gradient is; a
            `noise_scale` other than 1 has no meaning here.
        calls: network calls of a sample, 2 to T.
        noise: η, 0 to 1.

    Raises:
        ValueError: if `calls` or `noise` is out of range, the policy draws its own steps, the space
            is not linear, or the sampler is no chain.
    """

    def __init__(self, chain: Sampler, calls: int = 16, *, noise: float = 0.25) -> None:
        if not isinstance(chain, ChainSampler):
            raise ValueError(f"calls are of a trained chain, got {type(chain).__name__}")
        calls, most = count_of("calls", calls, least=2), chain.mdp.num_steps
        if calls > most:
            raise ValueError(f"calls must be at most {most}, the steps of the chain, got {calls}")
        if not (isinstance(noise, int | float) and 0 <= noise <= 1):
            raise ValueError(f"noise must be in [0, 1], got {noise!r}")
        if isinstance(chain.policy, KernelPolicy):
            kernel = type(chain.policy).__name__
            raise ValueError(f"calls are of a chain whose policy is a control, got {kernel}")
        chain.mdp.geometry.require_linear("DPM-Solver")
        super().__init__(chain.mdp, chain.policy, coordinates=chain.coordinates)
        self.has_weights = self.has_reverse_weights = False
        self.chunk_size, self.calls, self.noise = chain.chunk_size, calls, noise
        self.steps = solver_steps(self.mdp.chain, calls)
        self._noise = (self.mdp.chain.A * self.mdp.chain.S.sqrt()).tolist()  # σ_t, for all draws

    def at(self, condition: ConditionLike) -> DPMSolver:
        """See :meth:`Sampler.at`; it follows later training, too."""
        return DPMSolver(super().at(condition), self.calls, noise=self.noise)

    def export(self, path: Path | str, *, weights: bool = True) -> None:
        """Refused: a program is the chain, with its log-weights.

        Raises:
            ValueError: always.
        """
        raise ValueError("few calls of a chain cannot be exported: export the chain")

    def _episodes(self, n: int, generator: torch.Generator) -> Samples:
        mdp, chain, space = self.mdp, self.mdp.chain, self.mdp.geometry
        noise = self._noise
        x = mdp.start.sample(n, generator)
        before, length = None, 0.0  # the last mean of x_T, and the step from it in λ
        for t, after in itertools.pairwise(self.steps):
            leave_if_unwanted()
            push = chain.S[t] / chain.s[t] * mdp.control(self.policy, x, t)
            y, mean = space.scaled(x, chain.A[t]), space.scaled(x + push, chain.A[t])
            step = math.log(noise[t] / noise[after])
            towards = mean if before is None else mean + 0.5 * step / length * (mean - before)
            y = y - math.expm1(-(1 + self.noise) * step) * (towards - y)
            if self.noise > 0:
                spread = noise[after] * math.sqrt(-math.expm1(-2 * self.noise * step))
                y = y + spread * mdp.noise(n, generator)
            x = space.shrunk(y, chain.A[after])
            before, length = mean, step
        t = self.steps[-1]
        u, eps = mdp.control(self.policy, x, t), mdp.noise(n, generator)
        x = mdp.transition(State(x, t), u, eps).state.x
        if self.coordinates is not None:
            x = self.coordinates.to_x(x)
        return Samples(x=x, log_weight=None, energy_evaluations=0)
