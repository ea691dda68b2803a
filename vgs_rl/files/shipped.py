"""The configurations that ship with the package: where they are and what each is of."""

from importlib import resources
from pathlib import Path
from typing import Literal

from vgs_rl.files.yaml_text import read_mapping

CONFIGS = Path(str(resources.files("vgs_rl.configs")))

Kind = Literal["run", "detector"]


def shipped_configs(kind: Kind | None = None) -> list[str]:
    """Names of the shipped configurations, such as `gmm9` and `paper/gmm9`.

    Args:
        kind: `run` of an agent or `detector` of anomalies; by default all files, also those that
            hold other settings.
    """
    files = (file for file in CONFIGS.rglob("*.yaml") if kind is None or kind_of(file) == kind)
    return sorted(file.relative_to(CONFIGS).with_suffix("").as_posix() for file in files)


def kind_of(file: Path) -> Kind | None:
    """What a file configures; None if it is no experiment's.

    Raises:
        YamlError: if it cannot be read.
    """
    content = read_mapping(file)
    if "ebm" in content or "data" in content:
        return "detector"
    return "run" if "env" in content or "agent" in content else None
