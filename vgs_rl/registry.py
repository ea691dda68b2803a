"""Named targets: one registration gives a Gymnasium id, an `--env` and a name for configs."""

from __future__ import annotations

import copy
import difflib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
from torch import Tensor

from vgs_rl.chain import ScheduleConfig
from vgs_rl.conditional.energy import ConditionalEnergy, as_energy
from vgs_rl.energy import Energy
from vgs_rl.files.yaml_text import read_mapping
from vgs_rl.foreign.function_energy import FunctionEnergy
from vgs_rl.mdp import MDPConfig
from vgs_rl.starts.base import StartConfig
from vgs_rl.trust import load, require

EnergyFactory = Callable[..., Energy | ConditionalEnergy]


@dataclass(kw_only=True, frozen=True)
class Target:
    """A registered target.

    Attributes:
        id: Gymnasium id, ``namespace/Name-v0``, or the import path it was found by.
        energy: class or function that makes the energy.
        energy_args: its keyword arguments.
        config: the configuration file of its agent and its MDP, or None.
    """

    id: str
    energy: EnergyFactory
    energy_args: Mapping[str, Any] = field(default_factory=dict)
    config: Path | None = None
    given_mdp: MDPConfig = field(default_factory=MDPConfig)

    @functools.cached_property
    def mdp(self) -> MDPConfig:
        """The MDP that the id stands for.

        Raises:
            ValueError: if the configuration's cannot be read, naming file and field.
        """
        if self.config is None:
            return self.given_mdp
        content = read_mapping(self.config).get("mdp", {})
        try:
            return _mdp_of(content)
        except (TypeError, ValueError) as error:
            raise ValueError(f"mdp of {self.config}: {error}") from error

    @property
    def name(self) -> str:
        """The id without namespace and version, as in run folders: `GMM9`."""
        last = self.id.rpartition(":")[2].rpartition("/")[2]
        return last.rpartition("-v")[0] or last

    @property
    def namespace(self) -> str:
        """What stands before the name in the id; empty for an import path."""
        return self.id.rpartition(":")[2].rpartition("/")[0]

    def make_energy(self, **overrides: Any) -> Energy:
        """A new energy; `overrides` replace registered arguments. A conditional one is of rows.

        Raises:
            ValueError: if the arguments do not fit, naming the target.
            TypeError: if what comes out is not an :class:`Energy`.
        """
        arguments = {**self.energy_args, **overrides}
        try:
            energy = as_energy(self.energy(**arguments))
        except TypeError as error:
            raise ValueError(f"env_args of {self.id}: {error}") from error
        if not isinstance(energy, Energy):
            raise TypeError(f"{self.id} must make a vgs_rl.Energy, got {type(energy).__name__}")
        made: Energy = energy
        return made


def _mdp_of(content: Mapping[str, Any]) -> MDPConfig:
    """The MDP of a configuration's section."""
    sections = {"schedule": ScheduleConfig, "start": StartConfig}
    parts = {name: made(**content[name]) for name, made in sections.items() if name in content}
    return MDPConfig(**{**content, **parts})


_targets: dict[str, Target] = {}


def register(
    id: str,
    *,
    energy: EnergyFactory,
    energy_args: Mapping[str, Any] | None = None,
    mdp: MDPConfig | Path | str | None = None,
    env: str = "vgs_rl.envs.sampling:SamplingEnv",
    vector_env: str = "vgs_rl.envs.vector:SamplingVectorEnv",
) -> Target:
    """Registers a target under a Gymnasium id, for `gymnasium.make`, `make_vec`, `--env`, configs.

    Registering an id again replaces it, so that a notebook cell can be run twice. Changing a
    constant of a published target should raise its version.

    Args:
        id: ``namespace/Name-v0``.
        energy: an :class:`Energy` or :class:`~vgs_rl.ConditionalEnergy` class, or a function that
            returns one.
        energy_args: keyword arguments for `energy`.
        mdp: default chain, schedule and start, or the path of a configuration that has them.
        env: import path of the single environment, for energies that need their own.
        vector_env: import path of the vector environment.

    Raises:
        ValueError: if the id is not of that form.
        TypeError: if `energy` cannot be called, or `mdp` is something else.
        FileNotFoundError: if `mdp` is the path of no file.

    Example:
        >>> import vgs_rl, gymnasium, torch
        >>> class Ring(vgs_rl.Energy):
        ...     dim = 2
        ...     def energy(self, x):
        ...         return 5.0 * (x.norm(dim=-1) - 3.0) ** 2
        >>> target = vgs_rl.register("doc/Ring-v0", energy=Ring)
        >>> envs = gymnasium.make_vec("doc/Ring-v0", num_envs=8)
    """
    namespace, _, version = gymnasium.envs.registration.parse_env_id(id)
    if namespace is None or version is None:
        raise ValueError(f"id must read 'namespace/Name-v0', got {id!r}")
    if not callable(energy):
        raise TypeError(f"energy must be an Energy class or a function, got {energy!r}")
    config = Path(mdp) if isinstance(mdp, Path | str) else None
    if config is None and not isinstance(mdp, MDPConfig | None):
        raise TypeError(f"mdp must be an MDPConfig or the path of a configuration, got {mdp!r}")
    if config is not None and not config.is_file():
        raise FileNotFoundError(f"mdp: there is no configuration {config}")
    target = Target(
        id=id,
        energy=energy,
        energy_args=dict(energy_args or {}),
        config=config,
        given_mdp=mdp if isinstance(mdp, MDPConfig) else MDPConfig(),
    )
    _targets[id] = target
    gymnasium.registry.pop(id, None)
    gymnasium.register(
        id=id,
        entry_point=env,
        vector_entry_point=vector_env,
        kwargs={"target": id},
    )
    return target


