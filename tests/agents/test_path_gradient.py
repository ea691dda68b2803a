import copy
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vgs_rl import (
    MDPConfig,
    SamplingMDP,
    ScheduleConfig,
    StartConfig,
)
from vgs_rl.agents.path.pis import PathAgent, PathConfig, PISConfig
from vgs_rl.agents.path.trajectory_balance import (
    LogVarianceConfig,
    TrajectoryBalanceAgent,
    TrajectoryBalanceConfig,
    path_log_weight,
)
from vgs_rl.energy import Energy
from vgs_rl.envs import DW4, FourGauss, GaussianMixture
from vgs_rl.experiments.config import config_of, parse_run
from vgs_rl.experiments.run import load_run, train
from vgs_rl.networks.control import ControlNetwork, ControlPolicy
from vgs_rl.training.config import BudgetConfig

SMALL = {"width": 16, "depth": 2, "batch_size": 64, "prior_std": 2.0}
CONFIGS = [PISConfig, TrajectoryBalanceConfig, LogVarianceConfig]


def small_mdp(energy: Energy | None = None, num_steps: int = 6) -> SamplingMDP:
    schedule = ScheduleConfig(kind="auto", total_noise=0.9)
    config = MDPConfig(num_steps=num_steps, schedule=schedule, start=StartConfig(scale=1.2))
    return SamplingMDP(energy or FourGauss(), config)


def agent_of(
    kind: type[PathConfig], mdp: SamplingMDP | None = None, **options: object
) -> PathAgent:
    config = kind(**{**SMALL, **options})  # type: ignore[arg-type]
    agent = config.build(mdp or small_mdp(), seed=3)
    assert isinstance(agent, PathAgent)
    return agent


def randomised(agent: PathAgent, size: float = 0.1) -> PathAgent:
    """An agent whose control is not zero."""
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in (agent.network.readout, agent.network.offset, agent.network.gain):
            p.copy_(size * torch.randn(p.shape, generator=g))
    return agent


class Exact(ControlPolicy):
    """The exact control of N(0, v I), and one parameter that leads away from it."""

    def __init__(self, mdp: SamplingMDP, v: float) -> None:
        self.mdp, self.energy_term = mdp, False
        variance = mdp.chain.S[:-1] + v / mdp.chain.A[:-1] ** 2
        self.coefficient = (mdp.chain.s / variance).clone().requires_grad_(True)

    def control(self, x: Tensor, t: int | Tensor, slope: Tensor | None) -> Tensor:
        steps = t if isinstance(t, Tensor) else torch.full((len(x),), t)
        return -self.coefficient[steps].unsqueeze(-1) * x


def exact_agent(kind: type[PathConfig], v: float = 4.0) -> tuple[PathAgent, Exact]:
    """An agent with the exact control, start and noise scales of a Gaussian target."""
    mdp = SamplingMDP(
        GaussianMixture(torch.zeros(1, 2), torch.full((1, 2), v), log_z=1.7),
        MDPConfig(num_steps=4, schedule=ScheduleConfig(kind="constant", first=0.3)),
        dtype=torch.float64,
    )
    variance = mdp.chain.S + v / mdp.chain.A**2
    with torch.no_grad():
        mdp.start.log_scale.copy_(0.5 * variance[0].log())  # type: ignore[union-attr]
    for t in range(mdp.num_steps):
        covariance = variance[t + 1] / mdp.chain.a[t]
        spread = variance[t + 1] - covariance**2 / variance[t]
        mdp.rho[t] = (spread / mdp.chain.sigma[t] ** 2).sqrt()
    agent = agent_of(kind, mdp)
    agent.policy = Exact(mdp, v)
    return agent, agent.policy


