"""Tianshou's agents and the adapter to it, and that both libraries' PPO agree."""

import gymnasium
import numpy as np
import pytest
import torch

pytest.importorskip("tianshou", reason="needs the extra tianshou")

from libraries import (
    QUIET,
    check_counters,
    check_resume_is_bit_identical,
    check_the_users_random_states_stay_untouched,
    check_weights_are_unbiased,
    small_agent,
    small_mdp,
)

from vgs_rl import ChainSampler
from vgs_rl.agents.rl.sb3 import SB3Config
from vgs_rl.agents.rl.tianshou_agent import TianshouConfig, tianshou_policy
from vgs_rl.agents.rl.tianshou_env import TianshouVectorEnv
from vgs_rl.envs import GMM9, SamplingVectorEnv
from vgs_rl.training.config import BudgetConfig

ALGORITHMS = ("PPO", "A2C", "SAC", "TD3", "DDPG")
MODES = [(a, "environment") for a in ALGORITHMS] + [(a, "policy") for a in ("PPO", "A2C", "SAC")]


@pytest.mark.parametrize(("algorithm", "policy_noise"), MODES)
def test_weights_are_unbiased_for_z(algorithm, policy_noise):
    check_weights_are_unbiased(TianshouConfig, algorithm, policy_noise)


@pytest.mark.parametrize("algorithm", ["PPO", "SAC", "TD3"])
def test_resumed_training_is_bit_identical(algorithm, tmp_path):
    check_resume_is_bit_identical(TianshouConfig, algorithm, tmp_path)


def test_resumed_training_is_bit_identical_amid_random_actions_and_a_full_buffer(tmp_path):
    options = {"learning_starts": 100, "buffer_size": 64}
    check_resume_is_bit_identical(TianshouConfig, "TD3", tmp_path, **options)


@pytest.mark.parametrize("algorithm", ["PPO", "SAC"])
def test_the_users_random_states_stay_untouched(algorithm):
    check_the_users_random_states_stay_untouched(TianshouConfig, algorithm)


def test_counters_are_exact():
    check_counters(TianshouConfig, "PPO", steps_per_update=4)
    check_counters(TianshouConfig, "SAC", steps_per_update=1)


@pytest.mark.parametrize("policy_noise", ["environment", "policy"])
@pytest.mark.parametrize("algorithm", ["PPO", "SAC"])
def test_the_untrained_agent_is_almost_the_uncontrolled_chain(algorithm, policy_noise):
    agent = small_agent(TianshouConfig, algorithm, policy_noise=policy_noise)
    nothing = ChainSampler(agent.mdp, lambda x, t: torch.zeros_like(x))
    expected = float(nothing.sample(4000, 1).log_weight.mean())
    assert agent.sampler().sample(4000, 1).log_weight.mean() == pytest.approx(expected, abs=0.4)


def test_the_sampling_policy_is_the_librarys_own_deterministic_action():
    from tianshou.data import Batch

    for algorithm in ("SAC", "TD3"):
        agent = small_agent(TianshouConfig, algorithm)
        agent.learn(BudgetConfig(updates=2), **QUIET)
        observation = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
        observation[:, 2] = 0.5
        policy = agent.algorithm.policy
        with torch.no_grad():
            action = policy.map_action(policy(Batch(obs=observation, info=Batch())).act)
            control = agent.policy()(torch.from_numpy(observation[:, :2].copy()), 2)
        np.testing.assert_allclose(control, action, atol=1e-5)


def test_saved_states_reload_and_sample_identically(tmp_path):
    for algorithm in ("PPO", "SAC", "TD3"):
        agent = small_agent(TianshouConfig, algorithm)
        agent.learn(BudgetConfig(updates=2), **QUIET)
        torch.save(agent.algorithm.state_dict(), tmp_path / "algorithm.pt")
        other = small_agent(TianshouConfig, algorithm, mdp=agent.mdp, seed=8)
        state = torch.load(tmp_path / "algorithm.pt", weights_only=True)
        other.algorithm.load_state_dict(state)
        sampler = ChainSampler(agent.mdp, tianshou_policy(other.algorithm.policy, agent.mdp))
        one, two = agent.sampler().sample(100, 1), sampler.sample(100, 1)
        assert torch.equal(one.x, two.x) and torch.equal(one.log_weight, two.log_weight)


@pytest.mark.slow
@pytest.mark.parametrize("policy_noise", ["environment", "policy"])
def test_both_libraries_ppo_agree_within_their_seeds(policy_noise):
    options = {
        "num_envs": 64,
        "batch_size": 64,
        "epochs": 5,
        "lr": 3e-3,
        "hidden": (32, 32),
        "policy_noise": policy_noise,
    }
    elbos = {}
    for kind in (SB3Config, TianshouConfig):
        elbos[kind] = []
        for seed in range(3):
            agent = small_agent(kind, mdp=small_mdp(scale=2.5), seed=seed, **options)
            start = float(agent.sampler().sample(4000, 1).log_weight.mean())
            agent.learn(BudgetConfig(updates=20), **QUIET)
            end = float(agent.sampler().sample(4000, 1).log_weight.mean())
            assert end > start + 0.2
            elbos[kind].append(end)
    one, other = (np.array(values) for values in elbos.values())
    error = np.sqrt((one.var(ddof=1) + other.var(ddof=1)) / len(one))
    assert abs(one.mean() - other.mean()) < 4 * error + 0.05, elbos


