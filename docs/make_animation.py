"""Writes the film of the README's first screen from a trained run.

python scripts/train.py --config configs/gmm9.yaml
python docs/make_animation.py --run runs/GMM9/vgs/0 --output docs/particles.gif
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vgs_rl.agents import ValueGradientAgent
from vgs_rl.experiments.run import open_run
from vgs_rl.plots.animation import FilmConfig, write_film
from vgs_rl.registry import find


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, loads the run and writes the film."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="run folder of a trained vgs agent")
    parser.add_argument("--output", type=Path, default=Path("particles.gif"), help="the GIF")
    parser.add_argument("--seed", type=int, default=0, help="seed of the paths that are shown")
    for name in ("states", "frames_per_step", "pixels", "colours", "elbo_paths"):
        option, default = "--" + name.replace("_", "-"), getattr(FilmConfig, name)
        parser.add_argument(option, type=int, default=default, help=f"default {default}")
    given = parser.parse_args(arguments)
    try:
        film = FilmConfig(
            states=given.states,
            frames_per_step=given.frames_per_step,
            pixels=given.pixels,
            colours=given.colours,
            elbo_paths=given.elbo_paths,
        )
        config, agent = open_run(given.run)
        if not isinstance(agent, ValueGradientAgent):
            raise ValueError(
                f"--run must hold an agent with a value, {given.run} holds {config.agent.name}"
            )
        value, generator = agent.average.value, agent.mdp.generator(given.seed)
        title = find(config.env).name
        write_film(
            given.output, agent.mdp, agent.policy, value, generator, title=title, config=film
        )
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{given.output}: {given.output.stat().st_size / 2**20:.1f} MiB", file=sys.stderr)


if __name__ == "__main__":
    main()
