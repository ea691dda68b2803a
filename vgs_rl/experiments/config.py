"""The configuration of a run: what a file, a command line or a mapping says, read once."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from jsonargparse import Namespace

import vgs_rl.envs.sampling  # noqa: F401  importing the Gymnasium faces registers the targets
from vgs_rl.agents.automatic.settings import KEPT, ExplorationConfig
from vgs_rl.agents.base import AgentConfig
from vgs_rl.agents.value_gradient.agent import ValueGradientConfig
from vgs_rl.agents.value_gradient.objectives import ValueObjective
from vgs_rl.checks import seed_of
from vgs_rl.energy import Energy
from vgs_rl.fields import checked_mapping, settle
from vgs_rl.files.yaml_text import parse_mapping
from vgs_rl.mdp import MDPConfig
from vgs_rl.names import imports
from vgs_rl.networks.config import NetworkConfig
from vgs_rl.registry import find
from vgs_rl.training.config import (
    BudgetConfig,
    ConfigError,
    ConfigParser,
    EvaluationConfig,
    Given,
    allow_subclasses,
    checked_content,
    config_file,
    given,
    make_parser,
    parse,
    parse_content,
    read_yaml,
)
from vgs_rl.training.record import as_yaml
from vgs_rl.trust import Trust

allow_subclasses(AgentConfig, NetworkConfig, ValueObjective)


@dataclass(kw_only=True)
class RunConfig:
    """One training run.

    Attributes:
        changeable: what a resumed run may change.

    Args:
        env: a registered target (`GMM9`, `vgs_rl/GMM9-v0`), `my_module:me/Rings-v0`, or the import
            path of an energy (`my_module:Rings`).
        env_args: arguments of the energy, over the registered ones.
        mdp: how a sample moves; a configuration file that leaves it out gets the target's own.
        agent: `class_path` of an agent's configuration, and its `init_args`.
        exploration: whether the energy is explored first, which chooses `mdp` and most of `agent`.
        budget: when training stops; naming a limit drops those of file and default.
        evaluation: how the run is watched and evaluated.
        seed: seed of everything in training.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        output: folder of run folders; this run's is <output>/<env>/<agent>/<seed>.
    """

    changeable: ClassVar[tuple[str, ...]] = ("budget", "evaluation", "device", "output")

    env: str = imports(Energy, default="GMM9")
    env_args: dict[str, Any] = field(default_factory=dict)
    mdp: MDPConfig = field(default_factory=MDPConfig)
    agent: AgentConfig = field(default_factory=ValueGradientConfig)
    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)
    budget: BudgetConfig = field(default_factory=lambda: BudgetConfig(updates=2000))
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = 0
    device: str = "auto"
    output: Path = Path("runs")

    def __post_init__(self) -> None:
        settle(self)
        self.seed = seed_of(self.seed)

    @classmethod
    def from_yaml(
        cls, text: str, *, source: str = "the configuration", trust: Trust = False
    ) -> RunConfig:
        """The configuration that a text holds; arguments and errors are :func:`run_config`'s."""
        return run_config(parse_mapping(text, source), source=source, trust=trust)

    def to_yaml(self) -> str:
        """The text of its file, every default included."""
        return as_yaml(self)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        name = self.agent.folder_name(self.mdp)
        return self.output / find(self.env).name / name / str(self.seed)


def run_parser(**options: Any) -> ConfigParser:
    """The parser of run configurations; scripts add their own options to it."""
    return make_parser(RunConfig, **options)


def parse_run(
    arguments: Sequence[str], parser: ConfigParser | None = None, *, trust: Trust = False
) -> Namespace:
    """Parses a command line; the target's own MDP fills in where a file does not give one.

    Args:
        arguments: the command line.
        parser: the command's.
        trust: the user's word for what files name, besides what the command line says.

    Returns:
        The options; :func:`config_of` takes the run's. `trust` among them is the user's word, and
        `untouched` says whether they leave to an exploration what it chooses.

    Raises:
        ConfigError: naming the field, the value and what was expected.
    """
    parser = parser or run_parser()
    known = given(parser, arguments, trust=trust)
    if known.file_value("mdp") is None:
        early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        early.add_argument("--env", default=known.file_value("env") or RunConfig.env)
        _use_mdp_of(parser, early.parse_known_args(known.arguments)[0].env)
    options = parse(parser, known)
    options.untouched = _says_nothing(known)
    return options


