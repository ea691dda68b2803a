"""One agent for all values of an energy's parameters."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch.distributions import Normal

import vgs_rl
from vgs_rl import (
    PIS,
    VGS,
    ConditionalEnergy,
    MDPConfig,
    SamplingMDP,
    ScheduleConfig,
    StartConfig,
)
from vgs_rl.agents import (
    TD0,
    ClusterNetwork,
    GradientMatching,
    MixtureNetwork,
    MLPNetwork,
)
from vgs_rl.conditional.start import ConditionalStart, NoisedMixedStart
from vgs_rl.envs import GMM9, Gaussian, SamplingEnv, SamplingVectorEnv
from vgs_rl.envs.configured import ranged_config, tuned_config
from vgs_rl.evaluation.conditional.curve import log_z_curve
from vgs_rl.experiments.config import run_config
from vgs_rl.files.shipped import CONFIGS
from vgs_rl.networks.config import NetworkConfig
from vgs_rl.training.config import read_yaml

TAUS = (0.5, 0.7, 1.0, 1.4, 2.0)
SMALL = {
    "network": MLPNetwork(width=16, depth=2),
    "objective": GradientMatching(
        batch_size=256, refresh_every=10, refresh_size=256, first_size=512, start_size=512
    ),
}


class Wells(ConditionalEnergy):
    """Two parameters, one state: E = barrier (x² - 1)² + tilt x."""

    dim = 1
    ranges: Mapping[str, tuple[float, float]] = {"barrier": (0.5, 3.0), "tilt": (-1.0, 1.0)}

    def energy(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return c[:, 0] * (x[:, 0] ** 2 - 1) ** 2 + c[:, 1] * x[:, 0]


@dataclass(kw_only=True)
class OwnNetwork(NetworkConfig):
    """One that knows no parameters."""

    def build(self, mdp, *, prior_std, generator):
        raise NotImplementedError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def disturbed(agent: VGS, seed: int = 1) -> VGS:
    """An agent whose network, start and noise scales are anything."""
    random = generator(seed)
    with torch.no_grad():
        for network in (agent.network, agent.average):
            random.manual_seed(seed)
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
        # Not so narrow that the weights' variance would be infinite.
        agent.mdp.rho.copy_(0.8 + 0.2 * torch.rand(agent.mdp.rho.shape, generator=random))
        x = 2 * torch.randn(4_000, agent.mdp.dim, generator=random)
        rows = agent.mdp.with_conditions(x, random)
        rows[:, 0] *= (
            1 + agent.mdp.conditions.unit(rows[:, agent.mdp.geometry.moving :])[:, 0].abs()
        )
        agent.mdp.start.fit(rows, random)
    return agent


def small(
    target: object = "GMM9",
    start: str = "mixture",
    chain: str = "vp",
    scale: float = 2.0,
    components: int = 3,
    **options: object,
) -> VGS:
    mdp = MDPConfig(
        chain=chain,
        num_steps=6,
        schedule=ScheduleConfig(total_noise=0.9 if chain == "vp" else 9.0),
        start=StartConfig(kind=start, scale=scale, components=components),
    )
    options = {"temperature": (0.5, 2.0)} | options
    return VGS(target, mdp=mdp, device="cpu", **(SMALL | options))


@pytest.mark.parametrize("chain", ["vp", "ve"])
@pytest.mark.parametrize("start", ["gaussian", "mixture"])
@pytest.mark.parametrize("tau", [0.5, 0.83, 2.0])
def test_log_weights_are_those_of_the_kernels_written_down(
    chain: str, start: str, tau: float
) -> None:
    agent = disturbed(small(start=start, chain=chain))
    mdp = agent.mdp.at(tau)
    rows = mdp.rollout(agent.policy, 64, generator(), keep_states=True)
    assert rows.states is not None
    x, c = rows.states[..., :2].double(), rows.states[..., 2:]
    assert bool((c == torch.tensor(tau)).all())  # nothing has moved them
    log_w = -GMM9()(x[-1]) / tau - agent.mdp.start.log_prob(rows.states[0])
    hats = agent.mdp.conditions.hats(torch.tensor([[tau]]))
    for t in range(mdp.num_steps):
        a, s = float(mdp.chain.a[t]), float(mdp.chain.s[t])
        rho = float((hats * mdp.rho[t]).sum())
        leaf = rows.states[t].clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(agent.average.value(leaf, t).sum(), leaf)
        mean = a * (x[t] - s**2 * slope[:, :2].double())
        log_w = log_w + Normal(x[t + 1] / a, s).log_prob(x[t]).sum(-1)
        log_w = log_w - Normal(mean, rho * a * s).log_prob(x[t + 1]).sum(-1)
    assert torch.allclose(rows.log_weight.double(), log_w, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("start", ["gaussian", "mixture", "product"])
@pytest.mark.parametrize("tau", TAUS)
def test_weights_are_unbiased_for_z_at_every_temperature(start: str, tau: float) -> None:
    energy = Gaussian((0.5, -0.5), ((1.0, 0.4), (0.4, 0.8)))
    agent = disturbed(small(energy, start))
    log_weight = agent.sample(20_000, temperature=tau).log_weight.double()
    ratio = (log_weight - energy.log_z_at(tau)).exp()
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / math.sqrt(len(ratio))


@pytest.mark.parametrize("start", ["noised", "noised_product"])
def test_a_value_that_begins_as_a_mixture_knows_the_starts_of_all_temperatures(start: str) -> None:
    energy = Gaussian((0.5, -0.5), ((1.0, 0.4), (0.4, 0.8)))
    agent = small(energy, start, network=MixtureNetwork(width=8, guided=False))
    mixed = agent.mdp.start
    assert isinstance(mixed, NoisedMixedStart)
    rows = torch.randn(400, 3, generator=generator())
    rows[:, 2] = rows[:, 2].exp().clamp(0.5, 2.0)
    mixed.fit(rows, generator())
    t = torch.arange(400) % 6
    torch.testing.assert_close(agent.network.value(rows, t), mixed.value(rows, t))
    torch.testing.assert_close(mixed.value(rows, 0), -mixed.log_prob(rows))
    rows.requires_grad_(True)
    (slope,) = torch.autograd.grad(mixed.value(rows, t).sum(), rows)
    found = agent.network.gradient(rows, t)
    torch.testing.assert_close(found[:, :2], slope[:, :2], rtol=1e-4, atol=1e-5)
    assert not found[:, 2].any()  # the parameter does not move


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("tau", [0.5, 0.83, 2.0])
def test_weights_of_a_mixtures_value_are_unbiased_for_z(guided: bool, tau: float) -> None:
    energy = Gaussian((0.5, -0.5), ((1.0, 0.4), (0.4, 0.8)))
    agent = disturbed(small(energy, "noised", network=MixtureNetwork(width=8, guided=guided)))
    log_weight = agent.sample(5_000, temperature=tau).log_weight.double()
    ratio = (log_weight - energy.log_z_at(tau)).exp()
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / math.sqrt(len(ratio))


def test_a_guides_evaluations_count_at_one_temperature_and_not_in_training() -> None:
    agent = small(start="noised", network=MixtureNetwork(width=8))
    agent.learn(updates=1, progress_bar=False)
    used = agent.mdp.energy_evaluations
    steps = agent.mdp.num_steps
    assert agent.sample(50, temperature=0.7).energy_evaluations == 50 * (steps + 1)
    agent.evaluate(50, temperature=0.7)
    assert agent.mdp.energy_evaluations == used


def test_a_correlated_target_is_learned_over_temperature_from_its_mixtures() -> None:
    energy = Gaussian((0.5, -0.5), ((1.0, 0.4), (0.4, 0.8)))
    objective = GradientMatching(
        batch_size=64, refresh_every=10, refresh_size=512, first_size=2_048, start_size=2_048
    )
    network = MixtureNetwork(width=8)
    agent = small(energy, "noised", network=network, objective=objective, components=1, seed=1)
    agent.learn(updates=60, progress_bar=False)
    for tau in (0.5, 2.0):
        assert agent.sample(2_000, temperature=tau).ess > 0.8


def test_weights_backwards_are_unbiased_for_one_over_z() -> None:
    energy, tau = Gaussian((0.2, 0.0), (1.0, 0.9)), 0.8
    agent = small(energy, "gaussian", scale=1.0)
    x = energy.sample_at(20_000, tau, generator())
    log_weight = agent.sampler().at(tau).reverse_log_weight(x, generator(1)).double()
    ratio = (energy.log_z_at(tau) - log_weight).exp()
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / math.sqrt(len(ratio))


def test_particles_are_learned_at_every_temperature_from_annealed_first_states() -> None:
    objective = GradientMatching(
        batch_size=64,
        refresh_every=5,
        refresh_size=64,
        capacity=256,
        refine_steps=2,
        first_anneal_steps=3,
        first_refine_steps=2,
        posterior_steps=1,
        start_size=256,
    )
    network = ClusterNetwork(reach=7.5, radial=8, width=8, pooled=8, knots=4, relax=0.4, stages=2)
    mdp = MDPConfig(num_steps=10, schedule=ScheduleConfig(kind="geometric", first=0.5, last=5e-3))
    agent = VGS(
        "DW4",
        mdp=mdp,
        network=network,
        objective=objective,
        prior_std=2.0,
        temperature=(0.5, 2.0),
        seed=0,
        device="cpu",
    )
    agent.learn(updates=6, progress_bar=False)
    rows = agent.objective.source.rows.state_dict()["x"]  # type: ignore[attr-defined]
    own = rows[:, -1].unique()  # each row has its own value, all over the range
    assert len(own) > 200 and bool(((own >= 0.5) & (own <= 2.0)).all())
    assert float(own.log().diff().max()) < 0.1
    samples = agent.sample(500, temperature=0.7)
    assert samples.x.shape == (500, 8) and bool(samples.x.isfinite().all())
    centre = samples.x.view(500, 4, 2).mean(1)
    assert torch.allclose(centre, torch.zeros_like(centre), atol=1e-4)


@pytest.mark.parametrize("start", ["gaussian", "mixture", "product", "noised"])
def test_a_start_is_a_density_of_x_at_every_value(start: str) -> None:
    agent = disturbed(small(start=start))
    axis = torch.linspace(-14, 14, 141)
    grid = torch.cartesian_prod(axis, axis)
    for tau in (0.5, 0.77, 2.0):
        rows = torch.cat([grid, torch.full((len(grid), 1), tau)], -1)
        mass = agent.mdp.start.log_prob(rows).detach().double().exp().sum() * 0.2**2
        assert float(mass) == pytest.approx(1.0, abs=1e-3)
        assert isinstance(agent.mdp.start, ConditionalStart)
        x = agent.mdp.at(tau).start.sample(4_000, generator())
        inside = (x[:, :2].norm(dim=-1) < 2).double().mean()
        near = grid.norm(dim=-1) < 2
        share = agent.mdp.start.log_prob(rows).detach().double().exp()[near].sum() * 0.2**2
        assert abs(float(inside - share)) < 0.05


def test_the_networks_gradient_is_that_of_its_value_and_none_along_the_parameters() -> None:
    agent = disturbed(small(Wells(), temperature=None))
    x = torch.randn(20, 3, generator=generator())
    rows = agent.mdp.with_conditions(x, generator()).requires_grad_(True)
    t = torch.arange(20) % 6
    (slope,) = torch.autograd.grad(agent.average.value(rows, t).sum(), rows)
    gradient = agent.average.gradient(rows.detach(), t)
    assert torch.allclose(gradient[:, :1], slope[:, :1], atol=1e-4)
    assert float(gradient[:, 1:].abs().max()) == 0.0


def test_a_run_that_was_saved_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = small(seed=3).learn(updates=24, progress_bar=False)
    part = small(seed=3)
    part.learn(updates=24, progress_bar=False, callback=lambda it: it.counters.updates < 12)
    part.save(tmp_path / "agent.pt")
    loaded = VGS.load(tmp_path / "agent.pt", device="cpu")
    loaded.learn(updates=24, progress_bar=False)
    for name in ("network", "mdp"):
        states = (getattr(each, name).state_dict() for each in (whole, loaded))
        for one, other in zip(*(state.values() for state in states), strict=True):
            assert torch.equal(one, other)
    samples = (each.sample(50, temperature=0.9) for each in (whole, loaded))
    one, other = samples
    assert torch.equal(one.x, other.x) and torch.equal(one.log_weight, other.log_weight)


def test_bounds_of_log_z_hold_at_five_temperatures_and_so_do_their_differences() -> None:
    agent = small(seed=1).learn(updates=60, progress_bar=False)
    curve = agent.log_z_curve(TAUS, n=2_000)
    truth = [GMM9().log_z_at(tau) for tau in TAUS]
    assert curve.exact == pytest.approx(truth)
    for proven, log_z in zip(curve.certificates, truth, strict=True):
        assert proven.log_z_low <= log_z <= proven.log_z_high
    found = curve.difference(0, -1)
    assert found.low <= truth[-1] - truth[0] <= found.high
    assert "log_z_high" in repr(curve) and curve.plot() is not None


@pytest.mark.slow
def test_one_training_learns_nine_modes_at_every_temperature() -> None:
    agent = VGS("GMM9", temperature=(0.5, 2.0), device="cpu", seed=0)
    agent.learn(updates=1_500, progress_bar=False)
    curve = agent.log_z_curve(TAUS, n=10_000)
    for tau, proven, elbo in zip(TAUS, curve.certificates, curve.elbos, strict=True):
        truth = GMM9().log_z_at(tau)
        assert proven.log_z_low <= truth <= proven.log_z_high
        assert truth - elbo < 0.5 and proven.ess > 0.4


@pytest.mark.parametrize(
    ("target", "temperature", "name"),
    [
        ("GMM9", (0.5, 2.0), "conditional/gmm9"),
        ("vgs_rl/DW4-v0", (0.5, 2.0), "conditional/dw4"),
        ("Phi4L8Coupling", None, "conditional/phi4"),
    ],
)
def test_a_target_over_a_range_comes_with_the_settings_found_for_it(
    target: str, temperature: tuple[float, float] | None, name: str
) -> None:
    agent = VGS(target, temperature=temperature, device="cpu")
    shipped = run_config(read_yaml(CONFIGS / f"{name}.yaml"))
    assert agent.config == shipped.agent and agent.mdp.config == shipped.mdp
    assert (ranged_config(target) if temperature else tuned_config(target)) == name


def test_a_range_may_be_another_than_the_shipped_one() -> None:
    agent = VGS("GMM9", temperature=(0.8, 1.5), device="cpu")
    assert agent.mdp.config.temperature == (0.8, 1.5)
    assert isinstance(agent.config.network, MixtureNetwork)
    assert ranged_config("GMM25") is None and ranged_config("Phi4L8Coupling") is None


def test_a_report_at_a_temperature_compares_with_exact_samples_there() -> None:
    agent = small()
    report = agent.evaluate(400, temperature=0.7)
    assert report.target == "GMM9, temperature 0.7"
    assert report.details["condition"] == {"temperature": 0.7}
    assert {"tvd_energy", "log_z_error", "log_z_low", "log_z_high", "elbo"} <= set(report.metrics)
    assert agent.evaluate(400).details["condition"] == {"temperature": 1.0}
    assert "mode_weight_error" in agent.evaluate(400).metrics


def test_a_users_energy_of_two_parameters_is_learned_at_all_of_them() -> None:
    agent = small(Wells(), temperature=None).learn(updates=30, progress_bar=False)
    x = torch.linspace(-4, 4, 2_001, dtype=torch.float64).unsqueeze(-1)
    for barrier, tilt in ((0.5, -1.0), (2.0, 0.3)):
        energy = Wells().at({"barrier": barrier, "tilt": tilt})
        log_z = torch.logsumexp(-energy(x), 0) + math.log(8 / 2_000)
        samples = agent.sample(8_000, condition={"tilt": tilt, "barrier": barrier})
        ratio = (samples.log_weight.double() - log_z).exp()
        assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / math.sqrt(8_000)
        assert samples.x.shape == (8_000, 1)
    named = agent.sample(10, barrier=2.0, tilt=0.3)
    assert torch.equal(named.x, agent.sample(10, condition=(2.0, 0.3)).x)
    assert agent.evaluate(100).details["condition"] == {"barrier": 1.75, "tilt": 0.0}


def test_resampled_rows_are_of_the_value_that_was_asked_for() -> None:
    agent = small(Gaussian())
    samples = agent.sample(500, resample=True, temperature=0.6)
    assert samples.x.shape == (500, 2) and not samples.independent


def test_an_environment_with_parameters_is_a_contextual_mdp() -> None:
    env = SamplingEnv(GMM9(), mdp=MDPConfig(temperature=(0.5, 2.0), num_steps=3))
    check_env(env, skip_render_check=True)
    assert env.action_space.shape == (2,) and env.observation_space.shape == (4,)
    drawn = {float(env.reset(seed=seed)[0][2]) for seed in range(3)}
    assert len(drawn) == 3 and all(0.5 <= tau <= 2.0 for tau in drawn)
    observation, _ = env.reset(seed=0, options={"condition": 0.7})
    while True:
        assert observation[2] == np.float32(0.7) and env.observation_space.contains(observation)
        observation, _, ended, _, info = env.step(np.zeros(2, np.float32))
        if ended:
            break
    x = torch.from_numpy(observation[None, :2])
    assert info["energy"] == pytest.approx(float(GMM9()(x)) / 0.7, rel=1e-4)
    with pytest.raises(ValueError, match=r"temperature must be in \[0.5, 2\], got 4"):
        env.reset(options={"condition": {"temperature": 4.0}})
    with pytest.raises(ValueError, match="condition must be left out: GMM9 has no parameters"):
        gymnasium.make("vgs_rl/GMM9-v0").reset(options={"condition": 0.7})


def test_weights_of_environments_are_unbiased_at_the_value_of_the_reset() -> None:
    energy = Gaussian((0.0, 0.0), (1.0, 1.0))
    start = StartConfig(scale=1.2)
    mdp = SamplingMDP(energy, MDPConfig(temperature=(0.5, 2.0), num_steps=3, start=start))
    envs = SamplingVectorEnv(mdp, num_envs=20_000, autoreset_mode="DISABLED")
    envs.reset(seed=0, options={"condition": 1.5})
    for _ in range(3):
        _, _, _, _, infos = envs.step(np.zeros((20_000, 2), np.float32))
    ratio = np.exp(infos["log_weight"] - energy.log_z_at(1.5))
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(len(ratio))


def test_what_knows_no_parameters_refuses_them_by_name() -> None:
    for settings, message in (
        (
            {"network": OwnNetwork()},
            "agent.network must be MLPNetwork, MixtureNetwork or ClusterNetwork for an",
        ),
        ({"network": MixtureNetwork()}, "needs mdp.start.kind noised or noised_product, got mix"),
        (
            {"network": ClusterNetwork(guide=4)},
            "agent.network.guide must be 0 for an energy with p",
        ),
        ({"drift": "bellman"}, "agent.drift must be posterior"),
        ({"objective": TD0()}, "agent.objective must be GradientMatching"),
        ({"objective": GradientMatching(references=4_096)}, "references must be 0 for an energy"),
    ):
        with pytest.raises(ValueError, match=message):
            small(**settings)
    with pytest.raises(ValueError, match="PISAgent learns no parameters, got "):
        PIS("FourGauss", temperature=(0.5, 2.0), device="cpu")
    with pytest.raises(ValueError, match="temperature must be left out: FourGauss has no param"):
        VGS("FourGauss", device="cpu").sample(3, temperature=0.7)
    with pytest.raises(ValueError, match="condition must be left out beside temperature"):
        small().sample(3, condition=0.7, temperature=0.7)
    with pytest.raises(ValueError, match="log_z_curve needs a conditional energy, got GMM9"):
        log_z_curve(VGS("GMM9", device="cpu").sampler(), GMM9())
    with pytest.raises(ValueError, match="an error budget is of one energy"):
        vgs_rl.error_budget(small().sampler())
    with pytest.raises(ValueError, match=r"mdp.temperature must be a range"):
        MDPConfig(temperature=(2.0, 0.5))


class Barrier(ConditionalEnergy):
    dim = 1
    ranges = {"barrier": (0.5, 3.0)}

    def energy(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return c[:, 0] * (x[:, 0] ** 2 - 1) ** 2


class Column(Barrier):
    def energy(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return c * x**2


class Undeclared(ConditionalEnergy):
    dim = 1

    def energy(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return x[:, 0] ** 2


class Taken(Barrier):
    def __init__(self) -> None:
        super().__init__()
        self.conditions = {"barrier": (0.5, 3.0)}


@pytest.mark.parametrize(
    "draw",
    [
        lambda: vgs_rl.MALA(Barrier(), num_chains=2, num_steps=2),
        lambda: vgs_rl.HMC(Barrier(), num_chains=2, num_steps=2),
        lambda: vgs_rl.ParallelTempering(Barrier(), num_chains=2, num_steps=2),
        lambda: vgs_rl.AIS(Barrier(), num_steps=2),
        lambda: vgs_rl.SMC(Barrier(), num_steps=2),
        lambda: vgs_rl.sample(Barrier(), 10, seconds=1),
        lambda: VGS(Barrier(), device="cpu", one_step=True),
    ],
)
def test_what_draws_from_one_energy_says_how_to_name_it(draw: Callable[[], object]) -> None:
    message = "one energy, got Barrier with parameters .barrier.: its `at` gives that of one value"
    with pytest.raises(ValueError, match=message):
        draw()


def test_mistakes_in_an_own_conditional_energy_name_its_class() -> None:
    for made, message in (
        (Column, r"Column.energy must return shape \(B,\) = \(64,\), got \(64, 1\)"),
        (Undeclared, "Undeclared.ranges must be set"),
        (Taken, "Taken.conditions cannot hold this: .* parameters are declared by `ranges`"),
    ):
        with pytest.raises(ValueError, match=message):
            VGS(made(), device="cpu")
