"""Samples of an energy that nobody tuned for: explore, normalise, learn, say what to believe."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vgs_rl.agents.value_gradient.agent import ValueGradientAgent, ValueGradientConfig
from vgs_rl.agents.value_gradient.gradient_matching import GradientMatchingLearner
from vgs_rl.agents.value_gradient.objectives import GradientMatching
from vgs_rl.agents.value_gradient.sources import WeightedSource
from vgs_rl.chain import ScheduleConfig
from vgs_rl.checks import count_of, require_positive, seed_of
from vgs_rl.energy import Energy
from vgs_rl.evaluation.verdict import Evidence, Verdict, judge_evidence
from vgs_rl.exploration import (
    AffineEnergy,
    AffineMap,
    Exploration,
    PriorReference,
    Reference,
    explore,
)
from vgs_rl.foreign.function_energy import FunctionEnergy
from vgs_rl.mdp import MDPConfig, SamplingMDP
from vgs_rl.networks.config import MLPNetwork
from vgs_rl.registry import energy_of
from vgs_rl.samplers.base import Sampler, Samples, pilot_generator
from vgs_rl.starts import StartConfig
from vgs_rl.weights import systematic_resample

SHARES = (0.3, 0.35, 0.35)  # of the time for learning: between them the map is fitted again
CHECKED = 4_000  # samples that decide whether to go on


class MappedSampler(Sampler):
    """A sampler of z whose samples are handed out as x; log-weights are the same.

    Args:
        sampler: of an :class:`~vgs_rl.exploration.affine.AffineEnergy`.
        energy: that energy.
    """

    def __init__(self, sampler: Sampler, energy: AffineEnergy) -> None:
        self.sampler, self.energy = sampler, energy
        self.device, self.temperature = sampler.device, sampler.temperature
        self.has_weights, self.chunk_size = sampler.has_weights, 2**62

    def _draw(self, n: int, generator: torch.Generator) -> Samples:
        drawn = self.sampler.sample(n, generator)
        return replace(drawn, x=self.energy.to_x(drawn.x))


@dataclass(kw_only=True)
class Result:
    """What :func:`sample` returns; printing it shows the verdict first.

    Attributes:
        samples: x (n, D) in the user's coordinates with log-weights (n,).
        verdict: what may be believed, and why.
        evidence: the numbers behind it.
        agent: the trained agent, which lives in the coordinates of `energy`.
        energy: the affine map and the target.
        exploration: what was found before learning.
        seconds: wall-clock time.
    """

    samples: Samples
    verdict: Verdict
    evidence: Evidence
    agent: ValueGradientAgent
    energy: AffineEnergy
    exploration: Exploration
    seconds: float

    @property
    def x(self) -> Tensor:
        """Samples, shape (n, D)."""
        return self.samples.x

    @property
    def log_weight(self) -> Tensor:
        """Their log-weights, shape (n,), with mean weight Z."""
        assert self.samples.log_weight is not None
        return self.samples.log_weight

    @property
    def log_z(self) -> float:
        """Log of the mean weight."""
        return self.evidence.log_z

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the verdict is what it is, a sentence each."""
        return self.verdict.reasons

    @property
    def sampler(self) -> Sampler:
        """Draws more, in the user's coordinates."""
        return MappedSampler(self.agent.sampler(), self.energy)

    def resampled(self, n: int, seed: int = 0) -> Tensor:
        """N of the samples by their weights, shape (n, D), with duplicates."""
        generator = torch.Generator(self.x.device).manual_seed(seed_of(seed))
        return self.x[systematic_resample(self.log_weight, n, generator)]

    def save(self, path: Path | str) -> None:
        """Writes NumPy's archive: `x` and `log_weight`."""
        self.samples.to_npz(path)

    def __repr__(self) -> str:
        rows = [f"{self.verdict}", *(f"  {reason}" for reason in self.reasons)]
        rows += [f"{name:22}{value}" for name, value in self.evidence.rows()]
        rows.append(f"{'seconds':22}{self.seconds:.0f}")
        return "\n".join(rows)


