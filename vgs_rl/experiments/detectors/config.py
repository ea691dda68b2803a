"""The configuration of a detector experiment: what a file, a command line or a mapping says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from jsonargparse import Namespace

from vgs_rl.agents import EBMConfig, LangevinNegatives
from vgs_rl.agents.base import AgentConfig
from vgs_rl.agents.ebm.classical import OutlierConfig, OutlierMethod
from vgs_rl.agents.ebm.detector import WatchConfig
from vgs_rl.agents.value_gradient.objectives import ValueObjective
from vgs_rl.checks import require_at_least, require_positive
from vgs_rl.ebm.learned import EnergyConfig, LearnedEnergy
from vgs_rl.envs.anomaly import DigitsSource, SourceConfig
from vgs_rl.networks.config import NetworkConfig
from vgs_rl.training.config import (
    BudgetConfig,
    ConfigError,
    ConfigParser,
    allow_subclasses,
    checked_content,
    config_file,
    given,
    make_parser,
    parse,
    parse_content,
    read_yaml,
    resolve_device,
)
from vgs_rl.training.record import as_yaml
from vgs_rl.trust import Trust

allow_subclasses(AgentConfig, NetworkConfig, ValueObjective, SourceConfig)

Trained = Literal["langevin", "langevin-persistent", "plain"]
TRAINED: tuple[Trained, ...] = get_args(Trained)


@dataclass(kw_only=True)
class ComparisonConfig:
    """What the detector is compared with, on the same data and features.

    Args:
        methods: trainings of the same energy. `langevin` (short runs) and `langevin-persistent`
            get as many energy evaluations as the experiment's own sampler used, in about as many
            updates of E; `plain` is the autoencoder's own loss alone, for as many updates, those
            of the pre-training included.
        autoencoder: what `plain` trains; the experiment's own energy by default, which then has
            to be one.
        plain_updates: updates of `plain`, where not as many as said above.
        step_size: variance of a Langevin step's noise per coordinate.
        temperature: of the Langevin walks; the MDP's by default.
        chains: number of persistent chains.
        restart_fraction: probability that a persistent chain restarts at a draw.
        outliers: classical detectors, fitted to the same rows.
        max_rows: rows that they are fitted to at most.
    """

    methods: tuple[Trained, ...] = TRAINED
    autoencoder: EnergyConfig | None = None
    plain_updates: int | None = None
    step_size: float = 1e-3
    temperature: float | None = None
    chains: int = 1024
    restart_fraction: float = 0.05
    outliers: tuple[OutlierMethod, ...] = (
        "isolation_forest",
        "one_class_svm",
        "local_outlier_factor",
    )
    max_rows: int = 4_000

    def __post_init__(self) -> None:
        require_positive("comparison", step_size=self.step_size)
        if self.plain_updates is not None:
            require_at_least("comparison", 1, plain_updates=self.plain_updates)
        OutlierConfig(max_rows=self.max_rows)
        self.langevin(1, persistent=True)

    def langevin(self, steps: int, *, persistent: bool) -> LangevinNegatives:
        """The walks."""
        return LangevinNegatives(
            steps=steps,
            step_size=self.step_size,
            temperature=self.temperature,
            persistent=persistent,
            chains=self.chains,
            restart_fraction=self.restart_fraction,
        )


@dataclass(kw_only=True)
class DetectorConfig:
    """An experiment: a detector trained on each part of the data, for each seed.

    Args:
        data: `class_path` of a source: DigitsSource, TexturesSource, MVTecSource.
        part: one part of the data (a digit held out, a texture); all by default.
        ebm: energy, sampler of negatives, how both learn.
        budget: when each training stops; naming a limit drops those of file and default.
        watch: how each is watched, and what chooses its checkpoint.
        compare: whether the methods of `comparison` are run, too.
        comparison: these methods.
        seed: seed of everything, data splits included.
        seeds: how many seeds, from `seed` on.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        output: folder of experiments; this one's is <output>/<data>.
    """

    changeable: ClassVar[tuple[str, ...]] = (
        "budget",
        "compare",
        "comparison",
        "seeds",
        "device",
        "output",
    )

    data: SourceConfig = field(default_factory=DigitsSource)
    part: str | None = None
    ebm: EBMConfig = field(default_factory=EBMConfig)
    budget: BudgetConfig = field(default_factory=lambda: BudgetConfig(updates=500))
    watch: WatchConfig = field(default_factory=WatchConfig)
    compare: bool = False
    comparison: ComparisonConfig = field(default_factory=ComparisonConfig)
    seed: int = 0
    seeds: int = 1
    device: str = "auto"
    output: Path = Path("runs")

    def __post_init__(self) -> None:
        require_at_least("experiment", 0, seed=self.seed)
        require_at_least("experiment", 1, seeds=self.seeds)
        if self.part is not None and self.part not in self.data.parts:
            raise ValueError(f"part must be one of {', '.join(self.data.parts)}, got {self.part!r}")
        resolve_device(self.device)
        if self.compare and "plain" in self.comparison.methods:
            energy = self.comparison.autoencoder or self.ebm.energy
            kind = type(energy.build(2, on_sphere=self.ebm.on_sphere, seed=0))
            if kind.pretraining_loss is LearnedEnergy.pretraining_loss:
                raise ValueError(
                    "comparison.autoencoder must be given for the method `plain`: "
                    f"{type(energy).__name__} has no loss"
                )

    def to_yaml(self) -> str:
        """The text of its file, every default included."""
        return as_yaml(self)

    @property
    def folder(self) -> Path:
        """The experiment's folder."""
        return self.output / self.data.name

    @property
    def parts(self) -> tuple[str, ...]:
        """What is trained on, one after the other."""
        return self.data.parts if self.part is None else (self.part,)

    @property
    def all_seeds(self) -> range:
        """The seeds."""
        return range(self.seed, self.seed + self.seeds)


