"""The published algorithm, beside formulas that are written here from the paper's description."""

import copy
import math

import pytest
import torch

from vgs_rl import (
    Energy,
    MDPConfig,
    SamplingMDP,
    ScheduleConfig,
    StartConfig,
)
from vgs_rl.agents import (
    TD0,
    EBMTrainer,
    PublishedNetwork,
    ValueGradientAgent,
    ValueGradientConfig,
)
from vgs_rl.experiments.config import config_of, parse_run
from vgs_rl.experiments.detectors.config import named_detector
from vgs_rl.experiments.run import build
from vgs_rl.training.config import BudgetConfig

STEPS, BATCH, DIM, CLIP = 5, 16, 3, 2.0


class Steep(Energy):
    """A quartic that soon leaves the clip behind."""

    dim = DIM

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        return (x**4).sum(-1) / 4


def make(**options: object) -> ValueGradientAgent:
    config = MDPConfig(
        chain="vp",
        num_steps=STEPS,
        schedule=ScheduleConfig(kind="quadratic", first=0.3, last=0.1),
        start=StartConfig(kind="gaussian", scale=1.0),
    )
    objective = TD0(batch_size=BATCH, passes=2, noise_scale=1.2, energy_clip=CLIP, start_lr=0.01)
    settings = {"drift_clip": CLIP, "ema": 0.9, "lr": 1e-4, **options}
    agent = ValueGradientConfig(
        drift="bellman",
        fit_noise_scale=False,
        network=PublishedNetwork(width=8, over_dim=True),
        objective=objective,
        final_lr=1.0,
        warmup=0,
        **settings,  # type: ignore[arg-type]
    )
    mdp = SamplingMDP(Steep(), config, dtype=torch.float64)
    return ValueGradientAgent(mdp, agent, seed=1)


def slope_of(function: object, x: torch.Tensor) -> torch.Tensor:
    x = x.detach().requires_grad_(True)
    return torch.autograd.grad(function(x).sum(), x)[0]  # type: ignore[operator]


def published_step(agent: ValueGradientAgent, x: torch.Tensor, t: int) -> torch.Tensor:
    """mu, what a step takes from a_t x: s² a² times the slope of V_{t+1}, at last of min(E, c)."""
    s2 = torch.linspace(math.sqrt(0.3), math.sqrt(0.1), STEPS, dtype=torch.float64)[t] ** 2
    a = (1 / (1 - s2)).sqrt()
    if t + 1 < STEPS:
        slope = slope_of(lambda y: agent.average.value(y, t + 1), a * x)
    else:
        slope = slope_of(lambda y: ((y**4).sum(-1) / 4).clamp(max=CLIP), a * x)
    return s2 * a**2 * slope


def test_targets_are_the_published_ones_state_by_state() -> None:
    agent = make()
    x = 2.0 * torch.randn(40, DIM, dtype=torch.float64, generator=agent.mdp.generator(2))
    t = torch.arange(40) % STEPS
    before = agent.generator.get_state()
    target = agent.config.objective.target(agent, x, t)  # type: ignore[attr-defined]
    agent.generator.set_state(before)
    noise = torch.randn(40, DIM, dtype=torch.float64, generator=agent.generator)
    s2 = torch.linspace(math.sqrt(0.3), math.sqrt(0.1), STEPS, dtype=torch.float64) ** 2
    beyond = 0
    for i in range(40):
        k = int(t[i])
        a = (1 / (1 - s2[k])).sqrt()
        mu = published_step(agent, x[i : i + 1], k)[0]
        after = a * x[i] - mu + s2[k].sqrt() * a * noise[i]
        cost = 0.5 * mu.square().sum() / (s2[k] * a**2)
        if k + 1 == STEPS:
            energy = float((after**4).sum() / 4)
            beyond += energy > CLIP
            ahead = min(energy, CLIP)
        else:
            ahead = float(agent.average.value(after[None], k + 1).detach())
        expected = ahead + float(cost - DIM * a.log())
        assert target[i].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert beyond >= 2


def test_the_policys_step_is_the_published_one_and_stands_still_beyond_the_clip() -> None:
    agent = make()
    x = torch.tensor([[0.1, -0.3, 0.2], [3.0, 0.0, -2.0]], dtype=torch.float64)
    for t in range(STEPS):
        push = -agent.mdp.chain.sigma[t] * agent.policy(x, t)
        torch.testing.assert_close(push, published_step(agent, x, t))
    assert not agent.policy(x, STEPS - 1)[1].any()
    assert agent.policy(x, STEPS - 1)[0].all()