def registered() -> tuple[str, ...]:
    """All registered ids, in the order of their registration."""
    return tuple(_targets)


def find(name: str) -> Target:
    """The target of a name.

    Args:
        name: a registered id (`vgs_rl/GMM9-v0`), the id without its version (`vgs_rl/GMM9`) or
            without its namespace as well (`GMM9`), which mean the highest version, any of them
            behind a module that registers it when imported (`my_module:me/Rings-v0`), or the
            import path of an :class:`Energy` class, or of a function annotated to return one
            (`my_module:Rings`). Short names are this package's before they are a user's.

    Raises:
        ValueError: if nothing of that name exists, with the nearest names; if a short name stands
            for targets of several namespaces, with the ids; if what was imported is no energy.
        ModuleNotFoundError: if the module cannot be imported, with the reason; a ValueError, too.
    """
    full = name
    if ":" in name:
        module, name = load(name, owner="env")
        if name.isidentifier() and hasattr(module, name):
            energy = getattr(module, name)
            conditional = isinstance(energy, type) and issubclass(energy, ConditionalEnergy)
            if not conditional and not any(t.energy is energy for t in _targets.values()):
                require(energy, Energy, name=full, owner="env")
            return Target(id=full, energy=energy)
    if name in _targets:
        return _targets[name]
    latest = _latest(name)
    if "vgs_rl" in latest:
        return latest["vgs_rl"]
    if len(latest) > 1:
        ids = ", ".join(target.id for target in latest.values())
        raise ValueError(f"env: {name!r} stands for several targets, name one of {ids}")
    if latest:
        return next(iter(latest.values()))
    known = [*_targets, *(target.name for target in _targets.values())]
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else f"registered: {', '.join(_targets)}"
    if "/" in name and not name.startswith("vgs_rl/"):
        hint = f"import the module that registers it, or name it, too: my_module:{name}"
    raise ValueError(f"env: no target is named {name!r}; {hint}")


def _latest(name: str) -> dict[str, Target]:
    """The targets that a name without version may mean: of each namespace the highest version."""
    latest: dict[str, tuple[int, Target]] = {}
    for target in _targets.values():
        if name in (target.name, f"{target.namespace}/{target.name}"):
            version = gymnasium.envs.registration.parse_env_id(target.id)[2] or 0
            found = latest.get(target.namespace)
            if found is None or version > found[0]:
                latest[target.namespace] = version, target
    return {namespace: target for namespace, (_, target) in latest.items()}


def default_mdp(name: str) -> MDPConfig:
    """A copy of the MDP configuration that a name stands for."""
    return copy.deepcopy(find(name).mdp)


def energy_of(
    target: str | Energy | ConditionalEnergy | Callable[[Tensor], Tensor],
    dim: int | None = None,
    **arguments: Any,
) -> Energy:
    """An energy, whatever a target was named by; a conditional one as that of rows (x, c).

    Args:
        target: a name as :func:`find` takes it, an energy, or a function (B, D) -> (B,).
        dim: D of a function's states; an energy knows its own.
        **arguments: of a named target's energy.

    Raises:
        TypeError: if it is none of these.
        ValueError: if `dim` is missing, or not that of the energy.
    """
    if isinstance(target, str):
        energy = find(target).make_energy(**arguments)
    elif isinstance(target, Energy):
        energy = target
    elif isinstance(target, ConditionalEnergy):
        energy = as_energy(target)
    elif isinstance(target, type) and issubclass(target, Energy | ConditionalEnergy):
        energy = as_energy(target(**arguments))
    elif callable(target) and not isinstance(target, type):
        if dim is None:
            raise ValueError("dim must be given with a function: the dimensions of its states")
        return FunctionEnergy(target, dim)
    else:
        raise TypeError(
            "target must be an id, an Energy, a function (B, D) -> (B,) or an environment, "
            f"got {target!r}"
        )
    if dim is not None and dim != energy.dim:
        raise ValueError(f"dim must be {energy.dim}, which the energy has, got {dim}")
    return energy