@pytest.mark.parametrize("kind", CONFIGS)
def test_exact_control_of_a_gaussian_is_where_the_losses_are_least(kind: type[PathConfig]) -> None:
    agent, exact = exact_agent(kind)
    if isinstance(agent, TrajectoryBalanceAgent):
        agent.normaliser.start_at(torch.tensor(1.7))
        agent.counters.updates = 1
    gradients, losses = [], {}
    for seed in range(30):
        agent.generator.manual_seed(seed)
        loss, rollout = agent._loss()
        torch.testing.assert_close(
            rollout.log_weight.detach(), torch.full((64,), 1.7).double(), atol=1e-6, rtol=0
        )
        gradients.append(torch.autograd.grad(loss, exact.coefficient)[0])
    stacked = torch.stack(gradients)
    error = stacked.std(0) / len(stacked) ** 0.5
    assert bool((stacked.mean(0).abs() <= 4 * error + 1e-6).all())
    best = exact.coefficient.detach().clone()
    for factor in (0.9, 1.0, 1.1):
        with torch.no_grad():
            exact.coefficient.copy_(factor * best)
        values = []
        for seed in range(40):
            agent.generator.manual_seed(seed)
            values.append(float(agent._loss()[0].detach()))
        losses[factor] = sum(values) / len(values)
    assert losses[1.0] < losses[0.9] and losses[1.0] < losses[1.1]
    if kind is not PISConfig:
        assert losses[1.0] < 1e-8  # zero, without variance
        assert float(stacked.abs().max()) < 1e-5


@pytest.mark.parametrize("energy_term", [True, False])
def test_log_weight_of_recorded_paths_is_that_of_the_rollout(energy_term: bool) -> None:
    agent = randomised(agent_of(LogVarianceConfig, energy_term=energy_term))
    mdp, policy = agent.mdp, agent.policy
    slopes: list[Tensor] = []

    def record(x: Tensor, t: int) -> Tensor:
        slope = policy.slope(x)
        if slope is not None:
            slopes.append(slope)
        return policy.control(x, t, slope)

    with torch.no_grad():
        rollout = mdp.rollout(record, 50, mdp.generator(0), keep_states=True)
    assert rollout.states is not None
    stacked = torch.stack(slopes) if energy_term else None
    log_w = path_log_weight(mdp, policy, rollout.states, rollout.energy, stacked)
    torch.testing.assert_close(log_w.detach(), rollout.log_weight, atol=1e-3, rtol=1e-4)