def sample(
    target: str | Energy | Callable[[Tensor], Tensor] | None = None,
    n: int = 10_000,
    *,
    seed: int = 0,
    dim: int | None = None,
    log_density: Callable[[Tensor], Tensor] | None = None,
    prior: Any = None,
    seconds: float = 120.0,
    target_ess: float = 0.8,
    device: str = "cpu",
) -> Result:
    """Draws samples of an energy, without any setting, and says whether to trust them.

    It explores by tempered sequential Monte Carlo, maps the target affinely to unit size, trains
    a value-gradient sampler on what was found and on its own weighted samples, and fits the map
    again. The verdict is about the weighted samples.

    Args:
        target: a name, an energy, or a function (B, D) -> (B,).
        n: samples.
        seed: of every random number. Learning ends by the clock, so another machine, or a busier
            one, gives other numbers.
        dim: D of a function's states.
        log_density: in place of `target`, the function -E.
        prior: where exploration begins: a torch distribution, or anything with `sample((n,))` and
            `log_prob(x)`. It is no part of the target.
        seconds: about how long it may take.
        target_ess: effective sample size, as a fraction in (0, 1], at which learning ends early.
        device: `cpu` or `cuda`.

    Raises:
        ValueError: if the arguments contradict each other, the target has no Euclidean space, or
            its energy is finite nowhere.

    Example:
        >>> result = sample(lambda x: 0.5 * (x - 3).square().sum(-1), 500, dim=2, seconds=5)
        >>> result.x.shape
        torch.Size([500, 2])
    """
    n, seed = count_of("n", n, least=2), seed_of(seed)
    require_positive("sample", seconds=seconds, target_ess=target_ess)
    if target_ess > 1:
        raise ValueError(f"sample.target_ess must be at most 1, got {target_ess}")
    energy = _target(target, dim, log_density).to(device)
    if energy.geometry.effective_dim != energy.dim:
        raise ValueError(
            f"sample needs a target on R^D, got {type(energy).__name__} on a "
            f"{type(energy.geometry).__name__}; train an agent with its own configuration"
        )
    began = time.monotonic()
    generator = torch.Generator(device).manual_seed(seed)
    reference: Reference | None = None if prior is None else PriorReference(prior, energy.dim)
    dtype = _computing_type(energy, device)
    exploration = explore(
        energy, generator, reference=reference, seconds=0.35 * seconds, dtype=dtype
    )
    agent, mapped = _learn(
        energy,
        exploration,
        dtype=dtype,
        seed=seed,
        seconds=seconds - (time.monotonic() - began),
        target_ess=target_ess,
    )
    sampler = MappedSampler(agent.sampler(), mapped)
    samples = sampler.sample(n, seed)
    evidence = _evidence(agent, mapped, samples, exploration, seed)
    return Result(
        samples=samples,
        verdict=judge_evidence(evidence),
        evidence=evidence,
        agent=agent,
        energy=mapped,
        exploration=exploration,
        seconds=time.monotonic() - began,
    )


def _target(
    target: str | Energy | Callable[[Tensor], Tensor] | None,
    dim: int | None,
    log_density: Callable[[Tensor], Tensor] | None,
) -> Energy:
    if (target is None) == (log_density is None):
        raise ValueError("give either a target or log_density")
    if target is not None:
        return energy_of(target, dim)
    assert log_density is not None
    if dim is None:
        raise ValueError("dim must be given with a function: the dimensions of its states")
    return FunctionEnergy(lambda x: -log_density(x), dim)


def _computing_type(energy: Energy, device: str) -> torch.dtype:
    """The widest type that an energy takes: one with constants of its own may take float32 alone.

    Raises:
        ValueError: if it fails in either.
    """
    for dtype in (torch.float64, torch.float32):
        x = torch.zeros(2, energy.dim, dtype=dtype, device=device)
        try:
            energy.with_gradient(x)
            return dtype
        except ValueError:
            raise
        except Exception as error:  # of a user's code
            failure = error
    raise ValueError(
        f"{type(energy).__name__}.energy failed on states of shape (2, {energy.dim}): "
        f"{type(failure).__name__}: {failure}"
    ) from failure


def settings_for(dim: int, particles: Tensor) -> tuple[MDPConfig, ValueGradientConfig]:
    """Chain and agent for a target of unit size, from particles z (n, D) of it."""
    start = StartConfig(kind="mixture", components=components_of(particles))
    steps = 20 if dim <= 16 else 30
    schedule = ScheduleConfig(kind="auto", total_noise=0.8)
    mdp = MDPConfig(chain="vp", num_steps=steps, schedule=schedule, start=start)
    objective = GradientMatching(batch_size=1024, references=4096 if dim <= 32 else 0)
    network = MLPNetwork(width=128)
    return mdp, ValueGradientConfig(objective=objective, network=network, prior_std=1.0)


