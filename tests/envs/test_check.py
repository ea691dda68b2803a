import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import vector as wrappers

from vgs_rl import Energy, Particles
from vgs_rl.envs import (
    GMM9,
    CheckError,
    Gaussian,
    SamplingVectorEnv,
    check_energy,
    check_vector_env,
)


class Bowl(Energy):
    dim = 2

    def energy(self, x):
        return 0.5 * x.square().sum(-1)


class WrongShape(Bowl):
    def energy(self, x):
        return super().energy(x).unsqueeze(-1)


class SinglePrecision(Bowl):
    def energy(self, x):
        return super().energy(x.float())


class CoarsePrecision(Bowl):
    def energy(self, x):
        return super().energy(x.float()).to(x.dtype)


class WrongGradient(Bowl):
    def energy_and_gradient(self, x):
        return self.energy(x), 2 * x


class NotItsOwnGradient(Bowl):
    def energy(self, x):
        return 0.5 * (x * x.detach()).sum(-1)  # autograd sees half of the slope


class Infinite(Bowl):
    def energy(self, x):
        return super().energy(x) / (x[:, 0] > 0).to(x)


class GlobalNoise(Bowl):
    def energy(self, x):
        return super().energy(x) + 0 * torch.randn(())


class CoupledRows(Bowl):
    def energy(self, x):
        return super().energy(x - x.mean(0))


class FalseSymmetry(Bowl):
    symmetry = Particles(2, 1)


class ImpossibleSymmetry(Bowl):
    symmetry = Particles(3, 1)


class BowlWithSampler(Bowl):
    width = 1.0

    def sample(self, n, generator):
        return self.width * torch.randn(n, 2, generator=generator)


class WideSampler(BowlWithSampler):
    width = 1.1


class ShiftedSampler(BowlWithSampler):
    def sample(self, n, generator):
        return super().sample(n, generator) * 0.995 + 0.1


class UnseededSampler(BowlWithSampler):
    def sample(self, n, generator):
        return torch.randn(n, 2, generator=torch.Generator().manual_seed(7))


class WrongLastValue(Gaussian):
    def value(self, x, t, chain):
        return super().value(x, t, chain) + 1.0


class WrongNoise(Gaussian):
    def value(self, x, t, chain):
        return super().value(x, t, chain) * (1.0 if t == chain.num_steps else 1.3)

    value_gradient = Energy.value_gradient


class WrongValueGradient(Gaussian):
    def value_gradient(self, x, t, chain):
        return 1.01 * super().value_gradient(x, t, chain)


class WrongModes(GMM9):
    def __init__(self):
        super().__init__()
        self.mode_probabilities = torch.linspace(1, 2, 9).double() / 13.5


@pytest.mark.parametrize(
    ("energy", "check", "message"),
    [
        (WrongShape, "types on cpu", r"must return shape \(B,\) = \(64,\), got \(64, 1\)"),
        (SinglePrecision, "finite differences", "is something computed in float32"),
        (CoarsePrecision, "finite differences", "is something computed in float32"),
        (WrongGradient, "gradient agrees with autograd", "worst error is"),
        (NotItsOwnGradient, "finite differences", "by gradient"),
        (Infinite, "types on cpu", "expected a finite energy"),
        (GlobalNoise, "global RNG untouched", "torch.Generator of your own"),
        (CoupledRows, "rows are independent", "shuffled rows|row 0 alone"),
        (FalseSymmetry, "invariant under translation", "energies after translation"),
        (ImpossibleSymmetry, "symmetry has the shape", "= 2, got 3 x 1"),
        (WideSampler, "virial identity", r"expected 2, \+"),
        (ShiftedSampler, "virial identity|mean gradient", "not of the same density"),
        (UnseededSampler, "exact sampler", "other samples from another seed"),
        (WrongLastValue, "exact values, vp", "V_T, which is E"),
        (WrongNoise, "virial identity of V_0", "not of the same density"),
        (WrongValueGradient, "exact values, vp", "∇V_0 against autograd"),
        (WrongModes, "mode weights", "weight of mode 0"),
    ],
)
def test_check_energy_names_what_is_wrong(energy, check, message):
    with pytest.raises(CheckError, match=f"^{energy.__name__}: .*({check}).*({message})"):
        check_energy(energy())


