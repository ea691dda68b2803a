"""Installs the built wheel into a folder of its own, type-checks it and imports it elsewhere.

python scripts/check_wheel.py DIST
"""

from __future__ import annotations

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


@command
def main(arguments: list[str]) -> int:
    """Fails with the status of the first command that fails."""
    parser = Parser(__doc__)
    parser.add_argument("dist", type=Path, help="folder with one wheel")
    dist = parser.read(arguments).dist
    wheels = list(dist.glob("*.whl"))
    if len(wheels) != 1:
        raise Mistake(f"{dist} must hold one wheel, got {len(wheels)}")
    (wheel,) = wheels
    with tempfile.TemporaryDirectory() as temporary:
        site, elsewhere = Path(temporary, "site"), Path(temporary, "elsewhere")
        # A user's project that has its own envs/ and agents/ must not get in the way.
        for name in ("envs", "agents"):
            (elsewhere / name).mkdir(parents=True)
            (elsewhere / name / "__init__.py").write_text(
                "raise ImportError('the wrong package')", encoding="utf-8"
            )
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install"]
        run([*pip, "--no-deps", "--target", str(site), str(wheel.resolve())])
        environment = {"PYTHONPATH": str(site)}
        run([sys.executable, "-c", IMPORTS], elsewhere, environment)
        config = Path("pyproject.toml").resolve()
        run(
            [sys.executable, "-m", "mypy", "--config-file", str(config), str(site / "vgs_rl")],
            elsewhere,
            environment,
        )
    print("the wheel installs, imports and type-checks")
    return 0


def run(
    command: list[str], folder: Path | None = None, environment: dict[str, str] | None = None
) -> None:
    """Runs a command; exits with its status if it fails."""
    import os

    done = subprocess.run(command, cwd=folder, env={**os.environ, **(environment or {})})
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
