"""The film of a chain: a GIF that repeats, ends on the target and leaves the MDP as it was."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from vgs_rl.envs.targets.gaussian import GMM9, Gaussian
from vgs_rl.mdp import MDPConfig, SamplingMDP
from vgs_rl.networks.base import ExactValue
from vgs_rl.networks.policies import ValueGradientPolicy
from vgs_rl.plots.animation import FilmConfig, write_film

TINY = FilmConfig(states=40, frames_per_step=2, pixels=96, grid=24, elbo_paths=50, pause=1.0)


def film(path: Path, mdp: SamplingMDP, config: FilmConfig = TINY) -> None:
    value = ExactValue(mdp.energy, mdp.chain)
    policy = ValueGradientPolicy(mdp, value, "posterior")
    write_film(path, mdp, policy, value.value, mdp.generator(0), title="nine", config=config)


def test_a_film_repeats_pauses_at_its_end_and_shows_the_target_last(tmp_path: Path) -> None:
    mdp = SamplingMDP(GMM9(), MDPConfig(num_steps=3))
    before, path = mdp.energy_evaluations, tmp_path / "film.gif"
    film(path, mdp)
    assert mdp.energy_evaluations == before
    with Image.open(path) as gif:
        assert gif.n_frames == 2 * 3 + 1 + 4 and gif.info["loop"] == 0
        assert gif.width == 96 and gif.format == "GIF"
        first, durations = gif.convert("L").crop((0, 12, 96, 100)), []
        for index in range(gif.n_frames):
            gif.seek(index)
            durations.append(gif.info["duration"])
        last = gif.convert("L").crop((0, 12, 96, 100))
    assert durations[-1] >= durations[0] + 1000 and len(set(durations[:-1])) == 1
    light = [torch.tensor(list(image.tobytes())).double().mean() for image in (first, last)]
    assert light[1] > light[0]  # around the target's modes the value is high, which is light


def test_the_same_seed_writes_the_same_film(tmp_path: Path) -> None:
    for name in ("a.gif", "b.gif"):
        film(tmp_path / name, SamplingMDP(GMM9(), MDPConfig(num_steps=2)))
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()


def test_wrong_requests_are_refused_by_name(tmp_path: Path) -> None:
    mdp = SamplingMDP(GMM9(), MDPConfig(num_steps=2))
    with pytest.raises(ValueError, match=r"path must end with \.gif, got .*film\.mp4"):
        film(tmp_path / "film.mp4", mdp)
    line = SamplingMDP(Gaussian((0.0,), (1.0,)), MDPConfig(num_steps=2))
    with pytest.raises(ValueError, match="needs a target on the plane, got 1 coordinates"):
        film(tmp_path / "film.gif", line)
    with pytest.raises(ValueError, match="colours must be in 8 to 256, got 500"):
        FilmConfig(colours=500)
    assert list(tmp_path.iterdir()) == []
