"""What an agent is made of: a target in any form, its chain, and the settings of its algorithm."""

from __future__ import annotations

import copy
import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeVar

from torch import Tensor

from vgs_rl.agents.automatic.settings import KEPT, ExplorationConfig
from vgs_rl.agents.base import Agent, AgentConfig
from vgs_rl.agents.value_gradient.objectives import ValueObjective
from vgs_rl.conditional.energy import ConditionalEnergy, JointEnergy
from vgs_rl.energy import Energy
from vgs_rl.envs.configured import EnvironmentConfig, ranged_config, tuned_config
from vgs_rl.fields import nearest, settle
from vgs_rl.files.shipped import CONFIGS
from vgs_rl.mdp import MDPConfig, SamplingMDP
from vgs_rl.networks.config import NetworkConfig
from vgs_rl.registry import energy_of, find
from vgs_rl.training.config import (
    BudgetConfig,
    allow_subclasses,
    checked_content,
    parse_content,
    read_yaml,
    resolve_device,
)
from vgs_rl.training.folder import RunFolder

# An id or import path, an energy, a function (B, D) -> (B,), an MDP, or an environment around one.
TargetLike = str | Energy | ConditionalEnergy | Callable[[Tensor], Tensor] | SamplingMDP | Any

C = TypeVar("C", bound=AgentConfig)

allow_subclasses(AgentConfig, NetworkConfig, ValueObjective)


@dataclass(frozen=True)
class Origin:
    """Where an agent's energy comes from, as far as a file can say it.

    Attributes:
        name: the target's name, for reports.
        env: id or import path of the target; empty where it was handed over as an object.
        env_args: arguments of its energy.
    """

    name: str
    env: str = ""
    env_args: Mapping[str, Any] = field(default_factory=dict)


class TargetAgent(Agent):
    """An agent of any target.

    Args:
        target: an id (`GMM9`), an energy, a function (B, D) -> (B,), an MDP or an environment.
        config: its settings; by default those of the target's shipped configuration.
        seed: of everything random in training.
        dim: D of a function's states.
        mdp: the chain; by default the target's.
        temperature: tau in place of the chain's; a range, such as (0.5, 2.0), for one agent of
            every tau in it.
        device: `auto`, `cpu` or `cuda`; an MDP and an environment have theirs.
        one_step: whether a student is made at the end of learning, which draws with one network
            call (:meth:`distill`); it learns with the settings of that method.
        **settings: fields of the configuration, over those of `config`.

    Attributes:
        config_type: the class of its configuration.
        explores: whether such an agent can take its settings from an exploration.
        exploration: whether this one does so before it learns, and what was decided.

    Raises:
        ValueError: if target or settings do not fit, naming the field and what was expected.
        TypeError: if `target` is none of these.
    """

    config_type: ClassVar[type[AgentConfig]]
    explores: ClassVar[bool] = False

    def __init__(
        self,
        target: TargetLike,
        config: AgentConfig | None = None,
        *,
        seed: int = 0,
        dim: int | None = None,
        mdp: MDPConfig | None = None,
        temperature: float | tuple[float, float] | None = None,
        device: str = "auto",
        one_step: bool = False,
        **settings: Any,
    ) -> None:
        given = any(each is not None for each in (config, mdp, temperature))
        chosen = given or not settings.keys() <= set(KEPT)
        chain, config, self.origin = prepare(
            target,
            config,
            self.config_type,
            dim=dim,
            mdp=mdp,
            temperature=temperature,
            device=device,
            settings=settings,
        )
        always = self.explores and not chosen and needs_exploration(target, chain.energy)
        self.exploration = ExplorationConfig(when="always" if always else "never")
        self.config = settle(copy.deepcopy(config), "agent")
        self.one_step = one_step
        if one_step:
            distilled = importlib.import_module("vgs_rl.agents.distilled.agent")
            distilled.require_distillable(chain.energy, steps=1)
        super().__init__(chain, seed=seed)

    def learn(
        self, budget: BudgetConfig | None = None, *, folder: RunFolder | None = None, **options: Any
    ) -> Self:
        """See :meth:`Agent.learn`; an agent of one step then makes its student.

        Raises:
            ValueError: if an agent of one step is given a run folder, which holds one agent.
        """
        if self.one_step and folder is not None:
            raise ValueError(
                "folder must be left out where one_step is True: train the run, then vgs-rl "
                "distill makes another of its student"
            )
        self.student = None
        super().learn(budget, folder=folder, **options)
        if self.one_step and self.finished:
            self.student = self.distill(
                seed=self.seed, progress_bar=options.get("progress_bar", True)
            )
        return self


