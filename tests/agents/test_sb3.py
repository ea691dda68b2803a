"""Stable-Baselines3's agents and the adapter to it."""

import math
import time
import warnings

import gymnasium
import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3", reason="needs the extra sb3")

import stable_baselines3 as sb3
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from libraries import (
    QUIET,
    check_counters,
    check_resume_is_bit_identical,
    check_the_users_random_states_stay_untouched,
    check_weights_are_unbiased,
    small_agent,
    small_config,
    small_mdp,
)
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecMonitor, VecVideoRecorder

from vgs_rl import ChainSampler, find, registered
from vgs_rl.agents.rl.sb3 import SB3Config, sb3_policy
from vgs_rl.agents.rl.sb3_env import SB3VecEnv
from vgs_rl.envs import DW4, SamplingVectorEnv
from vgs_rl.training.config import BudgetConfig

ALGORITHMS = ("PPO", "A2C", "SAC", "TD3", "DDPG")
MODES = [(a, "environment") for a in ALGORITHMS] + [(a, "policy") for a in ("PPO", "A2C", "SAC")]


@pytest.mark.parametrize("options", [{}, {"noise": False}, {"features": ("x", "t", "score")}])
def test_the_single_environment_passes_both_checks(options):
    env = gymnasium.make("vgs_rl/GMM9-v0", **options).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env)
        gymnasium_check_env(env, skip_render_check=True)


@pytest.mark.parametrize(("algorithm", "policy_noise"), MODES)
def test_weights_are_unbiased_for_z(algorithm, policy_noise):
    check_weights_are_unbiased(SB3Config, algorithm, policy_noise)


@pytest.mark.parametrize("algorithm", ["PPO", "SAC", "TD3"])
def test_resumed_training_is_bit_identical(algorithm, tmp_path):
    check_resume_is_bit_identical(SB3Config, algorithm, tmp_path)


def test_resumed_training_is_bit_identical_amid_random_actions_and_a_full_buffer(tmp_path):
    options = {"learning_starts": 100, "buffer_size": 64, "policy_noise": "policy"}
    check_resume_is_bit_identical(SB3Config, "SAC", tmp_path, **options)


@pytest.mark.parametrize("algorithm", ["PPO", "SAC", "TD3"])
def test_the_users_random_states_stay_untouched(algorithm):
    check_the_users_random_states_stay_untouched(SB3Config, algorithm)


def test_counters_are_exact():
    check_counters(SB3Config, "PPO", steps_per_update=4)
    check_counters(SB3Config, "TD3", steps_per_update=1)
    check_counters(SB3Config, "PPO", 4, features=("x", "t", "energy"), per_state=1)


@pytest.mark.parametrize("policy_noise", ["environment", "policy"])
@pytest.mark.parametrize("algorithm", ["PPO", "SAC"])
def test_the_untrained_agent_is_almost_the_uncontrolled_chain(algorithm, policy_noise):
    agent = small_agent(SB3Config, algorithm, policy_noise=policy_noise)
    nothing = ChainSampler(agent.mdp, lambda x, t: torch.zeros_like(x))
    expected = float(nothing.sample(4000, 1).log_weight.mean())
    assert agent.sampler().sample(4000, 1).log_weight.mean() == pytest.approx(expected, abs=0.4)


@pytest.mark.parametrize("policy_noise", ["environment", "policy"])
def test_ppo_improves_the_elbo(policy_noise):
    mdp = small_mdp(scale=2.5)
    agent = small_agent(
        SB3Config,
        mdp=mdp,
        policy_noise=policy_noise,
        num_envs=128,
        batch_size=128,
        lr=3e-3,
        hidden=(32, 32),
        epochs=5,
    )
    before = float(agent.sampler().sample(4000, 1).log_weight.mean())
    agent.learn(BudgetConfig(updates=40), **QUIET)
    after = float(agent.sampler().sample(4000, 1).log_weight.mean())
    assert before + 0.3 < after < mdp.energy.log_z