def test_the_loss_is_the_mean_square_of_what_is_learned_divided_by_dimension() -> None:
    agent = make()
    twin = copy.deepcopy(agent)
    loss, _ = agent.objective.loss(agent)
    # The same draws once more: states of widened noise, an order, then the next states' noise.
    mdp = twin.mdp
    start = 1.2 * torch.randn(BATCH, DIM, dtype=torch.float64, generator=twin.generator)
    states, x = [start], start
    for t in range(STEPS - 1):
        noise = torch.randn(BATCH, DIM, dtype=torch.float64, generator=twin.generator)
        x = mdp.chain.a[t] * x - published_step(twin, x, t) + 1.2 * mdp.chain.sigma[t] * noise
        states.append(x)
    torch.randn(BATCH, DIM, dtype=torch.float64, generator=twin.generator)  # the last step's
    order = torch.cat([torch.randperm(STEPS * BATCH, generator=twin.generator) for _ in range(2)])
    rows = order[:BATCH]
    x, t_rows = torch.cat(states)[rows], rows // BATCH
    target = twin.config.objective.target(twin, x, t_rows)  # type: ignore[attr-defined]
    expected = ((twin.network.value(x, t_rows) - target) / DIM).square().mean()
    torch.testing.assert_close(loss, expected)


def test_an_iteration_ends_with_one_average_and_then_one_step_of_adam_on_s0_itself() -> None:
    agent = make()
    first = [p.detach().clone() for p in agent.average.parameters()]
    updates = 2 * STEPS  # two passes over T minibatches of the batch size
    for _ in range(updates - 1):
        agent.update()
        assert all(map(torch.equal, first, agent.average.parameters()))
        assert float(agent.mdp.start.scale.detach()) == 1.0  # type: ignore[arg-type]
    agent.update()
    for old, new, average in zip(
        first, agent.network.parameters(), agent.average.parameters(), strict=True
    ):
        torch.testing.assert_close(average, 0.9 * old + 0.1 * new)
    # Adam's first step is the learning rate, whatever the gradient's size.
    moved = float(agent.mdp.start.scale.detach()) - 1.0  # type: ignore[arg-type]
    assert abs(moved) == pytest.approx(0.01, rel=1e-4)
    z = torch.randn(100_000, DIM, dtype=torch.float64, generator=agent.mdp.generator(5))
    slope = float((slope_of(lambda y: agent.average.value(y, 0), z) * z).sum(-1).mean()) - DIM
    assert moved * slope < 0


def test_td0_by_default_is_the_published_objective_of_the_mixtures() -> None:
    objective = TD0()
    assert (objective.batch_size, objective.passes, objective.noise_scale, objective.start_lr) == (
        128,
        1,
        1.2,
        1e-3,
    )
    assert (objective.loss_kind, objective.scale_by_dim, objective.control_variate) == (
        "l2",
        True,
        False,
    )
    config = config_of(parse_run(["--config", "configs/paper/gmm9.yaml"]))
    assert config.agent.objective == objective  # type: ignore[attr-defined]


def test_no_target_of_the_published_funnel_is_beyond_its_clip_by_more_than_the_drift_costs() -> (
    None
):
    # Without the clip in the drift, states in the neck have targets in the millions.
    config = config_of(parse_run(["--config", "configs/paper/funnel10.yaml"]))
    config.agent.network = PublishedNetwork(width=16, over_dim=True, form="joined")  # type: ignore[attr-defined]
    agent = build(config)[1]
    assert isinstance(agent, ValueGradientAgent)
    x = 2.5 * torch.randn(2_000, 10, generator=agent.mdp.generator(0))
    x[:, 0] -= 5.0
    last = torch.full((2_000,), agent.mdp.num_steps - 1)
    target = agent.config.objective.target(agent, x, last)  # type: ignore[attr-defined]
    assert target.max().item() < 101.0


def test_the_published_settings_of_mvtec_train_the_authors_network_in_their_proportions() -> None:
    config = named_detector("paper/mvtec")
    objective = config.ebm.negatives.agent.objective
    # Each of T x 784 states three times, in minibatches of 784, for one update of the energy.
    assert config.ebm.agent_updates == config.ebm.mdp.num_steps * objective.passes
    assert objective.batch_size == config.ebm.learner.batch_size == 4 * 14 * 14
    data = torch.nn.functional.normalize(torch.randn(64, 272, generator=torch.Generator()), dim=1)
    config.ebm.pretrain_steps, config.ebm.agent_updates = 0, 1
    objective.batch_size = config.ebm.learner.batch_size = 16  # of the same networks, for speed
    trainer = EBMTrainer(data, config.ebm, seed=0)
    network = trainer.negatives.agent.network  # type: ignore[attr-defined]
    assert sum(p.numel() for p in network.parameters()) == 2_206_721 + (272 - 78) * 512
    assert trainer.learn(BudgetConfig(updates=1), progress_bar=False)
