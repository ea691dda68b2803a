import copy
import math
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from vgs_rl import (
    Energy,
    MDPConfig,
    ScheduleConfig,
    StartConfig,
    registered,
)
from vgs_rl.envs import (
    GMM9,
    Gaussian,
    SamplingEnv,
    SamplingVectorEnv,
    check_vector_env,
)
from vgs_rl.envs.episodes import NoEpisode, rewarded_energy
from vgs_rl.envs.face import default_action_bound
from vgs_rl.experiments.config import config_of, parse_run
from vgs_rl.experiments.run import build
from vgs_rl.transitions import State

ROOT = Path(__file__).parents[2]

IDS = ["vgs_rl/Gaussian-v0", "vgs_rl/GMM9-v0", "vgs_rl/Funnel10-v0", "vgs_rl/ManyWell32-v0"]


def make(num_envs=3, num_steps=4, **arguments):
    return SamplingVectorEnv(Gaussian(), num_envs=num_envs, num_steps=num_steps, **arguments)


def actions_of(env, rng):
    return rng.standard_normal(env.action_space.shape).astype(np.float32)


@pytest.mark.parametrize("id", IDS)
def test_single_environment_passes_gymnasiums_check(id):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of infinite observation bounds, which are meant
        check_env(gymnasium.make(id).unwrapped, skip_render_check=True)
        check_env(gymnasium.make(id), skip_render_check=True)


@pytest.mark.parametrize("id", IDS)
@pytest.mark.parametrize("mode", AutoresetMode)
def test_vector_environment_passes_our_check(id, mode):
    check_vector_env(gymnasium.make_vec(id, num_envs=3, autoreset_mode=mode.name))


def test_make_vec_uses_the_batched_environment_and_declares_its_mode():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make_vec("vgs_rl/GMM9-v0", num_envs=5)
    assert isinstance(env.unwrapped, SamplingVectorEnv) and env.num_envs == 5
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert env.spec.id == "vgs_rl/GMM9-v0"
    other = gymnasium.make_vec("vgs_rl/GMM9-v0", num_envs=2, num_steps=7, action_bound=3.0)
    assert other.unwrapped.mdp.num_steps == 7
    assert float(other.single_action_space.high[0]) == 3.0
    single = gymnasium.make("vgs_rl/GMM9-v0", num_steps=3).unwrapped
    assert isinstance(single, SamplingEnv) and single.mdp.num_steps == 3


def test_arguments_reach_energy_and_mdp():
    mdp = MDPConfig(num_steps=6, start=StartConfig(scale=2.0))
    env = SamplingVectorEnv("vgs_rl.envs:Funnel", energy_args={"dim": 4}, mdp=mdp)
    assert env.mdp.dim == 4 and env.num_envs == 1
    assert env.mdp.start.scale.item() == pytest.approx(2.0)
    env = SamplingVectorEnv("GMM9", num_steps=9)
    assert env.mdp.num_steps == 9 and SamplingVectorEnv("GMM9").mdp.num_steps == 20
    assert SamplingEnv("GMM9", max_episode_steps=20).mdp.num_steps == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"max_episode_steps": 5}, "max_episode_steps must be None or num_steps = 4, got 5"),
        ({"action_bound": math.inf}, "action_bound must be a positive, finite number, got inf"),
        ({"action_bound": 0.0}, "action_bound must be a positive, finite number, got 0.0"),
        ({"render_mode": "human"}, "render_mode must be None or 'rgb_array', got 'human'"),
        ({"autoreset_mode": "never"}, "must be one of NEXT_STEP, SAME_STEP, DISABLED, got 'never'"),
        ({"energy_args": {"dim": 2}}, "energy_args need a target's name"),
    ],
)
def test_impossible_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_a_time_limit_cuts_no_episode_unseen():
    id = "vgs_rl/GMM9-v0"
    message = r"max_episode_steps must be None or num_steps = \d+, got 3; .* num_steps= sets"
    for make in (gymnasium.make, lambda *a, **k: gymnasium.make_vec(*a, **k, num_envs=2)):
        with pytest.raises(ValueError, match=message):
            make(id, max_episode_steps=3).reset(seed=0)
    options = {"vectorization_mode": "sync", "num_envs": 2, "max_episode_steps": 3}
    with pytest.raises(ValueError, match=message):
        gymnasium.make_vec(id, **options).reset(seed=0)
    with pytest.raises(ValueError, match=message):
        TimeLimit(gymnasium.make(id), 3).reset()
    whole = gymnasium.make(id, max_episode_steps=3, num_steps=3)
    whole.reset(seed=0)
    ends = [whole.step(0 * whole.action_space.sample())[2] for _ in range(3)]
    assert ends == [False, False, True]
    assert gymnasium.make(id, max_episode_steps=-1).reset()[1] == {}


