"""A model's policy is the one that its environment gets to see, through every wrapper."""

import functools

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces, wrappers

import vgs_rl.envs
from vgs_rl.envs import SamplingEnv, SamplingVectorEnv
from vgs_rl.transitions import KernelPolicy

sb3 = pytest.importorskip("stable_baselines3")

from libraries import small_mdp  # noqa: E402
from stable_baselines3.common.monitor import Monitor  # noqa: E402
from stable_baselines3.common.vec_env import (  # noqa: E402
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from vgs_rl.agents.rl.sb3 import sb3_policy  # noqa: E402
from vgs_rl.agents.rl.sb3_env import SB3VecEnv  # noqa: E402


def building(kind, policy="MlpPolicy", **options):
    """What makes a small model on an environment; libraries write into the options they get."""
    network = {"policy_kwargs": {"net_arch": [8]}} if policy == "MlpPolicy" else {}
    return lambda venv: kind(policy, venv, seed=0, device="cpu", **network, **options)


ROLLOUT = {"n_steps": 8, "batch_size": 16}
PPO = building(sb3.PPO, **ROLLOUT, n_epochs=1)
GSDE = building(sb3.PPO, **ROLLOUT, n_epochs=1, use_sde=True)
TD3 = building(sb3.TD3, learning_starts=4)


class Recording(SamplingEnv):
    """Remembers the last action that it was given."""

    def step(self, action):
        self.given = np.array(action)
        return super().step(action)


def plain(mdp):
    return Recording(mdp, action_bound=3.0)


def rescaled(mdp):
    return wrappers.RescaleAction(Monitor(plain(mdp)), np.float32(-1.0), np.float32(0.5))


def clipped(mdp):
    inner = wrappers.ClipAction(plain(mdp))
    return wrappers.RescaleAction(wrappers.OrderEnforcing(Bounded(inner)), -1.0, 1.0)


class Bounded(gymnasium.ActionWrapper):
    """A bound that a library wants, wider than the environment's."""

    def __init__(self, env):
        super().__init__(env)
        self.action_space = spaces.Box(-9.0, 9.0, env.unwrapped.action_space.shape, np.float32)

    def action(self, action):
        return action


def applied(model, venv, mdp):
    """States, steps, and what the innermost environment got from deterministic predictions."""
    states, given = [], []
    observation = venv.reset()
    for t in range(mdp.num_steps):
        bases = [env.unwrapped for env in venv.unwrapped.envs]
        states.append(torch.stack([env._episodes.x[0].clone() for env in bases]))
        action, _ = model.predict(observation, deterministic=True)
        observation, *_ = venv.step(action)
        given.append(torch.from_numpy(np.stack([env.given for env in bases])))
        assert t < mdp.num_steps
    return states, given


def check(model, venv, mdp):
    policy = sb3_policy(model, mdp)
    if isinstance(venv, VecNormalize):
        venv.training = False
    states, given = applied(model, venv, mdp)
    assert max(float(u.abs().max()) for u in given) > 1e-3
    with torch.no_grad():
        for t, (x, u) in enumerate(zip(states, given, strict=True)):
            torch.testing.assert_close(policy(x, t), u.to(x.dtype), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [plain, rescaled])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(
    "build",
    [
        PPO,
        GSDE,
        building(sb3.A2C, n_steps=8),
        building(sb3.SAC, learning_starts=4),
        building(sb3.SAC, learning_starts=4, use_sde=True),
        TD3,
    ],
    ids=["ppo", "ppo-gsde", "a2c", "sac", "sac-gsde", "td3"],
)
def test_the_policy_is_what_prediction_makes_the_environment_apply(build, normalise, make):
    mdp = small_mdp(num_steps=4)
    venv = VecMonitor(DummyVecEnv([functools.partial(make, mdp)] * 2))
    if normalise:
        venv = VecNormalize(venv, clip_obs=1.5)
    model = build(venv)
    model.learn(16)
    with torch.no_grad():  # so that bounds matter, too
        for parameter in model.policy.parameters():
            parameter.mul_(3.0)
    check(model, venv, mdp)


def test_squashed_gsde_and_deep_feature_extractors_are_followed():
    mdp = small_mdp(num_steps=4)
    venv = DummyVecEnv([functools.partial(rescaled, mdp)])
    network = {"net_arch": [8], "squash_output": True}
    model = sb3.PPO("MlpPolicy", venv, n_steps=8, use_sde=True, policy_kwargs=network, seed=0)
    policy = sb3_policy(model, mdp)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    observation = torch.cat([x, torch.full((5, 1), 0.5)], -1)
    with torch.no_grad():
        latent = model.policy.mlp_extractor.forward_actor(observation)
        action = model.policy.action_net(latent).tanh()  # in (-1, 1), then over [-1, 0.5]
        outer = -1.0 + 0.5 * (action + 1.0) * 1.5
        expected = -3.0 + (outer + 1.0) / 1.5 * 6.0
        torch.testing.assert_close(policy(x, 2), expected)


def test_vector_environments_under_the_adapter_are_followed_too():
    mdp = small_mdp(num_steps=4)
    inner = gymnasium.wrappers.vector.RescaleAction(
        SamplingVectorEnv(mdp, num_envs=4, action_bound=3.0, autoreset_mode="SAME_STEP"),
        -np.ones(2, np.float32),
        np.ones(2, np.float32),
    )
    venv = VecNormalize(SB3VecEnv(inner))
    model = PPO(venv)
    model.learn(64)
    policy = sb3_policy(model, mdp)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    observation = np.concatenate([x.numpy(), np.full((6, 1), 0.25, np.float32)], -1)
    action, _ = model.predict(venv.normalize_obs(observation), deterministic=True)
    with torch.no_grad():
        torch.testing.assert_close(policy(x, 1), 3.0 * torch.from_numpy(action), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (lambda mdp: VecFrameStack(DummyVecEnv([lambda: plain(mdp)]), 2), "VecFrameStack"),
        (lambda mdp: DummyVecEnv([lambda: Bounded(plain(mdp))]), "Bounded"),
        (
            lambda mdp: DummyVecEnv([lambda: wrappers.DelayObservation(plain(mdp), 1)]),
            "DelayObservation",
        ),
        (
            lambda mdp: DummyVecEnv([lambda: wrappers.NormalizeObservation(plain(mdp))]),
            "NormalizeObservation",
        ),
        (lambda mdp: DummyVecEnv([lambda: clipped(mdp)]), "Bounded"),
    ],
)
def test_a_wrapper_that_is_not_known_is_refused_by_name(wrap, name):
    mdp = small_mdp()
    model = PPO(wrap(mdp))
    with pytest.raises(ValueError, match=f"has the wrapper {name}"):
        sb3_policy(model, mdp)


