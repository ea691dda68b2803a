"""Where the configurations are that ship with the package."""

from importlib import resources
from pathlib import Path

CONFIGS = Path(str(resources.files("vgs_rl.configs")))