def test_the_state_before_the_first_reset_is_asked_for_in_vain():
    with pytest.raises(NoEpisode, match="state_dict needs a reset first: no episode has begun"):
        make().state_dict()
    assert issubclass(NoEpisode, (ResetNeeded, ValueError))


def broken(state, **changes):
    return {name: value for name, value in (state | changes).items() if value is not None}


def test_a_state_of_other_episodes_is_refused_and_changes_nothing():
    def reset(**arguments):
        env = make(**arguments)
        env.reset(seed=0)
        return env

    env, other = reset(), reset()
    env.step(np.ones((3, 2), np.float32))
    before = copy.deepcopy(env.state_dict())
    mixed = torch.tensor([0, 1, 2])
    for state, message in (
        (reset(num_envs=4).state_dict(), "with {'num_envs': 3.*got {'num_envs': 4"),
        (reset(num_steps=5).state_dict(), "'num_steps': 4.*got .*'num_steps': 5"),
        (reset(noise=False).state_dict(), "'noise': True.*got .*'noise': False"),
        (broken(before, x=None), r"state must hold \['generator', .*'x'\], got"),
        (broken(before, x=torch.zeros(3, 1)), r"state\['x'\] must be a tensor of shape \(3, 2\)"),
        (broken(before, x=before["x"].double()), r"in torch.float32, got .*torch.float64"),
        (broken(before, log_weight=[0.0]), r"state\['log_weight'\] must be .* got list"),
        (broken(before, t=5), r"state\['t'\] must be between -1 and num_steps = 4, got 5"),
        (broken(before, t=mixed + 3), r"state\['t'\] must be between -1 and num_steps = 4"),
        (broken(before, t=mixed[:2]), r"state\['t'\] must be a tensor of shape \(3,\)"),
        (broken(before, generator=torch.zeros(3, dtype=torch.uint8)), r"\['generator'\] must be"),
        (
            broken(before, generator=0 * before["generator"]),
            r"state\['generator'\] is no generator's state",
        ),
        (3, "state must hold .* got int"),
    ):
        with pytest.raises(ValueError, match=message):
            env.load_state_dict(state)
        assert torch.equal(env.state_dict()["x"], before["x"])
        assert torch.equal(env.state_dict()["generator"], before["generator"])
    other.load_state_dict(before)
    actions = np.ones((3, 2), np.float32)
    np.testing.assert_array_equal(env.step(actions)[0], other.step(actions)[0])


def test_unknown_targets_are_refused():
    with pytest.raises(ValueError, match="did you mean .*GMM9"):
        SamplingEnv("GMM8")
    with pytest.raises(TypeError, match=r"target must be a name or a vgs_rl.Energy, got int"):
        SamplingEnv(3)


def test_one_row_is_the_single_environment():
    single = SamplingEnv(GMM9(), num_steps=5)
    vector = SamplingVectorEnv(GMM9(), num_steps=5, autoreset_mode="DISABLED")
    rng = np.random.default_rng(0)
    for seed in (3, None):
        a, b = single.reset(seed=seed)[0], vector.reset(seed=seed)[0]
        np.testing.assert_array_equal(a, b[0])
        for _ in range(5):
            action = actions_of(single, rng)
            one, many = single.step(action), vector.step(action[None])
            np.testing.assert_allclose(one[0], many[0][0], rtol=1e-5, atol=1e-5)
            assert one[1] == pytest.approx(many[1][0], rel=1e-4, abs=1e-4)
            assert one[2:4] == (many[2][0], many[3][0])
        for key in ("log_weight", "energy"):
            assert one[4][key] == pytest.approx(many[4][key][0], rel=1e-3, abs=1e-3)
        assert all(type(value) is np.float64 for value in one[4].values())