def _says_nothing(known: Given) -> bool:
    """Whether files and options leave the chain, and of the agent all but KEPT, as it is."""
    section = known.file_value("agent")
    if known.file_value("mdp") is not None or not isinstance(section, Mapping | None):
        return False
    content = dict(section or {})
    named = {str(content.pop("class_path", ""))}
    settings = set(content.pop("init_args", None) or {}) | set(content)
    for argument in known.arguments:
        name, _, value = argument.partition("=")
        if name.partition(".")[0] == "--mdp":
            return False
        if name in ("--agent", "--agent.class_path"):
            named.add(value)
        elif name.startswith("--agent."):
            settings.add(name.removeprefix("--agent.").removeprefix("init_args.").split(".")[0])
    ours = ValueGradientConfig.__name__
    return settings <= set(KEPT) and all(each.rpartition(".")[2] in ("", ours) for each in named)


def _use_mdp_of(parser: ConfigParser, env: str) -> None:
    """Sets the defaults of `mdp` to those of a target.

    Raises:
        ConfigError: if there is none of that name.
    """
    try:
        target = find(str(env))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    parser.set_defaults({"mdp": asdict(target.mdp)})


def run_config(
    content: Mapping[str, Any], *, source: str | None = None, trust: Trust = False
) -> RunConfig:
    """The run configuration of a mapping, such as a file holds it.

    Args:
        content: fields; where `mdp` is left out, the target's own fills in.
        source: the file, for messages. Without one the names in the mapping are the caller's word.
        trust: the user's word for what the file names (:mod:`vgs_rl.trust`).

    Raises:
        ConfigError: naming the source, the field, the value and what was expected.
    """
    where = "" if source is None else f"{source}: "
    if source is not None:
        content = checked_content(dict(content), RunConfig, source=source, trust=trust)
    try:
        checked = checked_mapping(RunConfig, content)
        if checked.get("mdp") is None:
            checked["mdp"] = asdict(find(str(checked.get("env", RunConfig.env))).mdp)
        config = config_of(parse_content(RunConfig, checked))
        find(config.env)
        return config
    except ValueError as error:
        raise ConfigError(f"{where}{error}") from error


def config_of(options: Namespace) -> RunConfig:
    """The run configuration among parsed options.

    Raises:
        ConfigError: naming the field, the value and what was expected.
    """
    try:
        return RunConfig(**{each.name: options[each.name] for each in fields(RunConfig)})
    except ValueError as error:
        raise ConfigError(str(error)) from error


def saved_config(path: Path, *, trust: Trust = False) -> RunConfig:
    """The configuration of a run folder.

    Args:
        path: the run folder.
        trust: the user's word for what the configuration names (:mod:`vgs_rl.trust`).

    Raises:
        FileNotFoundError: if there is none.
        ConfigError: if it is damaged, or names foreign code without `trust`, naming the file.
    """
    file = Path(path) / "config.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"{path} is not a run folder: it has no config.yaml")
    return run_config(read_yaml(file), source=f"config {file}", trust=trust)


def named_config(
    name: str, settings: Mapping[str, Any] | None = None, *, trust: Trust = False
) -> RunConfig:
    """A shipped configuration, or that of a YAML file, with settings over it.

    Args:
        name: as :func:`vgs_rl.training.config.config_file` takes it.
        settings: fields; a budget replaces the file's, other sections go over it key by key.
        trust: the user's word for what the file names (:mod:`vgs_rl.trust`).

    Raises:
        ConfigError: naming the file, the field, the value and what was expected.
    """
    file, settings = config_file(name, "run"), settings or {}
    content = {k: v for k, v in read_yaml(file).items() if k != "budget" or k not in settings}
    return run_config(merged(content, settings), source=f"config {file}", trust=trust)


def merged(below: Any, above: Any) -> Any:
    """`above` over `below`, mappings key by key; the result shares nothing with them."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return copy.deepcopy(above)
    keys = [*below, *(key for key in above if key not in below)]
    return {
        key: merged(below.get(key), above[key]) if key in above else copy.deepcopy(below[key])
        for key in keys
    }