@dataclass(kw_only=True)
class _Shipped(EnvironmentConfig):
    """What an agent takes from a shipped configuration."""

    agent: AgentConfig | None = None


def prepare(
    target: TargetLike,
    config: C | None,
    kind: type[C],
    *,
    dim: int | None = None,
    mdp: MDPConfig | None = None,
    temperature: float | tuple[float, float] | None = None,
    device: str = "auto",
    settings: Mapping[str, Any],
) -> tuple[SamplingMDP, C, Origin]:
    """The MDP, the configuration and the origin of an agent.

    A registered target comes with chain and settings of its shipped configuration, over a range of
    temperatures with those of `configs/conditional`.

    Args:
        target: an id or import path, an energy, a function (B, D) -> (B,) of states, an MDP, or a
            Gymnasium environment of this package.
        config: the agent's configuration; None takes the target's shipped one, or the defaults.
        kind: its class.
        dim: dimensions of a function's states.
        mdp: the chain; None takes the target's, or the default.
        temperature: in place of the chain's, if given.
        device: `auto`, `cpu` or `cuda`; an MDP and an environment have theirs.
        settings: fields of the configuration that replace what is there.

    Raises:
        ValueError: if target or settings do not fit, naming the field and what was expected.
    """
    found: Any = getattr(getattr(target, "unwrapped", None), "mdp", target)
    if isinstance(found, SamplingMDP):
        for name, value in (("dim", dim), ("mdp", mdp), ("temperature", temperature)):
            if value is not None:
                raise ValueError(f"{name} must be left out where an MDP is given, got {value}")
        origin = Origin(type(found.energy).__name__)
        return found, replaced(config or kind(), settings), origin
    ranged = isinstance(temperature, tuple | list)
    shipped = _shipped(found, ranged=ranged) if isinstance(found, str) else None
    energy = energy_of(found, dim, **(shipped.env_args if shipped else {}))
    if isinstance(found, str):
        origin = Origin(find(found).name, found, shipped.env_args if shipped else {})
        mdp = mdp or (shipped.mdp if shipped else copy.deepcopy(find(found).mdp))
    else:
        of = energy.conditional if isinstance(energy, JointEnergy) else energy
        origin = Origin(getattr(found, "__name__", type(of).__name__))
    if config is None and shipped is not None and isinstance(shipped.agent, kind):
        config = shipped.agent
    mdp = mdp or MDPConfig()
    if temperature is not None:
        mdp = dataclasses.replace(mdp, temperature=temperature)
    chain = SamplingMDP(energy, mdp, device=resolve_device(device))
    return chain, replaced(config or kind(), settings), origin


def needs_exploration(target: TargetLike, energy: Energy) -> bool:
    """Whether a target comes without settings, and its space is R^D.

    Args:
        target: as :class:`TargetAgent` takes it.
        energy: its energy.
    """
    if isinstance(target, str):
        found = find(target)
        if found.config is not None or found.mdp != MDPConfig():
            return False
    elif hasattr(getattr(target, "unwrapped", target), "mdp") or isinstance(target, SamplingMDP):
        return False
    return energy.geometry.effective_dim == energy.dim


def replaced(config: C, settings: Mapping[str, Any]) -> C:
    """A configuration with some fields replaced; they are checked as those of a file are.

    Raises:
        ValueError: naming a field that does not exist, with the nearest ones, or its value.
    """
    names = [each.name for each in dataclasses.fields(config)]
    for name in settings:
        if name not in names:
            what = type(config).__name__
            raise ValueError(f"{name} is no setting of {what}; {nearest(name, names)}")
    return dataclasses.replace(config, **settings)


def _shipped(target: str, *, ranged: bool) -> _Shipped | None:
    """The shipped configuration of a registered target, if there is one.

    Args:
        target: its id or import path.
        ranged: whether it is to be learned over a range of temperatures.
    """
    name = (ranged_config(target) if ranged else None) or tuned_config(target)
    if name is None:
        return None
    path = CONFIGS / f"{name}.yaml"
    taken = {each.name for each in dataclasses.fields(_Shipped)}
    sections = {key: value for key, value in read_yaml(path).items() if key in taken}
    content = checked_content(sections, _Shipped, source=f"config {path}")
    options = parse_content(_Shipped, content)
    return _Shipped(**{key: options[key] for key in taken})