def test_check_energy_reports_what_it_skipped():
    report = check_energy(Bowl())
    assert report.skipped.keys() == {
        "virial identity",
        "symmetry",
        "exact values",
        "two threads at once",
    }
    assert "types on cpu, torch.float64" in report.passed
    assert "skipped  virial identity" in str(report)
    assert "virial identity" in check_energy(BowlWithSampler()).passed
    samples = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    assert "virial identity" in check_energy(Bowl(), samples=samples).passed
    with pytest.raises(CheckError, match=r"expected samples of shape \(n, 2\), got \(1000, 1\)"):
        check_energy(Bowl(), samples=samples[:, :1])


def test_check_energy_leaves_the_energy_and_the_global_rng_alone():
    energy = GMM9().to(torch.float32)
    before = torch.get_rng_state()
    check_energy(energy, dtypes=(torch.float32,))
    assert torch.equal(before, torch.get_rng_state())
    assert energy.means.dtype == torch.float32


@pytest.mark.parametrize("mode", AutoresetMode)
def test_check_vector_env_passes_in_every_mode(mode):
    env = SamplingVectorEnv(GMM9(), num_envs=3, num_steps=4, autoreset_mode=mode)
    report = check_vector_env(env)
    assert not report.skipped and f"autoreset mode {mode.name}" in report.passed


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_check_vector_env_takes_other_peoples_environments(mode):
    env = gymnasium.make_vec(
        "CartPole-v1",
        num_envs=3,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
    )
    assert "metrics of the sampling MDP" in check_vector_env(env).skipped


@pytest.mark.parametrize("mode", AutoresetMode)
def test_check_vector_env_takes_gymnasiums_own_vector_environments(mode):
    env = gymnasium.make_vec(
        "vgs_rl/GMM9-v0",
        num_envs=3,
        num_steps=4,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
    )
    report = check_vector_env(env)
    assert f"autoreset mode {mode.name}" in report.passed and "seeding" in report.passed


@pytest.mark.parametrize(
    "wrapper",
    [
        wrappers.RecordEpisodeStatistics,
        wrappers.NormalizeReward,
        wrappers.NormalizeObservation,
        lambda env: wrappers.ClipReward(env, -1.0, 1.0),
        lambda env: wrappers.RecordEpisodeStatistics(wrappers.NormalizeReward(env)),
    ],
)
def test_check_vector_env_takes_wrappers_and_checks_the_environment_inside(wrapper):
    report = check_vector_env(wrapper(SamplingVectorEnv(GMM9(), num_envs=3, num_steps=4)))
    assert report.skipped.keys() == {"laws of the wrappers"}
    assert "metrics of the sampling MDP" in report.passed
    broken = Doubled()
    broken.set_autoreset_mode("NEXT_STEP")
    with pytest.raises(CheckError, match="minus the return"):
        check_vector_env(wrapper(broken))


class Broken(SamplingVectorEnv):
    mode = AutoresetMode.SAME_STEP

    def __init__(self):
        super().__init__(Gaussian(), num_envs=3, num_steps=4, autoreset_mode=self.mode)


class WrongSpace(Broken):
    def __init__(self):
        super().__init__()
        self.observation_space = self.single_observation_space


class NoMode(Broken):
    def __init__(self):
        super().__init__()
        self.metadata = {"autoreset_mode": "SAME_STEP"}


class DoubleObservations(Broken):
    def reset(self, **arguments):
        observations, infos = super().reset(**arguments)
        return observations.astype(np.float64), infos


class Stepped(Broken):
    def spoil(self, observations, rewards, terminated, truncated, infos):
        raise NotImplementedError

    def step(self, actions):
        return self.spoil(*super().step(actions))


class ColumnRewards(Stepped):
    def spoil(self, o, r, e, u, i):
        return o, r[:, None], e, u, i


class InfiniteRewards(Stepped):
    def spoil(self, o, r, e, u, i):
        return o, r - np.inf, e, u, i


class FailsInCorners(Broken):
    def step(self, actions):
        result = super().step(actions)
        result[1][(abs(actions) == self.action_space.high).all(-1)] = -np.inf
        return result