def test_wrappers_in_other_processes_are_read_off_their_specification():
    make = functools.partial(gymnasium.make, "vgs_rl/GMM9-v0")
    wrapped = functools.partial(_rescaled_id, "vgs_rl/GMM9-v0")
    mdp = vgs_rl.envs.SamplingEnv("vgs_rl/GMM9-v0").mdp
    for function, refused in ((make, False), (wrapped, True)):
        venv = SubprocVecEnv([function], start_method="fork")
        model = PPO(venv)
        try:
            if refused:
                with pytest.raises(ValueError, match="has the wrapper RescaleAction in another"):
                    sb3_policy(model, mdp)
            else:
                assert sb3_policy(model, mdp)(torch.zeros(3, 2), 0).shape == (3, 2)
        finally:
            venv.close()


def _rescaled_id(id):
    return wrappers.RescaleAction(gymnasium.make(id), -1.0, 1.0)


def test_another_mdp_than_the_environments_is_refused():
    model = PPO(DummyVecEnv([lambda: plain(small_mdp(num_steps=4))]))
    with pytest.raises(ValueError, match="environment has another MDP"):
        sb3_policy(model, small_mdp(num_steps=5))


def test_a_model_without_environment_is_taken_as_plain_with_a_warning(tmp_path):
    mdp = small_mdp()
    venv = VecNormalize(DummyVecEnv([lambda: plain(mdp)]))
    model = PPO(venv)
    model.learn(16)
    model.save(tmp_path / "model.zip")
    loaded = sb3.PPO.load(tmp_path / "model.zip", device="cpu")
    with pytest.warns(UserWarning, match="the model has no environment"):
        sb3_policy(loaded, mdp)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        same = sb3_policy(loaded, mdp, env=venv)(x, 1)
        torch.testing.assert_close(same, sb3_policy(model, mdp)(x, 1))


def test_a_kernel_needs_a_density():
    mdp = small_mdp()

    def kernel():
        return SamplingEnv(mdp, action_bound=3.0, noise=False)

    for build, reason in (
        (GSDE, "with use_sde cannot be the kernel"),
        (TD3, "its policy has no density"),
    ):
        with pytest.raises(ValueError, match=reason):
            sb3_policy(build(DummyVecEnv([kernel])), mdp)
    assert isinstance(sb3_policy(PPO(DummyVecEnv([kernel])), mdp), KernelPolicy)  # read off


def test_contributed_policies_are_followed_and_recurrent_ones_refused():
    contrib = pytest.importorskip("sb3_contrib")
    mdp = small_mdp(num_steps=4)
    venv = VecNormalize(DummyVecEnv([functools.partial(rescaled, mdp)] * 2))
    for build in (
        building(contrib.ARS, n_delta=2),
        building(contrib.ARS, "LinearPolicy", n_delta=2),
        building(contrib.TQC, learning_starts=4),
        building(contrib.CrossQ, learning_starts=4),
        building(contrib.TRPO, **ROLLOUT),
    ):
        model = build(venv)
        model.learn(16)
        check(model, venv, mdp)
        venv.training = True
    recurrent = building(contrib.RecurrentPPO, "MlpLstmPolicy", n_steps=8)(venv)
    with pytest.raises(ValueError, match="RecurrentPPO has a recurrent policy"):
        sb3_policy(recurrent, mdp)
