"""Who makes an energy-based model's negatives: an agent that learns, Langevin walks, or nobody."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from vgs_rl.agents.base import Agent, AgentConfig
from vgs_rl.agents.value_gradient.agent import ValueGradientConfig
from vgs_rl.agents.value_gradient.objectives import GradientMatching
from vgs_rl.agents.value_gradient.td import TD0
from vgs_rl.checks import require_at_least, require_positive
from vgs_rl.fields import settle
from vgs_rl.files.restore import check_like, check_rows, load_generator
from vgs_rl.mdp import SamplingMDP
from vgs_rl.samplers.base import ChainSampler
from vgs_rl.samplers.mcmc.langevin import LangevinKernel


@dataclass(kw_only=True)
class NegativeCounters:
    """What the negatives have cost so far."""

    updates: int = 0
    env_steps: int = 0
    energy_evaluations: int = 0
    restarts: int = 0


class NegativeSampler(ABC):
    """Draws states of an energy that changes meanwhile.

    Attributes:
        mdp: geometry, chain, start, temperature and the energy, shared with whoever moves it.
        counters: what it has cost.
    """

    def __init__(self, mdp: SamplingMDP) -> None:
        self.mdp = mdp
        self.counters = NegativeCounters()

    def train(self, updates: int) -> dict[str, Tensor]:
        """Some gradient steps, where there is something to learn; returns scalars to log."""
        return {}

    @abstractmethod
    def draw(self, n: int) -> Tensor:
        """N states, shape (n, D), detached."""

    @abstractmethod
    def restart(self) -> None:
        """Forgets what it has learned or where it is: its states have collapsed."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next draw depends on."""
        return {"counters": asdict(self.counters)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            ValueError: if the state is another sampler's.
        """
        check_like(state["counters"], asdict(self.counters), "negatives.counters")
        self.counters = NegativeCounters(**state["counters"])


@dataclass(kw_only=True)
class NegativesConfig(ABC):
    """Base of the negatives' configurations."""

    @property
    @abstractmethod
    def name(self) -> str:
        """For run folders and tables."""

    @abstractmethod
    def build(self, mdp: SamplingMDP, *, seed: int) -> NegativeSampler:
        """The sampler, untrained."""


def _td_agent() -> ValueGradientConfig:
    """The value-gradient agent as it follows a moving energy: TD(0), a constant rate."""
    objective = TD0(
        batch_size=128,
        noise_scale=1.0,
        loss_kind="huber",
        scale_by_dim=False,
        control_variate=True,
    )
    return ValueGradientConfig(
        drift="bellman", objective=objective, ema=0.9, lr=3e-3, final_lr=1.0, warmup=0
    )


@dataclass(kw_only=True)
class AgentNegatives(NegativesConfig):
    """Any agent: its episodes end where the negatives are.

    Args:
        agent: the agent; by default the value-gradient sampler with TD(0), whose `prior_std`
            should be about the data's own per coordinate (1/√D on the sphere). An objective that
            keeps energies or their gradients in a buffer cannot follow an energy that moves.
    """

    agent: AgentConfig = field(default_factory=_td_agent)

    def __post_init__(self) -> None:
        settle(self, "negatives")
        objective = getattr(self.agent, "objective", None)
        if isinstance(objective, GradientMatching):
            raise ValueError(
                "negatives.agent.objective must be TD0 or SoftBellman, got GradientMatching, whose "
                "buffer holds gradients of energies that are past"
            )

    @property
    def name(self) -> str:
        """The agent's."""
        return self.agent.name

    def build(self, mdp: SamplingMDP, *, seed: int) -> AgentNegativeSampler:
        """See :meth:`NegativesConfig.build`."""
        return AgentNegativeSampler(mdp, self.agent, seed=seed)


class AgentNegativeSampler(NegativeSampler):
    """Negatives from an agent that learns on the way.

    Attributes:
        agent: the agent; a restart replaces it by an untrained one.
    """

    def __init__(self, mdp: SamplingMDP, config: AgentConfig, *, seed: int) -> None:
        super().__init__(mdp)
        self.config, self.seed = config, seed
        self.agent: Agent = self.config.build(mdp, seed=seed)

    def train(self, updates: int) -> dict[str, Tensor]:
        """See :meth:`NegativeSampler.train`."""
        scalars: dict[str, Tensor] = {}
        counters, agent = self.counters, self.agent
        for _ in range(updates):
            steps, used = agent.counters.env_steps, agent.counters.energy_evaluations
            scalars = agent.update()
            counters.updates += 1
            counters.env_steps += agent.counters.env_steps - steps
            counters.energy_evaluations += agent.counters.energy_evaluations - used
        return scalars

    @torch.no_grad()
    def draw(self, n: int) -> Tensor:
        """Terminal states of n episodes with the current policy."""
        used = self.mdp.energy_evaluations
        sampler = self.agent.sampler()
        if not isinstance(sampler, ChainSampler):
            raise ValueError(
                f"negatives.agent must draw by a chain, got a {type(sampler).__name__}"
            )
        rollout = self.mdp.rollout(sampler.policy, n, self.agent.generator)
        self.counters.env_steps += n * self.mdp.num_steps
        self.counters.energy_evaluations += self.mdp.energy_evaluations - used
        return rollout.x

    def restart(self) -> None:
        """An untrained agent with another seed."""
        self.counters.restarts += 1
        self.agent = self.config.build(self.mdp, seed=self.seed + 7919 * self.counters.restarts)

    def state_dict(self) -> dict[str, Any]:
        """The agent's, too."""
        return super().state_dict() | {"agent": self.agent.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        super().load_state_dict(state)
        self.agent.load_state_dict(state["agent"])


@dataclass(kw_only=True)
class LangevinNegatives(NegativesConfig):
    """Langevin walks of a few steps on the energy, from the MDP's start or where they last ended.

    Short-run chains (Nijkamp et al., arXiv:1904.09770) restart every time; persistent ones
    (Tieleman, ICML 2008) go on, but for a small fraction.

    Args:
        steps: Langevin steps of each draw.
        step_size: variance of a step's noise per coordinate.
        temperature: tau of the walk; the MDP's by default, lower walks downhill with less noise.
        persistent: whether chains go on where they ended.
        chains: number of persistent chains.
        restart_fraction: probability that a persistent chain restarts at a draw.
    """

    steps: int = 40
    step_size: float = 0.01
    temperature: float | None = None
    persistent: bool = False
    chains: int = 4096
    restart_fraction: float = 0.05

    def __post_init__(self) -> None:
        settle(self, "negatives")
        require_at_least("negatives", 1, steps=self.steps, chains=self.chains)
        require_positive("negatives", step_size=self.step_size)
        if self.temperature is not None:
            require_positive("negatives", temperature=self.temperature)
        if not 0 <= self.restart_fraction <= 1:
            raise ValueError(
                f"negatives.restart_fraction must be in [0, 1], got {self.restart_fraction}"
            )

    @property
    def name(self) -> str:
        """`langevin`, or `langevin-persistent`."""
        return "langevin-persistent" if self.persistent else "langevin"

    def build(self, mdp: SamplingMDP, *, seed: int) -> LangevinNegativeSampler:
        """See :meth:`NegativesConfig.build`."""
        return LangevinNegativeSampler(mdp, self, seed=seed)


class LangevinNegativeSampler(NegativeSampler):
    """Negatives from Langevin walks in the energy's geometry; every step counts as one of the MDP.

    Attributes:
        x: where the persistent chains are, shape (C, D); empty before the first draw.
        generator: source of all noise.
    """

    def __init__(self, mdp: SamplingMDP, config: LangevinNegatives, *, seed: int) -> None:
        super().__init__(mdp)
        self.config = config
        self.generator = mdp.generator(seed)
        self.x = torch.empty(0, mdp.dim, device=mdp.device, dtype=mdp.dtype)

    @torch.no_grad()
    def draw(self, n: int) -> Tensor:
        """See the class."""
        if not self.config.persistent:
            return self._walk(self.mdp.start.sample(n, self.generator))
        if not len(self.x):
            self.x = self.mdp.start.sample(self.config.chains, self.generator)
        device = self.x.device
        order = torch.randperm(len(self.x), generator=self.generator, device=device)
        rows = order[torch.arange(min(n, len(order)), device=device)]
        anew = torch.rand(len(rows), generator=self.generator, device=device)
        fresh = self.mdp.start.sample(len(rows), self.generator)
        x = torch.where((anew < self.config.restart_fraction).unsqueeze(-1), fresh, self.x[rows])
        x = self._walk(x)
        lost = ~torch.isfinite(x).all(-1, keepdim=True)
        self.x = self.x.index_copy(0, rows, torch.where(lost, fresh, x))
        return x

    def _walk(self, x: Tensor) -> Tensor:
        config, mdp = self.config, self.mdp
        kernel = LangevinKernel(
            mdp.energy,
            x,
            step_size=config.step_size,
            temperature=config.temperature or mdp.temperature,
        )
        for _ in range(config.steps):
            kernel.step(self.generator)
        self.counters.env_steps += config.steps * len(x)
        self.counters.energy_evaluations += kernel.energy_evaluations
        mdp.energy_evaluations += kernel.energy_evaluations
        return kernel.x

    def restart(self) -> None:
        """Persistent chains restart; others always do."""
        self.counters.restarts += 1
        self.x = self.x[:0]

    def state_dict(self) -> dict[str, Any]:
        """The chains and the generator, too."""
        return super().state_dict() | {"x": self.x, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        super().load_state_dict(state)
        check_rows(state, {"x": 2}, "negatives", width=self.mdp.dim)
        load_generator(self.generator, state["generator"], "negatives.generator")
        self.x = state["x"].clone()


@dataclass(kw_only=True)
class NoNegatives(NegativesConfig):
    """No contrast: E learns by its own `pretraining_loss` alone, a plain autoencoder for instance.

    What contrastive training is compared with.
    """

    @property
    def name(self) -> str:
        """`plain`."""
        return "plain"

    def build(self, mdp: SamplingMDP, *, seed: int) -> NoNegativeSampler:
        """See :meth:`NegativesConfig.build`."""
        return NoNegativeSampler(mdp)


class NoNegativeSampler(NegativeSampler):
    """Draws nothing."""

    def draw(self, n: int) -> Tensor:
        """Shape (0, D)."""
        return torch.empty(0, self.mdp.dim, device=self.mdp.device, dtype=self.mdp.dtype)

    def restart(self) -> None:
        """Nothing to forget."""
