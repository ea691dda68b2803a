"""Installs the built wheel into an empty folder, runs its command elsewhere, type-checks it.

python scripts/check_wheel.py DIST
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from vgs_rl.experiments.cli import Mistake, Parser, command

IMPORTS = """
import vgs_rl, vgs_rl.envs, vgs_rl.envs.anomaly, vgs_rl.agents, gymnasium
assert "site" in vgs_rl.__file__ and "site" in vgs_rl.envs.__file__, vgs_rl.__file__
assert gymnasium.make_vec("vgs_rl/GMM9-v0", num_envs=2).reset(seed=0)[0].shape == (2, 3)
"""
COMMANDS = ("--version", "list", "train gmm9 --print_config", "completion bash")


@command
def main(arguments: list[str]) -> int:
    """Fails with the status of the first command that fails."""
    parser = Parser(__doc__, "check_wheel")
    parser.add_argument("dist", type=Path, help="folder with one wheel")
    dist = parser.read(arguments).dist
    if len(wheels := list(dist.glob("*.whl"))) != 1:
        raise Mistake(f"{dist} must hold one wheel, got {len(wheels)}")
    with tempfile.TemporaryDirectory() as temporary:
        site, elsewhere = Path(temporary, "site"), Path(temporary, "elsewhere")
        # A user's project that has its own envs/ and agents/ must not get in the way.
        for name in ("envs", "agents"):
            (elsewhere / name).mkdir(parents=True)
            wrong = "raise ImportError('the wrong package')"
            (elsewhere / name / "__init__.py").write_text(wrong, encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install"]
        run([*pip, "--no-deps", "--target", str(site), str(wheels[0].resolve())])
        environment = {"PYTHONPATH": str(site)}
        run([sys.executable, "-c", IMPORTS], elsewhere, environment)
        for line in COMMANDS:
            run([str(site / "bin" / "vgs-rl"), *line.split()], elsewhere, environment)
        mypy = [sys.executable, "-m", "mypy", f"--config-file={Path('pyproject.toml').resolve()}"]
        checked = [str(site / name) for name in ("vgs_rl", "vgs_rl_main.py")]
        run([*mypy, *checked], elsewhere, environment)
    print("the wheel installs, runs and type-checks")
    return 0


def run(command: list[str], folder: Path | None = None, more: dict[str, str] | None = None) -> None:
    """Runs a command with more in its environment; exits with its status if it fails."""
    environment = {**os.environ, **(more or {})}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout, done.stderr)
        sys.exit(done.returncode)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