def test_the_first_gradient_is_that_of_return_plus_entropy():
    """PPO with the entropy in its rewards: the advantages' targets are tau (log-ratios to go)."""
    agent = small_agent(SB3Config, policy_noise="policy", gae_lambda=1.0, reward_scale=0.5)
    model = agent.model
    with agent.randomness.active():
        model.collect_rollouts(model.env, agent._callback, model.rollout_buffer, model.n_steps)
    buffer = model.rollout_buffer
    x_0 = torch.from_numpy(buffer.observations[0, :, :2].copy())
    kernel = agent.policy()
    with torch.no_grad():  # log w + log pi_0 of the same paths
        total = torch.zeros(16)
        x = x_0
        for t in range(4):
            v = torch.from_numpy(buffer.actions[t].copy())
            step = agent.mdp._pushed(
                type(agent.mdp.reset(1, agent.generator))(x, t), v, kernel.log_density(v, x, t)
            )
            x, total = step.state.x, total + step.log_ratio
        total = total - agent.mdp.energy.energy(x)
    np.testing.assert_allclose(buffer.returns[0], 0.5 * total, rtol=1e-3, atol=1e-3)


def test_saved_models_reload_and_sample_identically(tmp_path):
    for algorithm in ("PPO", "SAC", "TD3"):
        agent = small_agent(SB3Config, algorithm)
        agent.learn(BudgetConfig(updates=2), **QUIET)
        agent.model.save(tmp_path / "model.zip")
        loaded = getattr(sb3, algorithm).load(tmp_path / "model.zip", device="cpu")
        sampler = ChainSampler(agent.mdp, sb3_policy(loaded, agent.mdp))
        one, other = agent.sampler().sample(100, 1), sampler.sample(100, 1)
        assert torch.equal(one.x, other.x) and torch.equal(one.log_weight, other.log_weight)


def test_the_sampling_policy_is_the_librarys_own_deterministic_action():
    for algorithm in ALGORITHMS:
        agent = small_agent(SB3Config, algorithm, action_bound=0.05)
        agent.learn(BudgetConfig(updates=2), **QUIET)
        observation = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
        observation[:, 2] = 0.5
        action, _ = agent.model.predict(observation, deterministic=True)
        with torch.no_grad():
            control = agent.policy()(torch.from_numpy(observation[:, :2].copy()), 2)
        np.testing.assert_allclose(control, action, atol=1e-6)


def test_a_budget_of_environment_steps_and_the_clipped_fraction(tmp_path):
    agent = small_agent(SB3Config, action_bound=0.5, initial_std=0.5)
    scalars = []
    real = agent._train_step
    agent._train_step = lambda: scalars.append(real()) or scalars[-1]
    agent.learn(BudgetConfig(env_steps=200), **QUIET)
    assert agent.counters.env_steps == 256 and agent.counters.updates == 4
    clipped = float(scalars[0]["rollout/clipped_fraction"])
    assert clipped == pytest.approx(0.317, abs=0.1)  # two-sided, at one standard deviation
    assert {"rollout/return", "rollout/elbo", "train/loss"} <= scalars[0].keys()


def test_particles_train_and_keep_their_centre_of_mass():
    mdp = small_mdp(DW4(), num_steps=3)
    agent = small_agent(SB3Config, mdp=mdp, reward_scale=0.1)
    agent.learn(BudgetConfig(updates=2), **QUIET)
    samples = agent.sampler().sample(50, 0)
    centre = samples.x.view(50, 4, 2).mean(1)
    torch.testing.assert_close(centre, torch.zeros(50, 2), atol=1e-5, rtol=0)
    assert torch.isfinite(samples.log_weight).all()
    with pytest.raises(ValueError, match="policy_noise 'policy' needs a Euclidean geometry"):
        small_agent(SB3Config, mdp=mdp, policy_noise="policy")


