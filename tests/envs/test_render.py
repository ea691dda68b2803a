"""Frames of the environments: what they show, and that films come out as libraries document."""

import itertools
import math
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from vgs_rl import Energy, registered
from vgs_rl.ebm.energies import MLPEnergy
from vgs_rl.envs import (
    GMM9,
    Gaussian,
    SamplingEnv,
    SamplingVectorEnv,
)
from vgs_rl.envs.episodes import NoEpisode
from vgs_rl.envs.frames import HEADER, SAMPLER, SIDE
from vgs_rl.envs.render import Renderer

IDS = [id for id in registered() if id.startswith("vgs_rl/")]
ORANGE = SAMPLER.astype(np.uint8)


def zeros(env):
    return np.zeros(env.action_space.shape, np.float32)


def is_frame(frame, side=SIDE):
    return frame.shape == (side, side, 3) and frame.dtype == np.uint8


def orange(frame):
    """Where the states are, below the header."""
    return (frame[HEADER:] == ORANGE).all(-1)


@pytest.mark.parametrize("id", IDS)
def test_every_id_draws_frames_of_one_size_that_change_with_the_states(id):
    env = gymnasium.make(id, render_mode="rgb_array", num_steps=3)
    env.reset(seed=0)
    frames = [env.render()]
    for _ in range(3):
        env.step(zeros(env))
        frames.append(env.render())
    assert all(is_frame(frame) for frame in frames)
    assert all((a != b).any() for a, b in itertools.pairwise(frames))
    assert (frames[-1][HEADER - 2] == ORANGE).all()  # the bar is full
    envs = gymnasium.make_vec(id, num_envs=3, render_mode="rgb_array", num_steps=3)
    envs.reset(seed=0)
    one, each = envs.unwrapped.picture(), envs.render()
    assert is_frame(one) and len(each) == 3 and all(is_frame(frame, 240) for frame in each)
    assert (each[0] != each[1]).any()


@pytest.mark.parametrize("id", ["vgs_rl/GMM9-v0", "vgs_rl/LJ13-v0", "vgs_rl/EBMDigits-v0"])
def test_gymnasiums_check_passes_with_its_render_check(id):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(gymnasium.make(id).unwrapped)


def test_states_are_drawn_where_they_are():
    env = SamplingVectorEnv(GMM9(), num_envs=1, render_mode="rgb_array")
    env.reset(seed=0)
    renderer = Renderer(env.mdp)
    means = env.mdp.energy.means.float()
    alone = renderer.picture(means[:1], 0)
    base = renderer._scene.base
    for k in range(len(means)):
        frame = renderer.picture(means[k : k + 1], 0)
        rows, columns = np.nonzero(orange(frame))
        centre = np.array([columns.mean(), rows.mean()])
        np.testing.assert_allclose(
            centre, renderer._scene.pixels(means[k : k + 1].numpy())[0], atol=1
        )
        row, column = round(centre[1]), round(centre[0])
        assert base[row, column].astype(int).sum() < 3 * 200  # the density is darkest there
    far = renderer.picture(torch.tensor([[1e9, math.nan]]), 0)
    assert not orange(far).any() and orange(alone).any()


def test_contours_are_those_of_the_exact_value_or_of_the_given_one():
    env = SamplingEnv(GMM9(), num_steps=4, render_mode="rgb_array")
    env.reset(seed=0)
    exact = env.render()
    env.value = lambda x, t: 0.0 * x[:, 0]
    flat = env.render()
    assert (exact != flat).any()
    env.value = lambda x, t: GMM9().value(x, t, env.mdp.chain)
    np.testing.assert_array_equal(env.render(), exact)
    hot = SamplingEnv(GMM9(), render_mode="rgb_array")
    hot.mdp.temperature = 2.0  # exact values are those of temperature 1
    hot.reset(seed=0)
    hot.render()
    assert not hot._renderer._scene.known


def test_one_coordinate_is_a_histogram_over_the_density():
    env = SamplingVectorEnv(Gaussian((1.0,), (0.5,)), num_envs=500, render_mode="rgb_array")
    env.reset(seed=0)
    renderer = Renderer(env.mdp)
    x = env.mdp.energy.sample(4000, env.mdp.generator(0))
    frame = renderer.picture(x, env.mdp.num_steps)
    rows, columns = np.nonzero(orange(frame))
    scene = renderer._scene
    mode = scene.pixels(np.array([[1.0, scene.density.max()]]))[0]
    highest = columns[rows == rows.min()].mean()
    assert abs(highest - mode[0]) < 40 and abs(rows.min() - mode[1]) < 40