def test_first_rollouts_of_both_libraries_have_the_same_statistics():
    """Same policy, same environment: only the noise differs."""
    scalars = []
    for kind in (SB3Config, TianshouConfig):
        agent = small_agent(
            kind, mdp=small_mdp(GMM9(), num_steps=5), num_envs=4096, batch_size=4096
        )
        agent._train_step()
        scalars.append(agent.statistics.latest)
    one, other = scalars
    assert one.keys() == other.keys()
    for name in ("return", "energy", "elbo"):
        assert one[name] == pytest.approx(other[name], rel=0.05), name


def test_the_adapter_passes_on_what_the_environment_does():
    mdp = small_mdp()
    env = TianshouVectorEnv(
        SamplingVectorEnv(mdp, num_envs=3, autoreset_mode="DISABLED"), reward_scale=2.0
    )
    raw = SamplingVectorEnv(mdp, num_envs=3, autoreset_mode="DISABLED")
    env.seed(5)
    np.testing.assert_array_equal(env.reset()[0], raw.reset(seed=5)[0])
    assert len(env) == 3 and len(env.action_space) == 3
    actions = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    for action in actions:
        got, want = env.step(action, np.arange(3)), raw.step(action)
        np.testing.assert_array_equal(got[0], want[0])
        np.testing.assert_allclose(got[1], 2 * want[1], rtol=1e-6)
        np.testing.assert_array_equal(got[2], want[2])
        assert got[4].shape == (3,) and got[4].dtype == object
    mask = np.array([True, False, True])
    np.testing.assert_array_equal(
        env.reset(np.array([0, 2]))[0], raw.reset(options={"reset_mask": mask})[0][mask]
    )


def test_steps_of_a_part_of_the_environments_are_refused_by_name():
    env = TianshouVectorEnv(
        gymnasium.make_vec("vgs_rl/GMM9-v0", num_envs=3, autoreset_mode="DISABLED")
    )
    env.reset()
    with pytest.raises(ValueError, match="a multiple of 3 episodes"):
        env.step(np.zeros((2, 2), np.float32), [0, 1])
    with pytest.raises(ValueError, match="autoreset_mode must be DISABLED, got SAME_STEP; make"):
        TianshouVectorEnv(SamplingVectorEnv(small_mdp(), autoreset_mode="SAME_STEP"))


def test_the_adapter_asks_for_the_mode_it_needs():
    envs = SamplingVectorEnv(small_mdp(), num_envs=3)
    TianshouVectorEnv(envs)
    assert envs.metadata["autoreset_mode"].name == "DISABLED"


def test_names_tell_library_algorithm_and_noise():
    assert TianshouConfig().name == "tianshou-ppo"
    assert TianshouConfig(algorithm="SAC", policy_noise="policy").name == "tianshou-sac-kernel"


@pytest.mark.parametrize(("scaling", "method"), [(True, "clip"), (True, "tanh"), (False, None)])
def test_the_policy_is_what_tianshous_own_mapping_makes_the_environment_apply(scaling, method):
    mdp = small_mdp()
    agent = small_agent(TianshouConfig, mdp=mdp, action_bound=3.0)
    policy = agent.algorithm.policy
    policy.action_scaling, policy.action_bound_method = scaling, method
    with torch.no_grad():
        for parameter in policy.actor.parameters():
            parameter.mul_(5.0)
        x = 2 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        observation = torch.cat([x, torch.full((50, 1), 0.5)], -1)
        (mean, _), _ = policy.actor(observation)
        expected = np.clip(policy.map_action(mean.numpy()), -3.0, 3.0)
        np.testing.assert_allclose(tianshou_policy(policy, mdp)(x, 2), expected, atol=1e-5)


def test_normalised_observations_are_followed_and_other_wrappers_refused():
    from tianshou.env import VectorEnvNormObs, VectorEnvWrapper

    mdp = small_mdp()
    agent = small_agent(TianshouConfig, mdp=mdp, action_bound=3.0)
    policy = agent.algorithm.policy
    inner = TianshouVectorEnv(SamplingVectorEnv(mdp, num_envs=4, autoreset_mode="DISABLED"))
    env = VectorEnvNormObs(inner)
    env.reset()
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    observation = np.concatenate([x.numpy(), np.full((5, 1), 0.5, np.float32)], -1)
    with torch.no_grad():
        (mean, _), _ = policy.actor(torch.from_numpy(env._norm_obs(observation)).float())
        control = tianshou_policy(policy, mdp, env=env)(x, 2)
        torch.testing.assert_close(control, mean.clamp(-3, 3), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="has the wrapper VectorEnvWrapper"):
        tianshou_policy(policy, mdp, env=VectorEnvWrapper(inner))