@pytest.mark.parametrize(
    ("algorithm", "options", "message"),
    [
        ("TD3", {"policy_noise": "policy"}, "a deterministic policy cannot be the kernel"),
        ("PPO", {"policy_noise": "policy", "ent_coef": 0.1}, "agent.ent_coef must be left out"),
        ("PPO", {"gamma": 1.5}, r"agent.gamma must be in \[0, 1\], got 1.5"),
        ("PPO", {"num_envs": 0}, "agent.num_envs must be at least 1, got 0"),
        ("SAC", {"buffer_size": 3}, "agent.buffer_size must be at least 16, got 3"),
        ("SAC", {"action_bound": -1.0}, "agent.action_bound must be a positive number, got -1.0"),
    ],
)
def test_contradictory_options_are_refused_by_name(algorithm, options, message):
    with pytest.raises(ValueError, match=message):
        small_config(SB3Config, algorithm, **options)


def test_names_tell_library_algorithm_and_noise():
    assert SB3Config().name == "sb3-ppo"
    assert SB3Config(algorithm="SAC", policy_noise="policy").name == "sb3-sac-kernel"


# --- the adapter --------------------------------------------------------------------------------


def test_the_adapter_passes_on_what_the_environment_does():
    mdp = small_mdp()
    env = SB3VecEnv(SamplingVectorEnv(mdp, num_envs=3), reward_scale=2.0)
    raw = SamplingVectorEnv(mdp, num_envs=3, autoreset_mode="SAME_STEP")
    env.seed(5)
    np.testing.assert_array_equal(env.reset(), raw.reset(seed=5)[0])
    actions = np.random.default_rng(0).normal(size=(8, 3, 2)).astype(np.float32)
    for action in actions:
        observation, rewards, dones, infos = env.step(action)
        expected, reward, ended, _, raw_infos = raw.step(action)
        np.testing.assert_array_equal(observation, expected)
        np.testing.assert_allclose(rewards, 2 * reward, rtol=1e-6)
        np.testing.assert_array_equal(dones, ended)
        assert rewards.dtype == np.float32 and len(infos) == 3
        for i, info in enumerate(infos):
            assert bool(info) == ended[i]
            if ended[i]:
                np.testing.assert_array_equal(
                    info["terminal_observation"], raw_infos["final_obs"][i]
                )
                assert info["log_weight"] == raw_infos["log_weight"][i]
                assert info["TimeLimit.truncated"] is False
    metrics = env.adapter.statistics.pop(2.0)
    assert metrics["clipped_fraction"] == 0.0 and metrics["return"] < 0


def test_the_adapter_goes_under_sb3s_own_wrappers():
    env = VecMonitor(SB3VecEnv(SamplingVectorEnv(small_mdp(), num_envs=4)))
    model = sb3.PPO("MlpPolicy", env, n_steps=4, batch_size=16, n_epochs=1).learn(32)
    assert model.ep_info_buffer[0]["l"] == 4
    assert env.get_attr("num_envs") == [4] * 4 and env.env_is_wrapped(VecMonitor) == [False] * 4
    env.close()


@pytest.mark.parametrize("algorithm", [sb3.SAC, sb3.TD3])
def test_off_policy_learning_stays_finite_on_the_default_action_bound(algorithm):
    env = SB3VecEnv(gymnasium.make_vec("vgs_rl/Funnel10-v0", num_envs=4))
    options = {"policy_kwargs": {"net_arch": [16]}, "batch_size": 32, "train_freq": 4, "gamma": 1.0}
    model = algorithm("MlpPolicy", env, seed=0, **options)
    model.learn(4 * 400)
    assert model._n_updates > 70
    assert all(bool(p.isfinite().all()) for p in model.policy.parameters())
    assert all(math.isfinite(value) for value in model.logger.name_to_value.values())


def test_the_adapter_asks_for_the_mode_it_needs_and_refuses_what_it_cannot_change():
    envs = gymnasium.make_vec("vgs_rl/GMM9-v0", num_envs=2)
    SB3VecEnv(envs)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    with pytest.raises(ValueError, match="must be SAME_STEP, got DISABLED; make .*='SAME_STEP'"):
        SB3VecEnv(SamplingVectorEnv(small_mdp(), autoreset_mode="DISABLED"))
    with pytest.raises(ValueError, match="must be SAME_STEP, got NEXT_STEP; make"):
        SB3VecEnv(RecordEpisodeStatistics(SamplingVectorEnv(small_mdp())))