def path_gradient(agent: PathAgent, loss: Tensor) -> Tensor:
    """The gradient of a loss in the network's parameters, as one vector."""
    parameters = list(agent.network.parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    pairs = zip(gradients, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def test_trajectory_balance_at_the_batch_mean_has_the_log_variances_gradient() -> None:
    """Exactly: ∇ mean (log w - c)² at c = mean log w is ∇ of the variance (n in place of n - 1)."""
    tb = agent_of(TrajectoryBalanceConfig)
    assert isinstance(tb, TrajectoryBalanceAgent)
    tb.counters.updates = 1
    lv = agent_of(LogVarianceConfig)
    for agent in (randomised(tb), randomised(lv)):
        agent.generator.manual_seed(9)
    log_variance, rollout = lv._loss()
    tb.normaliser.start_at(rollout.log_weight.mean())
    balance, _ = tb._loss()
    n = SMALL["batch_size"]
    torch.testing.assert_close(
        path_gradient(tb, balance), path_gradient(lv, log_variance) * (n - 1) / n,  # type: ignore[operator]
        rtol=1e-3, atol=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize("nothing", [float("nan"), -float("inf"), float("inf")])
def test_one_path_without_a_weight_does_not_ruin_the_first_normaliser(nothing: float) -> None:
    mdp = SamplingMDP(FourGauss(), MDPConfig(num_steps=3))
    agent = agent_of(TrajectoryBalanceConfig, mdp)
    assert isinstance(agent, TrajectoryBalanceAgent)
    log_w = torch.tensor([-1.0, -3.0, nothing])
    agent._loss_of(log_w)
    expected = 0.0 if nothing > 0 else -2.0 + math.log(2 / 3)
    assert float(agent.normaliser.log_z.detach()) == pytest.approx(expected)


def test_on_policy_all_losses_have_the_path_kls_gradient_in_expectation() -> None:
    """½ ∇ log-variance = ½ ∇ TB (any constant log Ẑ) = ∇ -ELBO, the gradient through the chain."""
    estimates = {}
    for kind in (TrajectoryBalanceConfig, LogVarianceConfig):
        agent = randomised(agent_of(kind, batch_size=4096), size=0.05)
        if isinstance(agent, TrajectoryBalanceAgent):
            agent.counters.updates = 1
        gradients = []
        for seed in range(30):
            agent.generator.manual_seed(seed)
            if isinstance(agent, TrajectoryBalanceAgent):
                agent.normaliser.start_at(torch.tensor(-12.0))
            loss, _ = agent._loss()
            gradients.append(0.5 * path_gradient(agent, loss))
        stacked = torch.stack(gradients).double()
        estimates[kind.name] = stacked.mean(0), stacked.var(0) / len(stacked)
    reference, variance = estimates["logvar"]
    size = float(reference.norm())
    assert size > 1
    mean, other = estimates["tb"]
    z = (mean - reference) / (variance + other).sqrt().clamp_min(1e-12)
    assert float(z.square().mean()) < 1.5
    # Through the chain ∇E would have to be differentiated; without that term nothing is left out.
    agent = randomised(agent_of(PISConfig, energy_term=False, batch_size=4096), size=0.05)
    plain = randomised(agent_of(LogVarianceConfig, energy_term=False, batch_size=4096), size=0.05)
    pairs = []
    for seed in range(30):
        both = []
        for each in (agent, plain):
            each.generator.manual_seed(seed if each is agent else 1000 + seed)
            both.append(path_gradient(each, each._loss()[0]).double())
        pairs.append(torch.stack([both[0], 0.5 * both[1]]))
    stacked = torch.stack(pairs)
    error = (stacked.var(0) / len(stacked)).sum(0).sqrt().clamp_min(1e-12)
    z = (stacked[:, 0].mean(0) - stacked[:, 1].mean(0)) / error
    used = error > 1e-9
    assert float(z[used].square().mean()) < 1.5
    assert float(stacked[:, 0].mean(0).norm()) > 10 * float(error.norm()) / len(error) ** 0.5


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_untrained_agent_is_the_uncontrolled_chain_and_training_improves_its_elbo(
    kind: type[PathConfig],
) -> None:
    mdp = small_mdp()
    agent = agent_of(kind, mdp, width=32, batch_size=128)
    uncontrolled = mdp.rollout(lambda x, t: torch.zeros_like(x), 2_000, mdp.generator(0))
    before = mdp.rollout(agent.policy, 2_000, mdp.generator(0))
    torch.testing.assert_close(before.log_weight.detach(), uncontrolled.log_weight)
    agent.learn(BudgetConfig(updates=150), progress_bar=False)
    log_weight = agent.sampler().sample(4_000, 7).log_weight
    assert log_weight is not None
    assert float(log_weight.mean()) > float(uncontrolled.log_weight.detach().mean()) + 2
    assert float(log_weight.mean()) < 0.05
    used = agent.counters
    assert used.env_steps == 150 * 128 * 6
    assert used.energy_evaluations == 150 * 128 * 7  # every x_0 … x_{T-1} for ∇E, and x_T


def test_without_the_energy_term_an_episode_costs_one_energy_evaluation() -> None:
    agent = agent_of(TrajectoryBalanceConfig, energy_term=False)
    agent.learn(BudgetConfig(updates=3), progress_bar=False)
    assert agent.counters.energy_evaluations == 3 * 64


def test_exploration_widens_training_paths_and_ends() -> None:
    agent = agent_of(TrajectoryBalanceConfig, exploration=1.6)
    scales = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        agent.progress = progress
        scales.append(agent._noise_scale())  # type: ignore[attr-defined]
    assert scales == pytest.approx([1.6, 1.3, 1.0, 1.0])


def test_particles_stay_without_a_centre_of_mass() -> None:
    config = MDPConfig(
        chain="ve",
        num_steps=5,
        schedule=ScheduleConfig(kind="geometric", first=0.3, last=1e-2),
        start=StartConfig(scale=2.0),
    )
    agent = agent_of(PISConfig, SamplingMDP(DW4(), config))
    agent.learn(BudgetConfig(updates=5), progress_bar=False)
    x = agent.sampler().sample(100, 0).x
    assert float(x.unflatten(-1, (4, 2)).mean(1).abs().max()) < 1e-4


class Steep(FourGauss):
    """Gradients that are not finite in the right half."""

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energy, gradient = super().energy_and_gradient(x)
        return energy, torch.where(x[:, :1] > 0, torch.inf, 1e6 * gradient)


def test_the_energy_term_is_bounded_and_finite() -> None:
    agent = agent_of(PISConfig, small_mdp(Steep()))
    slope = agent.policy.slope(torch.randn(100, 2) * 3)
    assert slope is not None
    assert bool(torch.isfinite(slope).all()) and float(slope.norm(dim=-1).max()) <= 100.1


@pytest.mark.parametrize("kind", CONFIGS)
def test_resuming_is_bit_for_bit(kind: type[PathConfig]) -> None:
    budget = BudgetConfig(updates=12)
    straight = agent_of(kind)
    straight.learn(budget, progress_bar=False)
    first = agent_of(kind)
    first.learn(budget, progress_bar=False, callback=lambda a: a.counters.updates < 5)
    state = copy.deepcopy(first.state_dict())
    second = agent_of(kind)
    second.load_state_dict(state)
    second.learn(budget, progress_bar=False)
    ends = (tensors(straight.state_dict()), tensors(second.state_dict()))
    for a, b in zip(*ends, strict=True):
        assert torch.equal(a, b)


def tensors(state: object) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from tensors(value)


def test_a_configuration_file_names_them_by_class_and_a_run_comes_back(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "env: FourGauss\n"
        "mdp: {num_steps: 4}\n"
        "agent: {class_path: TrajectoryBalanceConfig, init_args: {width: 8, batch_size: 16}}\n"
        "budget: {updates: 4}\n"
        "evaluation: {n_samples: 100, validation_samples: 50, validate_every: 2}\n"
        "device: cpu\n"
        f"output: {tmp_path}\n"
    )
    arguments = ["--config", str(tmp_path / "c.yaml")]
    config = config_of(parse_run(arguments))
    report = train(config, progress_bar=False)
    assert report is not None and report.agent == "tb"
    assert (tmp_path / "FourGauss/tb/0/figures/summary.png").is_file()
    agent = load_run(tmp_path / "FourGauss/tb/0")
    assert isinstance(agent, TrajectoryBalanceAgent)


def test_impossible_settings_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"agent\.batch_size must be at least 2, got 1"):
        PISConfig(batch_size=1)
    with pytest.raises(ValueError, match=r"agent\.exploration must be at least 1, got 0.5"):
        TrajectoryBalanceConfig(exploration=0.5)
    with pytest.raises(ValueError, match=r"agent\.log_z_lr must be a positive number"):
        TrajectoryBalanceConfig(log_z_lr=0)


def test_the_network_takes_one_step_per_row_or_one_for_all() -> None:
    mdp = small_mdp()
    network = ControlNetwork(
        mdp, scale=2.0, width=8, depth=2, generator=torch.Generator().manual_seed(0)
    )
    torch.nn.init.normal_(network.readout)
    policy = ControlPolicy(mdp, network, energy_term=False, max_gradient=1.0)
    x = torch.randn(6, 2)
    together = policy.control(x, torch.arange(6), None)
    for t in range(6):
        torch.testing.assert_close(policy(x[t : t + 1], t), together[t : t + 1])