class NoMasks(Stepped):
    def spoil(self, o, r, e, u, i):
        return o, r, e, u, {k: v for k, v in i.items() if k != "_energy"}


class NoFinalObservation(Stepped):
    def spoil(self, o, r, e, u, i):
        return o, r, e, u, {k: v for k, v in i.items() if "final_obs" not in k}


class Endless(Stepped):
    def spoil(self, o, r, e, u, i):
        return o, r, np.zeros_like(e), u, {}


class Doubled(Stepped):
    def spoil(self, o, r, e, u, i):
        return o, 2 * r, e, u, i


class ReusedMemory(Stepped):
    def spoil(self, o, r, e, u, i):
        if not hasattr(self, "buffer"):
            self.buffer = np.empty_like(o)
        self.buffer[:] = o
        return self.buffer, r, e, u, i


class ChangedActions(Broken):
    def step(self, actions):
        result = super().step(actions)
        actions *= 0
        return result


class Coupled(Broken):
    def step(self, actions):
        return super().step(actions - actions.mean(0))


class DeafRow(Broken):
    def step(self, actions):
        return super().step(0 * actions)


class SameSeed(Broken):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=0, options=options)


class Unseeded(Broken):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=None, options=options)


class EqualRows(Broken):
    def step(self, actions):
        o, r, e, u, i = super().step(actions)
        o[1] = o[0]
        return o, r, e, u, i

    def reset(self, **arguments):
        o, i = super().reset(**arguments)
        o[1] = o[0]
        return o, i


class NotReset(Stepped):
    def spoil(self, o, r, e, u, i):
        return (i["final_obs"].copy() if e.any() else o), r, e, u, i


class RewardOfReset(Broken):
    mode = AutoresetMode.NEXT_STEP

    def step(self, actions):
        o, r, e, u, i = super().step(actions)
        return o, r - 1.0, e, u, i


class PopsMask(Broken):
    mode = AutoresetMode.DISABLED

    def reset(self, *, seed=None, options=None):
        result = super().reset(seed=seed, options=options)
        (options or {}).pop("reset_mask", None)
        return result


class ResetsAll(Broken):
    mode = AutoresetMode.DISABLED

    def reset(self, *, seed=None, options=None):
        if options and "reset_mask" in options:
            self._require_mask(options["reset_mask"])
        return super().reset(seed=seed)


class TakesAnyMask(Broken):
    mode = AutoresetMode.DISABLED

    def _require_mask(self, mask):
        pass

    def reset(self, *, seed=None, options=None):
        if options and np.shape(options["reset_mask"]) != (3,):
            options = None
        return super().reset(seed=seed, options=options)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (WrongSpace, "spaces: expected observation_space"),
        (NoMode, "to be an AutoresetMode, got 'SAME_STEP'"),
        (DoubleObservations, "observations in float32 .* got float64"),
        (ColumnRewards, r"rewards as floating array of shape \(3,\), got float64 of shape"),
        (InfiniteRewards, "expected finite rewards"),
        (FailsInCorners, "expected finite rewards"),
        (NoMasks, "boolean mask '_energy'"),
        (NoFinalObservation, r"infos\['_final_obs'\] to mark the ended rows"),
        (Endless, "every row to end an episode within max_steps"),
        (Doubled, "minus the return"),
        (ReusedMemory, "memory: expected"),
        (ChangedActions, "leave the actions as they were"),
        (Coupled, "rows are independent: expected other actions in row 0 to leave"),
        (DeafRow, "rows are independent: expected other actions in row 0 to change"),
        (SameSeed, "expected different seeds"),
        (Unseeded, "expected equal seeds and actions to give equal observations"),
        (EqualRows, "expected rows 0 and 1 to differ|leave the other rows"),
        (NotReset, "expected ended rows to be reset"),
        (RewardOfReset, "expected the step after an end to reset, with reward 0"),
        (PopsMask, "leave options\\['reset_mask'\\] in place"),
        (ResetsAll, "expected unmasked rows to stay"),
        (TakesAnyMask, "expected reset to refuse a mask"),
    ],
)
def test_check_vector_env_names_what_is_wrong(env, message):
    with pytest.raises(CheckError, match=message):
        check_vector_env(env(), max_steps=20)