def test_the_adapter_over_gymnasiums_own_vector_environment_gives_the_same_metrics():
    mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
    env = SB3VecEnv(
        gymnasium.make_vec(
            "vgs_rl/GMM9-v0",
            num_envs=2,
            vectorization_mode="sync",
            vector_kwargs=mode,
            num_steps=2,
        )
    )
    env.seed(0)
    env.reset()
    for _ in range(2):
        infos = env.step(np.zeros((2, 2), np.float32))[3]
    x = torch.from_numpy(np.stack([info["terminal_observation"][:2] for info in infos]))
    energy = find("GMM9").make_energy().energy(x)
    np.testing.assert_allclose([info["energy"] for info in infos], energy, rtol=1e-4)
    assert all(np.isfinite(info["log_weight"]) for info in infos)
    assert env.adapter.statistics.pop()["energy"] == pytest.approx(float(energy.mean()), rel=1e-4)


@pytest.mark.parametrize("id", [id for id in registered() if id.startswith("vgs_rl/")])
def test_every_id_goes_into_the_librarys_own_constructors(id):
    env = make_vec_env(id, 2, seed=0)
    env.reset()
    assert env.step(np.zeros(env.action_space.shape, np.float32)[None].repeat(2, 0))[0].ndim == 2
    assert env.render().shape == (960, 480, 3)
    if id in ("vgs_rl/GMM9-v0", "vgs_rl/LJ13-v0"):
        sb3.PPO("MlpPolicy", id, n_steps=8, batch_size=8, n_epochs=1).learn(8)


def test_the_librarys_recorder_gets_one_frame_of_all_rows(tmp_path):
    envs = gymnasium.make_vec("vgs_rl/GMM9-v0", num_envs=9, render_mode="rgb_array")
    film = VecVideoRecorder(
        SB3VecEnv(envs), str(tmp_path), record_video_trigger=lambda step: step == 0, video_length=99
    )
    film.reset()
    film.step(np.zeros((9, 2), np.float32))
    assert [frame.shape for frame in film.recorded_frames] == [(480, 480, 3)] * 2
    assert film.frames_per_sec == envs.metadata["render_fps"]
    assert (film.recorded_frames[0] != film.recorded_frames[1]).any()
    film.close()
    assert list(tmp_path.glob("*.mp4"))
    silent = SB3VecEnv(SamplingVectorEnv(small_mdp()))
    with pytest.warns(UserWarning, match="no `render_mode` was passed"):
        assert silent.render() is None


def test_ids_reach_worker_processes_that_import_nothing_of_ours():
    env = make_vec_env(
        "vgs_rl:vgs_rl/GMM9-v0",
        1,
        seed=0,
        vec_env_cls=SubprocVecEnv,
        vec_env_kwargs={"start_method": "spawn"},
    )
    try:
        assert env.reset().shape == (1, 3)
        assert env.step(np.zeros((1, 2), np.float32))[1].shape == (1,)
    finally:
        env.close()


@pytest.mark.slow
def test_the_environment_takes_a_tenth_of_ppos_time_at_most():
    agent = SB3Config(num_envs=1024, batch_size=1024).build(small_mdp(num_steps=20))
    agent.learn(BudgetConfig(updates=1), **QUIET)
    env, spent = agent.model.env, 0.0
    real = env.step_wait

    def timed():
        nonlocal spent
        begin = time.perf_counter()
        result = real()
        spent += time.perf_counter() - begin
        return result

    env.step_wait = timed
    begin = time.perf_counter()
    agent.learn(BudgetConfig(updates=4), **QUIET)
    assert spent < 0.1 * (time.perf_counter() - begin)


@pytest.mark.parametrize("algorithm", ["PPO", "SAC"])
def test_updates_with_a_loss_that_is_not_finite_are_counted_and_said(algorithm):
    agent = small_agent(SB3Config, algorithm)
    step = agent._train_step
    agent._train_step = lambda: step() | {"train/loss": torch.tensor(torch.nan)}
    with pytest.warns(UserWarning, match="2 of 2 updates had a loss that was not finite"):
        agent.learn(BudgetConfig(updates=2), **QUIET)
    assert agent.report_details()["skipped_updates"] == 2