def components_of(z: Tensor, most: int = 32) -> int:
    """Number of diagonal Gaussians with the best likelihood of particles that were held out."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    rows = z[torch.randperm(len(z), generator=torch.Generator().manual_seed(0))].cpu().numpy()
    fitted, held = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    best, scores = 1, []
    for components in (1, 2, 4, 8, 16, 32):
        if components > most or 5 * components > len(fitted):
            break
        mixture = GaussianMixture(
            components, covariance_type="diag", reg_covar=1e-4, max_iter=50, random_state=0
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            scores.append((mixture.fit(fitted).score(held), components))
    if scores:
        best = max(scores)[1]
    return max(best, 4)


def _learn(
    energy: Energy,
    exploration: Exploration,
    *,
    dtype: torch.dtype,
    seed: int,
    seconds: float,
    target_ess: float,
) -> tuple[ValueGradientAgent, AffineEnergy]:
    """The agent and its map; the map is fitted again between the parts of its training."""
    began = time.monotonic()
    x, gradient, log_weight = exploration.x, exploration.gradient, exploration.log_weight
    best: tuple[float, ValueGradientAgent, AffineEnergy] | None = None
    for turn, share in enumerate(SHARES):
        left = seconds - (time.monotonic() - began)
        agent, mapped = _new_agent(energy, dtype, x, gradient, log_weight, seed + turn)
        until = max(2.0, min(left, seconds * share))
        agent.learn(seconds=until, progress_bar=False)
        # Not the numbers that the result is drawn with: these choose the agent.
        drawn = agent.sampler().sample(CHECKED, pilot_generator(agent.mdp.device, seed + turn))
        if best is None or drawn.ess > best[0]:
            best = drawn.ess, agent, mapped
        if not agent.finished:  # Ctrl-C: what has been learned is what there is
            break
        if drawn.ess >= target_ess or time.monotonic() - began > 0.9 * seconds:
            break
        x, gradient, log_weight = _pooled(agent, mapped, drawn, exploration)
    assert best is not None
    return best[1], best[2]


def _new_agent(
    energy: Energy,
    dtype: torch.dtype,
    x: Tensor,
    gradient: Tensor,
    log_weight: Tensor,
    seed: int,
) -> tuple[ValueGradientAgent, AffineEnergy]:
    generator = torch.Generator(x.device).manual_seed(seed)
    chosen = systematic_resample(log_weight, len(x), generator)
    coordinates = AffineMap.whitening(x[chosen])
    mapped = AffineEnergy(energy, coordinates, dtype=dtype)
    z, slope = coordinates.to_z(x), coordinates.gradient(gradient)
    mdp_config, config = settings_for(energy.dim, z[chosen])
    mdp = SamplingMDP(mapped, mdp_config, device=x.device)
    agent = config.build(mdp, seed=seed)
    learner = agent.objective
    assert isinstance(learner, GradientMatchingLearner)
    assert isinstance(learner.source, WeightedSource)
    learner.source.rows.add(z.to(mdp.dtype), slope.to(mdp.dtype), log_weight.to(mdp.dtype))
    return agent, mapped


def _pooled(
    agent: ValueGradientAgent, mapped: AffineEnergy, drawn: Samples, exploration: Exploration
) -> tuple[Tensor, Tensor, Tensor]:
    """The sampler's weighted samples with the particles."""
    assert drawn.log_weight is not None
    x = mapped.to_x(drawn.x)
    gradient = mapped.inner.with_gradient(x)[1]
    return (
        torch.cat([x.double(), exploration.x]),
        torch.cat([gradient.double(), exploration.gradient]),
        torch.cat([drawn.log_weight.double(), exploration.log_weight]),
    )


@torch.no_grad()
def _evidence(
    agent: ValueGradientAgent,
    mapped: AffineEnergy,
    samples: Samples,
    exploration: Exploration,
    seed: int,
) -> Evidence:
    """What speaks for and against the samples."""
    assert samples.log_weight is not None
    generator = agent.mdp.generator(seed + 1)
    particles = mapped.coordinates.to_z(exploration.x).to(agent.mdp.dtype)
    backward = agent.sampler().reverse_log_weight(particles, generator)
    return Evidence.of(
        samples.x.double(),
        samples.log_weight,
        particles=exploration.x,
        backward=backward,
        explored_log_z=exploration.log_z,
        explored_spread=exploration.spread,
        doubts=exploration.doubts,
    )