class Line(Energy):
    dim = 1

    def energy(self, x):
        return 0.5 * x[:, 0].square()


def test_drawing_counts_no_energies_and_touches_no_random_state():
    before = torch.get_rng_state()
    for energy in (Line(), GMM9(), Gaussian((0.0,) * 3, (1.0,) * 3)):
        plain, drawn = (
            SamplingVectorEnv(energy, num_envs=4, num_steps=3, render_mode="rgb_array")
            for _ in range(2)
        )
        for env in (plain, drawn):
            env.reset(seed=0)
        for _ in range(3):
            drawn.render(), drawn.picture()
            actions = zeros(drawn)
            np.testing.assert_array_equal(plain.step(actions)[0], drawn.step(actions)[0])
        assert plain.mdp.energy_evaluations == drawn.mdp.energy_evaluations == 4
    assert torch.equal(before, torch.get_rng_state())


def test_the_background_follows_a_learned_energy():
    energy = MLPEnergy(2, hidden=(8,))
    env = SamplingEnv(energy, render_mode="rgb_array")
    env.reset(seed=0)
    first = env.render()
    np.testing.assert_array_equal(env.render(), first)
    with torch.no_grad():
        for parameter in energy.parameters():
            parameter.mul_(-3.0)
    assert (env.render() != first).any()


def test_modes_that_cannot_be_drawn_are_refused_and_no_mode_draws_nothing():
    for make in (SamplingEnv, SamplingVectorEnv):
        with pytest.raises(ValueError, match="render_mode must be None or 'rgb_array', got 'ansi'"):
            make(GMM9(), render_mode="ansi")
        env = make(GMM9())
        env.reset(seed=0)
        with pytest.warns(UserWarning, match="make the environment with render_mode='rgb_array'"):
            assert env.render() is None
        with pytest.raises(NoEpisode, match="render needs a reset first"):
            make(GMM9(), render_mode="rgb_array").render()
    frames = gymnasium.make("vgs_rl/GMM9-v0", render_mode="rgb_array_list")
    frames.reset(seed=0)
    frames.step(zeros(frames))
    assert len(frames.render()) == 2


def test_a_frame_takes_no_new_figure(monkeypatch):
    env = SamplingEnv(GMM9(), render_mode="rgb_array", num_steps=3)
    for _ in range(2):  # backgrounds and letters are drawn once
        env.reset(seed=0)
        frames = [env.render()]
        for _ in range(3):
            env.step(zeros(env))
            frames.append(env.render())
        monkeypatch.setattr("vgs_rl.envs.frames.Figure", None)
    assert len(frames) == 4 and all(is_frame(frame) for frame in frames)


def test_gymnasium_records_films(tmp_path):
    env = gymnasium.make("vgs_rl/GMM9-v0", render_mode="rgb_array", num_steps=3)
    env = gymnasium.wrappers.RecordVideo(env, str(tmp_path))
    env.reset(seed=0)
    for _ in range(3):
        env.step(zeros(env))
    env.close()
    assert list(tmp_path.glob("*.mp4"))


@pytest.mark.skipif(
    not hasattr(gymnasium.wrappers.vector, "RecordVideo"), reason="gymnasium 1.1 has none"
)
@pytest.mark.parametrize("vector", ["vector_entry_point", "sync"])
def test_gymnasiums_vector_recorder_gets_a_frame_for_each_environment(
    vector, tmp_path, monkeypatch
):
    recorder = gymnasium.wrappers.vector.RecordVideo
    envs = gymnasium.make_vec(
        "vgs_rl/GMM9-v0", 4, vectorization_mode=vector, render_mode="rgb_array", num_steps=2
    )
    monkeypatch.setattr(recorder, "stop_recording", lambda self: None)
    envs = recorder(envs, str(tmp_path), video_length=3, episode_trigger=lambda episode: True)
    envs.reset(seed=0)
    envs.step(zeros(envs))
    side = 480 if vector == "vector_entry_point" else 960
    assert [frame.shape for frame in envs.recorded_frames] == [(side, side, 3)] * 2
    envs.recorded_frames.clear()