def test_an_action_of_one_dimension_is_an_array():
    env = SamplingEnv(Gaussian((0.0,), (1.0,)), num_steps=2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action must have shape \(1,\), got \(\)"):
        env.step(np.float32(0.5))
    assert env.step([0.5])[0].shape == (2,)


@pytest.mark.parametrize("chain", ["ve", "vp"])
def test_one_row_steps_as_the_mdp_does_also_after_its_noise_has_changed(chain):
    schedule = ScheduleConfig(total_noise=0.7)
    config = MDPConfig(chain=chain, num_steps=6, schedule=schedule, temperature=1.7)
    env = SamplingEnv(GMM9(), mdp=config)
    mdp, rng = env.mdp, np.random.default_rng(0)
    observation, _ = env.reset(seed=4)
    generator = torch.Generator()
    generator.set_state(env._episodes.generator.get_state())
    state = State(torch.from_numpy(observation[None, :2].copy()), 0)
    log_weight, info = mdp.initial_log_weight(state.x).detach(), {}
    for t in range(6):
        if t == 3:
            mdp.rho.mul_(0.8)  # as an agent does that shares it
        action = rng.standard_normal(2).astype(np.float32)
        observation, reward, *_, info = env.step(action)
        step, energy = mdp.step_with_energy(state, torch.from_numpy(action[None]), generator)
        state, log_weight = step.state, log_weight + step.log_ratio
        cost = step.cost if energy is None else step.cost + energy
        np.testing.assert_allclose(observation[:2], state.x[0], rtol=1e-5, atol=1e-5)
        assert reward == pytest.approx(-float(cost[0]), rel=1e-4, abs=1e-4)
    assert info["log_weight"] == pytest.approx(float(log_weight[0]), rel=1e-4, abs=1e-4)


def test_observation_is_the_state_and_the_time():
    env = make(num_steps=4)
    observation, _ = env.reset(seed=0)
    start = env.mdp.reset(3, env.mdp.generator(int(seed_drawn(0))))
    np.testing.assert_array_equal(observation[:, :2], start.x.numpy())
    for t in range(4):
        np.testing.assert_allclose(observation[:, 2], t / 4)
        observation = env.step(np.zeros((3, 2), np.float32))[0]
    np.testing.assert_allclose(observation[:, 2], 1.0)
    observation = env.step(np.zeros((3, 2), np.float32))[0]
    np.testing.assert_allclose(observation[:, 2], 0.0)


def seed_drawn(seed):
    return gymnasium.utils.seeding.np_random(seed)[0].integers(2**63 - 1)


def test_log_weight_is_that_of_the_mdp():
    env, rng = make(num_envs=8, num_steps=4), np.random.default_rng(0)
    controls = [actions_of(env, rng) for _ in range(4)]
    env.reset(seed=5)
    total = np.zeros(8)
    for control in controls:
        *_, infos = result = env.step(control)
        total += result[1]
    generator = env.mdp.generator(int(seed_drawn(5)))
    rollout = env.mdp.rollout(lambda x, t: torch.from_numpy(controls[t]), 8, generator)
    np.testing.assert_allclose(infos["log_weight"], rollout.log_weight.detach(), atol=1e-4)
    np.testing.assert_allclose(infos["energy"], rollout.energy.detach(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(total, -rollout.cost.detach(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_log_weight_is_unbiased_for_z_whatever_the_actions(mode):
    schedule = ScheduleConfig(total_noise=0.9)
    config = MDPConfig(num_steps=3, schedule=schedule, start=StartConfig(scale=1.7))
    energy = Gaussian((0.3, 0.0), (0.8, 0.5))
    env = SamplingVectorEnv(energy, num_envs=20_000, mdp=config, autoreset_mode=mode)
    observation, _ = env.reset(seed=0)
    for _ in range(3):
        actions = np.sin(3 * observation[:, :2]) * 0.4 + 0.2
        observation, *_, infos = env.step(actions)
    w = np.exp(infos["log_weight"] - energy.log_z)
    assert abs(w.mean() - 1) < 4 * w.std() / math.sqrt(len(w))
    assert w.std() > 0.1  # these actions are far from optimal


def test_same_seed_same_numbers_other_seed_other_numbers():
    def play(seed):
        env = make()
        observation, _ = env.reset(seed=seed)
        return [observation, *(env.step(np.ones((3, 2)))[0] for _ in range(6))]

    np.testing.assert_array_equal(play(1), play(1))
    assert not np.array_equal(play(1), play(2))


def test_the_global_rng_is_not_touched():
    before = torch.get_rng_state()
    env = make()
    env.reset(seed=0)
    env.step(np.zeros((3, 2)))
    assert torch.equal(before, torch.get_rng_state())


def test_next_step_mode_ignores_the_action_after_the_end():
    env = make(num_steps=2, autoreset_mode="NextStep")
    env.reset(seed=0)
    ones = np.ones((3, 2), np.float32)
    env.step(ones)
    _, rewards, terminated, _, infos = env.step(ones)
    assert terminated.all() and infos["_energy"].all() and "final_obs" not in infos
    observation, rewards, terminated, truncated, infos = env.step(9 * ones)
    assert not rewards.any() and not terminated.any() and not truncated.any() and not infos
    np.testing.assert_array_equal(observation[:, 2], 0.0)
    assert env.step(ones)[1].all()


@pytest.mark.parametrize("mode", AutoresetMode)
def test_rows_at_different_steps_end_on_their_own(mode):
    env, rng = make(num_steps=3, autoreset_mode=mode), np.random.default_rng(0)
    env.reset(seed=0)
    env.step(actions_of(env, rng))
    mask = np.array([True, False, False])
    observation, _ = env.reset(options={"reset_mask": mask})
    t = np.array([0, 1, 1])
    waiting = np.zeros(3, bool)
    for _ in range(8):
        np.testing.assert_allclose(observation[:, 2], t / 3, atol=1e-6)
        action = actions_of(env, rng)
        observation, rewards, terminated, _, infos = env.step(action)
        t = np.where(waiting, 0, t + 1)
        ended = t == 3
        np.testing.assert_array_equal(terminated, ended)
        np.testing.assert_array_equal(rewards == 0, waiting)
        np.testing.assert_array_equal(infos.get("_energy", np.zeros(3, bool)), ended)
        if not ended.any():
            assert not infos
        elif mode is AutoresetMode.SAME_STEP:
            final = infos["final_obs"][ended, :2]
        else:
            final = observation[ended, :2]
        if ended.any():
            energy = env.mdp.energy.energy(torch.from_numpy(final.copy()))
            np.testing.assert_allclose(infos["energy"][ended], energy, rtol=1e-5)
            assert not infos["log_weight"][~ended].any()
        if mode is AutoresetMode.NEXT_STEP:
            waiting = ended
        elif ended.any():
            t = np.where(ended, 0, t)
            if mode is AutoresetMode.DISABLED:
                observation, _ = env.reset(options={"reset_mask": ended})


def test_log_weight_stays_unbiased_when_rows_are_at_different_steps():
    start = MDPConfig(num_steps=2, start=StartConfig(scale=1.5))
    energy = Gaussian((0.0, 0.0), (1.0, 0.6))
    env = SamplingVectorEnv(energy, num_envs=20_000, mdp=start, autoreset_mode="DISABLED")
    env.reset(seed=0)
    zero = np.zeros((20_000, 2), np.float32)
    env.step(zero + 0.2)
    half = np.arange(20_000) % 2 == 0
    env.reset(options={"reset_mask": half})
    for ended in (~half, half):
        *_, infos = env.step(zero - 0.1)
        w = np.exp(infos["log_weight"][ended] - energy.log_z)
        assert np.array_equal(infos["_log_weight"], ended)
        assert abs(w.mean() - 1) < 4 * w.std() / math.sqrt(len(w))
        env.reset(options={"reset_mask": ended})


def test_stepping_without_a_reset_is_refused():
    zero = np.zeros((3, 2), np.float32)
    env = make(num_steps=1, autoreset_mode="DISABLED")
    with pytest.raises(ResetNeeded, match="step needs a reset first"):
        env.step(zero)
    env.reset(options={"reset_mask": np.array([True, False, False])})
    with pytest.raises(ResetNeeded, match="some environments were never reset"):
        env.step(zero)
    env.reset()
    env.step(zero)
    with pytest.raises(ResetNeeded, match=r"3 of 3 episodes have ended; reset them with"):
        env.step(zero)
    single = SamplingEnv(Gaussian(), num_steps=1)
    for _ in range(2):
        with pytest.raises(ResetNeeded, match="step needs a reset first"):
            single.step(zero[0])
        single.reset()
        single.step(zero[0])


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ([True, False, True], TypeError, "boolean NumPy array, got list"),
        (np.ones(3, np.int64), TypeError, "boolean NumPy array, got int64"),
        (np.ones(2, np.bool_), ValueError, r"must have shape \(3,\), got \(2,\)"),
        (np.zeros(3, np.bool_), ValueError, "at least one True entry, got none"),
    ],
)
def test_bad_reset_masks_are_refused(mask, error, message):
    env = make(autoreset_mode="DISABLED")
    with pytest.raises(error, match=message):
        env.reset(options={"reset_mask": mask})


def test_bad_actions_are_refused_and_leave_the_state_as_it_was():
    env = make()
    observation, _ = env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must have shape \(3, 2\), got \(3,\)"):
        env.step(np.zeros(3))
    for bad in (math.nan, math.inf):
        actions = np.zeros((3, 2))
        actions[1, 0] = bad
        with pytest.raises(ValueError, match="must be finite, got NaN or infinity in 1 of 3"):
            env.step(actions)
    np.testing.assert_array_equal(env._episodes.observation(), observation)
    env.step(np.zeros((3, 2)))
    single = SamplingEnv(Gaussian())
    single.reset(seed=0)
    with pytest.raises(ValueError, match=r"action must have shape \(2,\), got \(1, 2\)"):
        single.step(np.zeros((1, 2)))


class Holes(Energy):
    dim = 1

    def energy(self, x):
        return (100.0 - x[:, 0]).sqrt()


def test_nan_energies_are_named():
    env = SamplingVectorEnv(Holes(), num_envs=2, num_steps=1)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"Holes.energy returned NaN on 1 of 2 terminal states"):
        env.step(np.array([[1e6], [0.0]]))


def test_actions_are_not_clipped():
    env = make(num_steps=2, action_bound=1.0)
    env.reset(seed=0)
    _, rewards, *_ = env.step(np.full((3, 2), 8.0, np.float32))
    constant = 2 * float(env.mdp.chain.log_a[0])
    np.testing.assert_allclose(rewards, -(0.5 * 2 * 64 - constant), rtol=1e-5)


def test_read_only_and_other_dtype_actions_are_taken():
    first, second = make(), make()
    first.reset(seed=0), second.reset(seed=0)
    actions = np.ones((3, 2))
    frozen = np.broadcast_to(np.float32(1.0), (3, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(first.step(actions)[0], second.step(frozen)[0])


def test_one_step_is_one_batched_step():
    env = make(num_envs=64, num_steps=4)
    calls = []
    energy = env.mdp.energy
    original = energy.energy
    energy.energy = lambda x: calls.append(len(x)) or original(x)
    env.reset(seed=0)
    for _ in range(9):  # the fifth step resets
        env.step(np.zeros((64, 2), np.float32))
    assert calls == [64, 64]
    assert env.mdp.energy_evaluations == 128


@pytest.mark.parametrize("mode", AutoresetMode)
def test_episode_statistics_can_be_recorded(mode):
    inner = make(num_steps=3, autoreset_mode=mode)
    env = RecordEpisodeStatistics(inner)
    env.reset(seed=0)
    total = np.zeros(3)
    for _ in range(3):
        _, rewards, _, _, infos = env.step(np.zeros((3, 2), np.float32))
        total += rewards
    np.testing.assert_allclose(infos["episode"]["r"], total)
    assert infos["episode"]["l"].tolist() == [3, 3, 3]
    if mode is AutoresetMode.DISABLED:
        mask = np.array([True, False, False])
        env.reset(options={"reset_mask": mask})
        assert env.episode_lengths.tolist() == [0, 3, 3]


def test_sync_vectorisation_of_the_single_environment_works():
    env = gymnasium.make_vec("vgs_rl/GMM9-v0", num_envs=2, vectorization_mode="sync", num_steps=2)
    env.reset(seed=0)
    env.step(np.zeros((2, 2), np.float32))
    _, _, terminated, _, infos = env.step(np.zeros((2, 2), np.float32))
    assert terminated.all() and infos["_log_weight"].all()


def test_learned_start_and_noise_scale_of_the_shared_mdp_are_used():
    energy = Gaussian((0.0, 0.0), (1.0, 1.0))
    config = MDPConfig(num_steps=2, start=StartConfig(scale=1.0))
    env = SamplingVectorEnv(energy, num_envs=20_000, mdp=config)
    env.mdp.rho.fill_(0.9)
    with torch.no_grad():
        env.mdp.start.log_scale.fill_(math.log(1.5))
    observation, _ = env.reset(seed=0)
    assert observation[:, :2].std() == pytest.approx(1.5, abs=0.03)
    for _ in range(2):
        *_, infos = env.step(np.zeros((20_000, 2), np.float32))
    w = np.exp(infos["log_weight"] - energy.log_z)
    assert abs(w.mean() - 1) < 4 * w.std() / math.sqrt(len(w))


@pytest.mark.parametrize("id", [id for id in registered() if id.startswith("vgs_rl/")])
def test_rewards_are_finite_for_every_action_in_the_space(id):
    env = gymnasium.make_vec(id, num_envs=64)
    low, high = env.action_space.low, env.action_space.high
    rng = np.random.default_rng(0)
    env.action_space.seed(0)
    for draw in (
        env.action_space.sample,
        lambda: np.where(rng.random(low.shape) < 0.5, low, high),  # corners
        lambda: high,
    ):
        observation, _ = env.reset(seed=0)
        for _ in range(env.unwrapped.mdp.num_steps):
            observation, rewards, terminated, _, infos = env.step(draw())
            assert np.isfinite(rewards.astype(np.float32)).all() and abs(rewards).max() < 1e9
            assert np.isfinite(observation).all()
        assert terminated.all() and not np.isnan(infos["energy"]).any()


class Cliff(Energy):
    dim = 1

    def energy(self, x):
        return (0.01 * x[:, 0].square()).exp()


def test_beyond_a_million_temperatures_only_the_logarithm_of_the_energy_grows():
    energies = torch.tensor([-1e30, -3.0, 1e6, 2e6, 2e6 * math.e, 3e38, math.inf])
    got = rewarded_energy(energies, 2.0)
    assert got[:4].tolist() == energies[:4].tolist()
    assert got[4] == pytest.approx(4e6)
    assert bool((got[:-1] < got[1:]).all()) and got[-1] < 2e8
    env = SamplingVectorEnv(Cliff(), num_envs=2, num_steps=1, features=("x", "t", "energy"))
    env.reset(seed=0)
    observation, rewards, _, _, infos = env.step(np.array([[4.0], [1e3]], np.float32))
    energy = env.mdp.energy(torch.from_numpy(observation[:, :1].copy()))
    np.testing.assert_array_equal(infos["energy"], energy.double())
    assert infos["energy"][1] == np.inf and infos["log_weight"][1] == -np.inf
    assert np.isfinite(rewards).all() and np.isfinite(observation).all()
    control = 0.5 * np.array([16.0, 1e6]) - float(env.mdp.chain.log_a[0])
    np.testing.assert_allclose(-rewards, control + rewarded_energy(energy, 1.0).numpy(), rtol=1e-5)


class Pit(Cliff):
    def energy(self, x):
        return torch.where(x[:, 0] > 1e5, -math.inf, 0.0)


def test_what_no_reward_can_express_is_refused_by_name():
    env = SamplingVectorEnv(Pit(), num_envs=2, num_steps=1)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"Pit.energy returned -inf on 1 of 2 terminal states"):
        env.step(np.array([[1e6], [0.0]]))
    env = SamplingVectorEnv(Gaussian(), num_envs=1)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="actions must be small enough to have a finite cost, got"):
        env.step(np.array([[1e30, 0.0]]))


@pytest.mark.parametrize("id", ["vgs_rl/GMM9-v0", "vgs_rl/Funnel10-v0", "vgs_rl/ManyWell32-v0"])
def test_optimal_controls_on_the_targets_own_paths_stay_within_the_default_bound(id):
    env = gymnasium.make_vec(id, num_envs=1).unwrapped
    mdp, bound = env.mdp, float(env.single_action_space.high[0])
    assert bound == pytest.approx(default_action_bound(mdp)) and 3 < bound < 6
    generator = mdp.generator(0)
    x = mdp.energy.sample(1000, generator)
    pushed, controlled = torch.zeros(1000), torch.zeros(1000)
    for t in reversed(range(mdp.num_steps)):
        x, push = mdp._step_back(x, t, generator)
        u = -mdp.chain.s[t] * mdp.energy.value_gradient(x, t, mdp.chain)
        pushed = pushed.maximum(push.abs().amax(-1))
        controlled = controlled.maximum(u.abs().amax(-1))
    assert float((pushed > bound).float().mean()) <= 0.01
    assert float((controlled > bound).float().mean()) <= 0.01


# --- environments of configurations ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "config"), [("GMM9", "gmm9"), ("DW4", "dw4"), ("GMM9", "paper/gmm9")]
)
def test_an_environment_of_a_configuration_is_the_chain_that_train_trains(id, config):
    run = config_of(parse_run(["--config", str(ROOT / "configs" / f"{config}.yaml")]))
    single = gymnasium.make(f"vgs_rl/{id}-v0", config=config)
    several = gymnasium.make_vec(f"vgs_rl/{id}-v0", num_envs=2, config=config)
    for env in (single, several):
        mdp, trained = env.unwrapped.mdp, build(run)[1].mdp
        assert mdp.config == run.mdp
        assert torch.equal(mdp.chain.s, trained.chain.s) and mdp.num_steps == trained.num_steps


def test_a_configuration_that_is_not_the_environments_is_refused(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("env: GMM9\nmdp: {num_steps: 7}\nagent: {class_path: anything.at.all}\n")
    env = gymnasium.make_vec("vgs_rl/GMM9-v0", num_envs=2, config=file)
    assert env.unwrapped.mdp.num_steps == 7
    shorter = gymnasium.make("vgs_rl/GMM9-v0", config=str(file), num_steps=3)
    assert shorter.unwrapped.mdp.num_steps == 3
    for target, config, message in (
        ("vgs_rl/GMM9-v0", "gmm25", "is of vgs_rl/GMM25-v0, the environment is vgs_rl/GMM9-v0"),
        ("vgs_rl/GMM9-v0", "gmm", "config must be the path of a YAML file, or"),
        ("vgs_rl/GMM9-v0", "ebm_digits", "names no env"),
    ):
        with pytest.raises(ValueError, match=message):
            gymnasium.make(target, config=config)
    with pytest.raises(ValueError, match="config needs the name of a target, and no mdp"):
        SamplingEnv("GMM9", config="gmm9", mdp=MDPConfig())
    file.write_text("env: GMM9\nmdp: {num_step: 7}\n")
    with pytest.raises(ValueError, match="num_step"):
        gymnasium.make("vgs_rl/GMM9-v0", config=file)
