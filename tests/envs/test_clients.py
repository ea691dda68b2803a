"""Other libraries see whole episodes, each through the autoreset mode that it needs."""

import gymnasium
import numpy as np
import pytest
import torch
from libraries import run_guides_snippet

import vgs_rl.envs  # noqa: F401  registers the ids
from vgs_rl.evaluation.report import Report

ID, STEPS = "vgs_rl/GMM9-v0", 20


def played(envs, steps=2 * STEPS + 1):
    """Episode lengths and returns that RecordEpisodeStatistics sees, and those that it should."""
    envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(envs)
    envs.reset(seed=0)
    envs.action_space.seed(0)
    returns, lengths, expected = [], [], []
    total = np.zeros(envs.num_envs)
    for _ in range(steps):
        action = 0.01 * envs.action_space.sample()
        _, reward, terminated, truncated, info = envs.step(action)
        total += reward
        done = terminated | truncated
        if done.any():
            returns += info["episode"]["r"][done].tolist()
            lengths += info["episode"]["l"][done].tolist()
            expected += total[done].tolist()
            total[done] = 0.0
    return lengths, returns, expected


@pytest.mark.parametrize("kind", ["ours", "sync"])
def test_recorded_episodes_are_whole_in_gymnasiums_default_mode(kind):
    mode = {"vectorization_mode": "sync"} if kind == "sync" else {}
    lengths, returns, expected = played(gymnasium.make_vec(ID, num_envs=3, **mode))
    assert lengths == [STEPS] * 6
    np.testing.assert_allclose(returns, expected, rtol=1e-5)


def test_single_environments_record_whole_episodes():
    env = gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make(ID))
    env.reset(seed=0)
    total, terminated = 0.0, False
    while not terminated:
        _, reward, terminated, truncated, info = env.step(np.zeros(2, np.float32))
        total += reward
        assert not truncated
    assert info["episode"]["l"] == STEPS and info["episode"]["r"] == pytest.approx(total)


@pytest.mark.parametrize("wrapper", ["NormalizeObservation", "FlattenObservation"])
def test_vector_observation_wrappers_take_the_default_mode(wrapper):
    kind = getattr(gymnasium.wrappers.vector, wrapper)
    assert played(kind(gymnasium.make_vec(ID, num_envs=3)))[0] == [STEPS] * 6


def test_cleanrl_style_ppo_collects_whole_episodes():
    """The loop of CleanRL's ppo_continuous_action.py: SyncVectorEnv of wrapped environments."""

    def make():
        env = gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make(ID))
        env = gymnasium.wrappers.ClipAction(gymnasium.wrappers.FlattenObservation(env))
        return gymnasium.wrappers.NormalizeReward(env, gamma=1.0)

    envs = gymnasium.vector.SyncVectorEnv([make] * 2)
    envs.reset(seed=0)
    lengths = []
    for _ in range(2 * STEPS + 2):
        action = np.random.default_rng(0).normal(size=(2, 2)).astype(np.float32)
        *_, info = envs.step(action)
        if "episode" in info:
            lengths += info["episode"]["l"][info["_episode"]].tolist()
    assert lengths == [STEPS] * 4


def test_stable_baselines3_logs_returns_of_whole_episodes():
    pytest.importorskip("stable_baselines3")
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecMonitor

    from vgs_rl.agents.rl.sb3_env import SB3VecEnv

    ours = SB3VecEnv(gymnasium.make_vec(ID, num_envs=4, autoreset_mode="SAME_STEP"))
    for env in (VecMonitor(ours), make_vec_env(ID, 4)):
        model = PPO("MlpPolicy", env, n_steps=STEPS, batch_size=16, n_epochs=1, device="cpu")
        model.learn(2 * 4 * STEPS)
        assert [episode["l"] for episode in model.ep_info_buffer] == [STEPS] * 8
    model = PPO("MlpPolicy", ID, n_steps=STEPS, batch_size=20, n_epochs=1, device="cpu")
    model.learn(STEPS)
    assert model.ep_info_buffer[0]["l"] == STEPS


def test_tianshou_collects_whole_episodes_from_its_own_vector_environments():
    pytest.importorskip("tianshou")
    from tianshou.algorithm.algorithm_base import RandomActionPolicy
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv

    from vgs_rl.agents.rl.tianshou_env import TianshouVectorEnv

    ours = TianshouVectorEnv(gymnasium.make_vec(ID, num_envs=4, autoreset_mode="DISABLED"))
    for env in (ours, DummyVectorEnv([lambda: gymnasium.make(ID)] * 4)):
        space = env.action_space
        policy = RandomActionPolicy(space[0] if isinstance(space, list) else space)
        collector = Collector(policy, env, VectorReplayBuffer(400, 4))
        collector.reset()
        stats = collector.collect(n_episode=8)
        assert stats.lens.tolist() == [STEPS] * 8


@pytest.mark.parametrize("mode", ["SAME_STEP", "DISABLED"])
def test_torchrl_sees_terminal_states_in_the_modes_that_it_takes(mode):
    pytest.importorskip("torchrl")
    from torchrl.envs import GymWrapper

    envs = gymnasium.make_vec(ID, num_envs=3, autoreset_mode=mode)
    rollout = GymWrapper(envs).rollout(2 * STEPS + 5, break_when_any_done=False)
    done = rollout["next", "done"].squeeze(-1)
    assert done.nonzero()[:, 1].tolist() == [STEPS - 1, 2 * STEPS - 1] * 3
    assert torch.all(rollout["next", "observation"][done][:, -1] == 1.0)  # t = T, before the reset
    with pytest.raises(RuntimeError, match="NEXT_STEP"):
        GymWrapper(gymnasium.make_vec(ID, num_envs=3))


def test_torchrl_takes_single_environments():
    pytest.importorskip("torchrl")
    from torchrl.envs import GymEnv

    assert GymEnv(ID).rollout(100).shape == (STEPS,)


def test_rllibs_vector_entry_point_sees_whole_episodes():
    """RLlib makes its environments by `make_vec` with Gymnasium's own vectorisation modes."""
    pytest.importorskip("ray.rllib", reason="RLlib pins an older Gymnasium than constraints.txt")
    from ray.rllib.algorithms.ppo import PPOConfig

    config = (
        PPOConfig()
        .environment(ID)
        .env_runners(
            num_env_runners=0, num_envs_per_env_runner=2, rollout_fragment_length=2 * STEPS
        )
        .training(train_batch_size=4 * STEPS, minibatch_size=2 * STEPS, num_epochs=1)
    )
    algorithm = config.build_algo()
    assert algorithm.train()["env_runners"]["episode_len_mean"] == STEPS
    algorithm.stop()


def test_a_guide_shows_how_to_evaluate_an_agent_of_any_origin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_guides_snippet('agent_name="cleanrl-ppo"')
    report = Report.load(tmp_path / "cleanrl-ppo.json")
    assert (report.target, report.agent, report.env_steps) == ("GMM9", "cleanrl-ppo", 1_000_000)
    assert report.metrics["elbo"].value < 0