def detector_parser(**options: Any) -> ConfigParser:
    """The parser of experiments; scripts add their own options to it."""
    return make_parser(DetectorConfig, **options)


def parse_detector(arguments: Sequence[str], parser: ConfigParser | None = None) -> Namespace:
    """Parses a command line; :func:`config_of` takes the experiment among the options.

    Raises:
        ConfigError: naming the field, the value and what was expected.
    """
    parser = parser or detector_parser()
    return parse(parser, given(parser, arguments))


def detector_config(
    content: Mapping[str, Any], *, source: str, trust: Trust = False
) -> DetectorConfig:
    """The experiment of a mapping, such as a file holds it.

    Args:
        content: fields.
        source: the file, for messages.
        trust: the user's word for what the file names (:mod:`vgs_rl.trust`).

    Raises:
        ConfigError: naming the source, the field, the value and what was expected.
    """
    checked = checked_content(dict(content), DetectorConfig, source=source, trust=trust)
    try:
        return config_of(parse_content(DetectorConfig, checked))
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error


def named_detector(name: str, *, trust: Trust = False) -> DetectorConfig:
    """A shipped configuration of a detector, or that of a YAML file.

    Raises:
        ConfigError: naming the file, the field, the value and what was expected.
    """
    file = config_file(name, "detector")
    return detector_config(read_yaml(file), source=f"config {file}", trust=trust)


def saved_config(path: Path, trust: Trust, device: str | None = None) -> DetectorConfig:
    """The configuration that a folder of an experiment, or of one of its runs, holds.

    Args:
        path: the folder.
        trust: the user's word for what the configuration names.
        device: another one than the folder's.

    Raises:
        ConfigError: naming the file, the field, the value and what was expected.
    """
    file = path / "config.yaml"
    content = read_yaml(file) | ({} if device is None else {"device": device})
    return detector_config(content, source=f"config {file}", trust=trust)


def config_of(options: Namespace) -> DetectorConfig:
    """The experiment among parsed options."""
    try:
        return DetectorConfig(**{each.name: options[each.name] for each in fields(DetectorConfig)})
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
