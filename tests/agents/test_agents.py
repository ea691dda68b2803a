import copy
import math
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

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
    ExactSampler,
    GradientMatching,
    LogVarianceConfig,
    MLPNetwork,
    PISConfig,
    PublishedNetwork,
    SoftBellman,
    TrajectoryBalanceConfig,
    ValueGradientAgent,
    ValueGradientConfig,
    ValueObjective,
    oracle_sampler,
)
from vgs_rl.agents.value_gradient.buffer import WeightedBuffer
from vgs_rl.agents.value_gradient.gradient_matching import GradientMatchingLearner
from vgs_rl.agents.value_gradient.sources import WeightedSource
from vgs_rl.agents.value_gradient.td import TrajectoryLearner
from vgs_rl.envs import (
    GMM9,
    FourGauss,
    Funnel,
    GaussianMixture,
)
from vgs_rl.files.checkpoint import load_checkpoint
from vgs_rl.samplers.base import Sampler, Samples
from vgs_rl.training.config import BudgetConfig, EvaluationConfig
from vgs_rl.training.folder import RunFolder
from vgs_rl.weights import log_z_estimate

QUIET = {"progress_bar": False}


def small_mdp(energy: object = None, num_steps: int = 10) -> SamplingMDP:
    schedule = ScheduleConfig(kind="auto", total_noise=0.9)
    config = MDPConfig(num_steps=num_steps, schedule=schedule, start=StartConfig(scale=1.2))
    return SamplingMDP(energy or FourGauss(), config)  # type: ignore[arg-type]


def small_agent(
    objective: ValueObjective | None = None, mdp: SamplingMDP | None = None, **options: object
) -> ValueGradientAgent:
    objective = objective or GradientMatching(
        batch_size=256, refresh_every=10, refresh_size=256, first_size=512, capacity=2048
    )
    options.setdefault("network", MLPNetwork(width=32, depth=2))
    config = ValueGradientConfig(objective=objective, prior_std=2.0, **options)  # type: ignore[arg-type]
    return ValueGradientAgent(mdp or small_mdp(), config, seed=3)


def matching(agent: ValueGradientAgent) -> GradientMatchingLearner:
    assert isinstance(agent.objective, GradientMatchingLearner)
    return agent.objective


def add_rows(learner: GradientMatchingLearner, *rows: torch.Tensor) -> None:
    assert isinstance(learner.source, WeightedSource)
    learner.source.rows.add(*rows)


def scores(agent: ValueGradientAgent, t: torch.Tensor) -> tuple[torch.Tensor, ...]:
    learner = matching(agent)
    return learner.targets.draw(learner.source, t, agent.generator)


def trajectories(agent: ValueGradientAgent) -> TrajectoryLearner:
    assert isinstance(agent.objective, TrajectoryLearner)
    return agent.objective


def gaussian_agent(objective: ValueObjective, drift: str) -> tuple[ValueGradientAgent, SamplingMDP]:
    """An agent whose untrained network is the exact value, with the exact noise scales."""
    target = GaussianMixture(torch.zeros(1, 2), torch.full((1, 2), 4.0))
    config = MDPConfig(num_steps=4, schedule=ScheduleConfig(kind="constant", first=0.3))
    mdp = SamplingMDP(target, config, dtype=torch.float64)
    for t in range(mdp.num_steps):  # var(x_{t+1} | x_t) of a Gaussian chain, over sigma_t²
        before, after = (mdp.chain.S[k] + 4.0 / mdp.chain.A[k] ** 2 for k in (t, t + 1))
        covariance = after / mdp.chain.a[t]
        mdp.rho[t] = ((after - covariance**2 / before) / mdp.chain.sigma[t] ** 2).sqrt()
    config = ValueGradientConfig(
        objective=objective, prior_std=2.0, drift=drift, network=MLPNetwork(width=8, depth=1)
    )  # type: ignore[arg-type]
    return ValueGradientAgent(mdp, config), mdp


def elbo(agent: ValueGradientAgent, n: int = 4000) -> float:
    log_weight = agent.sampler().sample(n, 7).log_weight
    assert log_weight is not None
    return float(log_weight.mean())


# --- the objectives' targets, at the exact value -------------------------------------------------


@pytest.mark.parametrize("objective", [SoftBellman(draws=3), TD0(control_variate=True)])
def test_backup_reproduces_the_exact_value_without_variance(objective: TD0 | SoftBellman) -> None:
    agent, mdp = gaussian_agent(objective, "posterior")
    x = mdp.noise(200, mdp.generator(0)) * 2
    t = torch.arange(200) % mdp.num_steps
    target = objective.target(agent, x, t)
    torch.testing.assert_close(target, agent.average.value(x, t).detach(), rtol=1e-6, atol=1e-6)


def test_td_target_has_the_exact_value_as_its_mean() -> None:
    objective = TD0()
    agent, mdp = gaussian_agent(objective, "posterior")
    x = mdp.noise(5, mdp.generator(0)).repeat(20_000, 1)
    for step in range(mdp.num_steps):
        t = torch.full((len(x),), step)
        draws = objective.target(agent, x, t).view(20_000, 5)
        exact = agent.average.value(x[:5], step).detach()
        error = draws.std(0) / math.sqrt(len(draws))
        assert ((draws.mean(0) - exact).abs() < 4.5 * error + 1e-9).all()


def test_soft_backup_is_exact_in_expectation_of_its_exponential_for_the_bellman_drift() -> None:
    objective = SoftBellman(draws=1)
    agent, mdp = gaussian_agent(objective, "bellman")
    x = (mdp.noise(4, mdp.generator(0)) * 0.5).repeat(50_000, 1)
    for step in (0, mdp.num_steps - 1):  # the last step reads the energy's own gradient
        t = torch.full((len(x),), step)
        weights = torch.exp(-objective.target(agent, x, t)).view(50_000, 4)
        exact = torch.exp(-agent.average.value(x[:4], step)).detach()
        error = weights.std(0) / math.sqrt(len(weights))
        assert ((weights.mean(0) - exact).abs() < 4.5 * error).all()


@pytest.mark.parametrize(("references", "posterior_steps"), [(0, 0), (512, 0), (512, 4)])
def test_score_targets_are_unbiased_for_the_value_gradient(
    references: int, posterior_steps: int
) -> None:
    objective = GradientMatching(
        batch_size=256, references=references, posterior_steps=posterior_steps
    )
    mdp = small_mdp(GMM9(), num_steps=4)
    agent = small_agent(objective, mdp)
    learner = matching(agent)
    if posterior_steps:  # both kinds of averages at once
        learner.targets.share.fill_(0.6)
    generator = mdp.generator(0)
    for step in range(mdp.num_steps):
        t = torch.full((256,), step)
        products = []
        for _ in range(60):  # fresh exact states: batches are independent, their rows are not
            x_T = mdp.energy.sample(512, generator)
            learner.source.rows = WeightedBuffer(512, 0.0)
            add_rows(learner, x_T, mdp.energy.energy_and_gradient(x_T)[1], torch.zeros(512))
            x, *targets = scores(agent, t)
            exact = mdp.energy.value_gradient(x, step, mdp.chain)
            # E[(target - ∇V)·f(x)] = 0 for every f; a few are tried.
            tests = (x, exact, torch.sin(x))
            errors = [((s - exact) * f).sum(-1).mean() for s in targets for f in tests]
            products.append(torch.stack(errors))
        batches = torch.stack(products)
        error = batches.std(0) / math.sqrt(len(batches))
        assert (batches.mean(0).abs() < 4.5 * error).all()


def test_averaging_over_references_takes_most_of_the_noise_out_of_the_targets() -> None:
    noise = []
    for references in (0, 1024):
        objective = GradientMatching(batch_size=256, references=references)
        mdp = small_mdp(GMM9(), num_steps=4)
        agent = small_agent(objective, mdp)
        learner = matching(agent)
        x_T = mdp.energy.sample(1024, mdp.generator(0))
        add_rows(learner, x_T, mdp.energy.energy_and_gradient(x_T)[1], torch.zeros(1024))
        x, denoising, target_score = scores(agent, torch.zeros(256, dtype=torch.long))
        exact = mdp.energy.value_gradient(x, 0, mdp.chain)
        noise.append([float((s - exact).square().mean()) for s in (denoising, target_score)])
    assert all(averaged < 0.1 * single for single, averaged in zip(*noise, strict=True))


def test_references_share_targets_only_where_many_of_them_count() -> None:
    objective = GradientMatching(batch_size=64, references=256, posterior_steps=2)
    schedule = ScheduleConfig(kind="geometric", first=500.0, last=1e-4)
    mdp = SamplingMDP(GMM9(), MDPConfig(chain="ve", num_steps=12, schedule=schedule))
    agent = small_agent(objective, mdp)
    learner = matching(agent)
    learner.targets.share.zero_()
    x_T = mdp.energy.sample(256, mdp.generator(0))
    add_rows(learner, x_T, mdp.energy.energy_and_gradient(x_T)[1], torch.zeros(256))
    learner.targets.measure_share(learner.source, agent.generator)
    assert float(learner.targets.share[0]) > 0.9
    assert learner.targets.shared < 12 and bool(
        (learner.targets.share[learner.targets.shared :] == 0).all()
    )
    assert bool((learner.targets.share[:-1] >= learner.targets.share[1:] - 0.05).all())
    assert bool(torch.isfinite(scores(agent, torch.arange(64) % 12 // 2)[1]).all())


def test_references_fewer_than_the_batch_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="references must be 0 or at least batch_size 256, got 8"):
        GradientMatching(batch_size=256, references=8)


def test_targets_of_a_gaussian_have_no_noise_once_the_mixture_is_right() -> None:
    agent, _ = gaussian_agent(GradientMatching(batch_size=256, first_size=512), "posterior")
    assert float(agent.objective.loss(agent)[0].detach()) < 1e-9  # prior_std is the target's own
    target = GaussianMixture(torch.zeros(1, 2), torch.full((1, 2), 1.0))
    learner = small_agent(mdp=small_mdp(target), lr=1e-2)  # prior_std is twice the target's
    before = float(learner.objective.loss(learner)[0].detach())
    learner.learn(BudgetConfig(updates=200), **QUIET)
    assert float(learner.objective.loss(learner)[0].detach()) < 0.1 * before


def test_first_draws_are_weighted_exactly() -> None:
    objective = GradientMatching(first_size=64_000, first_range=4.0)
    target = GaussianMixture(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 2.0]]))
    mdp = small_mdp(target)
    agent = small_agent(objective, mdp)
    source = matching(agent).source
    assert isinstance(source, WeightedSource)
    x, minus_log_density = source._first_draws(agent)
    weights = (minus_log_density - mdp.energy.energy(x)).double().exp()
    error = float(weights.std()) / math.sqrt(len(x))
    assert float(weights.mean()) == pytest.approx(1.0, abs=4.5 * error)
    assert x.norm(dim=-1).max() > 16  # prior_std 2 x spread 4 x 2 sigma


# --- learning -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "drift", "updates", "lr"),
    [
        (None, "posterior", 200, 5e-3),
        (None, "bellman", 200, 5e-3),
        (SoftBellman(batch_size=256, noise_scale=1.0), "posterior", 400, 5e-3),
        (TD0(batch_size=256, noise_scale=1.0, control_variate=True), "posterior", 400, 5e-3),
        (TD0(batch_size=256, noise_scale=1.0), "bellman", 400, 5e-3),
    ],
)
def test_every_objective_improves_the_elbo(
    objective: ValueObjective | None, drift: str, updates: int, lr: float
) -> None:
    # The published schedule of this target: TD with the first-order drift needs its small steps.
    schedule = ScheduleConfig(kind="quadratic", first=0.1, last=0.01)
    config = MDPConfig(num_steps=10, schedule=schedule, start=StartConfig(scale=1.4))
    agent = small_agent(
        objective,
        SamplingMDP(FourGauss(), config),
        drift=drift,
        lr=lr,
        ema=0.98 if objective is None else 0.9,  # the others average once per iteration
        fit_noise_scale=objective is None and drift == "posterior",
    )
    before = elbo(agent)
    agent.learn(BudgetConfig(updates=updates), **QUIET)
    after = elbo(agent)
    assert after > before + 1.0
    assert after < 0.02  # the ELBO never exceeds log Z = 0
    assert agent.skipped == 0
    assert agent.counters.updates == updates
    assert agent.counters.env_steps > 0 and agent.counters.energy_evaluations > 0


def test_learning_s0_by_gradients_finds_the_best_gaussian_start() -> None:
    objective = TD0(batch_size=512, start_lr=0.04)
    agent, mdp = gaussian_agent(objective, "posterior")
    best = float((mdp.chain.S[0] + 4.0 / mdp.chain.A[0] ** 2).sqrt())
    with torch.no_grad():
        mdp.start.log_scale.fill_(math.log(3 * best))  # type: ignore[union-attr]
    for _ in range(200):
        agent.objective.after_average(agent)
    assert float(mdp.start.scale.detach()) == pytest.approx(best, rel=0.05)  # type: ignore[arg-type]


def test_the_published_network_learns_by_td_and_refuses_gradient_matching() -> None:
    schedule = ScheduleConfig(kind="quadratic", first=0.1, last=0.01)
    config = MDPConfig(num_steps=10, schedule=schedule, start=StartConfig(scale=1.0))
    objective = TD0(batch_size=128, noise_scale=1.0, loss_kind="l2", scale_by_dim=True)
    options = {"drift": "bellman", "network": PublishedNetwork(width=64), "lr": 1e-3, "ema": 0.9}
    options |= {"final_lr": 1.0, "warmup": 0, "fit_noise_scale": False}
    agent = small_agent(objective, SamplingMDP(FourGauss(), config), **options)
    before = elbo(agent)
    agent.learn(BudgetConfig(updates=800), **QUIET)
    assert before + 1.0 < elbo(agent) < 0.02
    with pytest.raises(ValueError, match="network PublishedNetwork needs a TD objective"):
        ValueGradientConfig(network=PublishedNetwork())


def test_exploration_widens_the_start_only_while_trajectories_are_drawn() -> None:
    objective = TD0(batch_size=4096, noise_scale=1.5, start_lr=0.0)
    agent = small_agent(objective, fit_noise_scale=False)
    scale = float(agent.mdp.start.scale.detach())  # type: ignore[union-attr]
    trajectories(agent)._collect(agent)
    drawn = trajectories(agent)._states[:4096].std()
    assert float(drawn) == pytest.approx(1.5 * scale, rel=0.05)
    assert float(agent.mdp.start.scale.detach()) == pytest.approx(scale)  # type: ignore[union-attr]


def test_fixed_start_and_fixed_noise_scale_stay_fixed() -> None:
    config = MDPConfig(num_steps=5, start=StartConfig(scale=1.3, learned=False))
    agent = small_agent(mdp=SamplingMDP(FourGauss(), config), fit_noise_scale=False)
    agent.learn(BudgetConfig(updates=12), **QUIET)
    assert float(agent.mdp.start.scale.detach()) == pytest.approx(1.3)  # type: ignore[arg-type]
    assert (agent.mdp.rho == 1).all()


def test_mixture_start_is_fitted_to_the_buffer() -> None:
    start = StartConfig(kind="mixture", components=4, scale=1.0)
    config = MDPConfig(num_steps=6, schedule=ScheduleConfig(total_noise=0.3), start=start)
    agent = small_agent(mdp=SamplingMDP(FourGauss(), config))
    agent.learn(BudgetConfig(updates=41), **QUIET)
    means = agent.mdp.start.means  # type: ignore[union-attr]
    quadrants = {(bool(x > 0), bool(y > 0)) for x, y in means}
    assert len(quadrants) == 4


def test_non_finite_updates_are_skipped_and_counted() -> None:
    agent = small_agent()
    agent.learn(BudgetConfig(updates=3), **QUIET)
    before = copy.deepcopy(agent.network.state_dict())
    real = agent.objective.loss

    def broken(agent: ValueGradientAgent) -> object:
        loss, scalars = real(agent)
        return loss * float("nan"), scalars

    agent.objective.loss = broken  # type: ignore[method-assign, assignment]
    agent.learn(BudgetConfig(updates=6), **QUIET)
    after = agent.network.state_dict()
    assert agent.skipped == 3
    assert all(torch.equal(before[name], after[name]) for name in before)
    agent.objective.loss = real  # type: ignore[method-assign]
    agent.learn(BudgetConfig(updates=7), **QUIET)
    assert any(not torch.equal(before[n], v) for n, v in agent.network.state_dict().items())


def test_same_seed_same_numbers_and_the_global_rng_is_untouched() -> None:
    state = torch.get_rng_state()
    results = []
    for _ in range(2):
        agent = small_agent()
        agent.learn(BudgetConfig(updates=15), **QUIET)
        results.append(agent.sampler().sample(100, 5).x)
        torch.manual_seed(len(results))
        torch.rand(3)
    assert torch.equal(*results)
    torch.set_rng_state(state)
    small_agent().learn(BudgetConfig(updates=2), **QUIET)
    assert torch.equal(state, torch.get_rng_state())


# --- stopping, saving, going on -----------------------------------------------------------------


def flatten(state: object, prefix: str = "") -> dict[str, object]:
    if isinstance(state, dict):
        return {k: v for key, s in state.items() for k, v in flatten(s, f"{prefix}.{key}").items()}
    if isinstance(state, (list, tuple)):
        return {k: v for i, s in enumerate(state) for k, v in flatten(s, f"{prefix}.{i}").items()}
    return {prefix: state}


RULES = {
    "gradient_matching": None,
    "td0": TD0(batch_size=64),
    "soft_bellman": SoftBellman(batch_size=64, draws=2),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("stop", [7, 23])
def test_resumed_training_is_bit_identical(name: str, stop: int, tmp_path: Path) -> None:
    evaluation = EvaluationConfig(
        validation_samples=100, validate_every=10, log_every=5, figures_every=0
    )
    budget = BudgetConfig(updates=40)

    def make(folder: str, resume_at: int | None = None) -> tuple[ValueGradientAgent, RunFolder]:
        agent = small_agent(copy.deepcopy(RULES[name]))
        return agent, RunFolder(tmp_path / folder, "x: 1\n", resume_at=resume_at)

    whole, folder = make("whole")
    assert whole.learn(budget, evaluation=evaluation, folder=folder, **QUIET).finished
    whole_records = [{k: v for k, v in r.items() if k != "seconds"} for r in folder.records]

    first, folder = make("parts")
    stopper = lambda agent: agent.counters.updates < stop  # noqa: E731
    assert not first.learn(
        budget, evaluation=evaluation, folder=folder, callback=stopper, **QUIET
    ).finished
    folder.close()
    second, folder = make("parts", resume_at=stop)
    second.load_state_dict(folder.load("last"))
    assert second.counters.updates == stop
    assert second.learn(budget, evaluation=evaluation, folder=folder, **QUIET).finished

    one, other = flatten(whole.state_dict()), flatten(second.state_dict())
    assert one.keys() == other.keys()
    for key, value in one.items():
        if key == ".counters.seconds":
            continue
        same = (
            torch.equal(value, other[key])
            if isinstance(value, torch.Tensor)
            else value == other[key]
        )
        assert same, key
    records = [{k: v for k, v in r.items() if k != "seconds"} for r in folder.records]
    assert records == whole_records


def test_ctrl_c_finishes_the_update_and_saves(tmp_path: Path) -> None:
    agent = small_agent()
    folder = RunFolder(tmp_path / "run", "x: 1\n")

    def press(agent: object) -> None:
        if agent.counters.updates == 4:  # type: ignore[attr-defined]
            signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    finished = agent.learn(
        BudgetConfig(updates=1000), folder=folder, callback=press, **QUIET
    ).finished
    assert not finished
    assert folder.load("last")["counters"]["updates"] == 4
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_checkpoint_of_another_architecture_is_refused() -> None:
    state = small_agent().state_dict()
    other = ValueGradientAgent(
        small_mdp(), ValueGradientConfig(network=MLPNetwork(width=8, depth=1))
    )
    with pytest.raises(ValueError, match="does not fit this configuration"):
        other.load_state_dict(state)
    del state["network"]
    with pytest.raises(ValueError, match="lacks network"):
        small_agent().load_state_dict(state)


def test_budget_stops_at_the_first_limit() -> None:
    agent = small_agent()
    agent.learn(BudgetConfig(updates=1000, env_steps=512 * 10 + 1), **QUIET)
    assert agent.counters.updates == 11  # the second refresh passes the limit


# --- samplers -----------------------------------------------------------------------------------


def test_resampling_moves_samples_towards_the_target() -> None:
    target = GaussianMixture(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 2.0]]))
    mdp = small_mdp(target)
    sampler = ValueGradientAgent(mdp, ValueGradientConfig(prior_std=1.5)).sampler()
    plain = sampler.sample(8000, 0).x
    resampled = sampler.sample(8000, 0, resample=True, oversample=8)
    assert plain.mean(0)[0].abs() < 0.4  # the untrained chain does not know the shift
    torch.testing.assert_close(resampled.x.mean(0), torch.tensor([1.0, 0.0]), atol=0.15, rtol=0)
    assert resampled.log_weight is not None
    assert resampled.log_weight.exp().mean() == pytest.approx(1.0, abs=0.15)
    assert resampled.energy_evaluations == 64_000


def test_less_noise_keeps_exact_weights_until_a_step_has_none() -> None:
    target = GaussianMixture(torch.zeros(1, 2), torch.ones(1, 2))
    agent = ValueGradientAgent(small_mdp(target), ValueGradientConfig(prior_std=1.0))
    plain, less = agent.sampler(), agent.sampler(noise_scale=0.9)
    assert plain.has_reverse_weights and not less.has_reverse_weights
    drawn = less.sample(20_000, 0)
    assert drawn.log_weight is not None
    assert drawn.log_weight.exp().mean() == pytest.approx(1.0, abs=0.05)  # Z
    assert drawn.x.std() < 0.97 * plain.sample(20_000, 0).x.std()
    scale = torch.ones_like(agent.mdp.rho)
    scale[-1] = 0.0
    silent = agent.sampler(noise_scale=scale).sample(2_000, 0)
    assert silent.log_weight is None and bool(torch.isfinite(silent.x).all())


def test_chunked_sampling_counts_and_concatenates() -> None:
    sampler = ValueGradientAgent(small_mdp(), ValueGradientConfig()).sampler()
    sampler.chunk_size = 300
    samples = sampler.sample(1000, 0)
    assert samples.x.shape == (1000, 2) and samples.energy_evaluations == 1000
    assert samples.log_weight is not None and samples.log_weight.shape == (1000,)


def test_sampler_refuses_bad_requests_by_name() -> None:
    sampler = ExactSampler(FourGauss())
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        sampler.sample(0)
    with pytest.raises(ValueError, match="oversample must be at least 1"):
        sampler.sample(5, oversample=0)
    with pytest.raises(ValueError, match="ExactSampler has none"):
        sampler.sample(5, resample=True)


@pytest.mark.parametrize("drift", ["posterior", "bellman"])
def test_oracle_bounds_enclose_log_z(drift: str) -> None:
    mdp = small_mdp(GMM9(), num_steps=20)
    sampler = oracle_sampler(mdp, drift)  # type: ignore[arg-type]
    forward = sampler.sample(20_000, 1).log_weight
    exact = GMM9().sample(20_000, mdp.generator(2))
    backward = sampler.reverse_log_weight(exact, mdp.generator(3))
    assert forward is not None
    assert forward.mean() < 0 < backward.mean()


def test_buffer_leaves_out_what_is_not_finite_and_keeps_the_latest() -> None:
    buffer = WeightedBuffer(capacity=5, least_ess=0.5)
    x = torch.arange(8.0).unsqueeze(-1)
    log_weight = torch.zeros(8)
    log_weight[6] = float("nan")
    buffer.add(x, x, log_weight)
    assert buffer.x.flatten().tolist() == [2, 3, 4, 5, 7]


def test_buffer_caps_an_outlier_and_leaves_other_weights_alone() -> None:
    n = 10_000
    log_weight = torch.zeros(n)
    log_weight[1:101] = 2.0  # an undersampled region
    log_weight[0] = 50.0
    buffer = WeightedBuffer(capacity=n, least_ess=0.1)
    x = torch.arange(float(n)).unsqueeze(-1)
    buffer.add(x, x, log_weight)
    drawn = buffer.draw(n, torch.Generator().manual_seed(0))[0]
    share = float(((drawn > 0) & (drawn < 101)).float().mean())
    assert share == pytest.approx(100 * math.exp(2.0) / (n + 100 * math.exp(2.0)), rel=0.05)
    assert float((drawn == 0).float().mean()) < 0.02


def test_buffer_draws_follow_the_weights() -> None:
    buffer = WeightedBuffer(capacity=100, least_ess=0.0)
    x = torch.arange(4.0).unsqueeze(-1)
    buffer.add(x, -x, torch.tensor([0.1, 0.2, 0.3, 0.4]).log())
    drawn, gradient = buffer.draw(10_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn.flatten().long(), minlength=4)
    assert counts.tolist() == pytest.approx([1000, 2000, 3000, 4000], abs=2)
    assert torch.equal(gradient, -drawn)


class Scripted(Sampler):
    """Returns one given log-weight after the other."""

    def __init__(self, log_weights: list[float], dim: int) -> None:
        self.log_weights, self.dim = iter(log_weights), dim

    def _draw(self, n: int, generator: torch.Generator) -> Samples:
        log_weight = torch.full((n,), next(self.log_weights))
        return Samples(x=torch.zeros(n, self.dim), log_weight=log_weight, energy_evaluations=0)


def test_early_checkpoints_do_not_compete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = GradientMatching(batch_size=64, refresh_size=64, first_size=64)
    agent = small_agent(objective, small_mdp())
    scripted = Scripted([9.0, 5.0, 1.0, 2.0, 1.5], agent.mdp.dim)
    monkeypatch.setattr(agent, "sampler", lambda: scripted)
    folder = RunFolder(tmp_path / "run", "x: 1\n")
    evaluation = EvaluationConfig(validate_every=5, best_from=0.5, figures_every=0)
    agent.learn(BudgetConfig(updates=20), evaluation=evaluation, folder=folder, **QUIET)
    folder.close()
    state = load_checkpoint(tmp_path / "run" / "checkpoints" / "best.pt")
    # 9.0 is the untrained agent's, and 5.0 came at a quarter of the budget.
    # Of the rest, 2.0 at three quarters is the best.
    assert state["best_elbo"] == 2.0 and state["counters"]["updates"] == 15


@pytest.mark.parametrize(
    "std", [0.01, *(pytest.param(std, marks=pytest.mark.slow) for std in (0.3, 0.03))]
)
def test_a_target_much_narrower_than_the_prior_is_drawn_as_narrow_as_it_is(std: float) -> None:
    target = GaussianMixture(torch.zeros(1, 2), torch.full((1, 2), std**2))
    objective = GradientMatching(batch_size=512, refresh_every=20)
    config = ValueGradientConfig(
        objective=objective, network=MLPNetwork(width=32, depth=2), lr=1e-2
    )
    agent = config.build(SamplingMDP(target, MDPConfig()))  # the default chain, prior_std 1
    agent.learn(BudgetConfig(updates=500), **QUIET)
    samples = agent.sampler().sample(4000, 7)
    assert float(samples.x.std()) == pytest.approx(std, rel=0.05)
    assert samples.log_weight is not None
    assert abs(float(log_z_estimate(samples.log_weight.double()))) < 0.01


# --- jumps, walls, and what cannot be learned ---------------------------------------------------


class Step(Energy):
    """A standard normal density, divided by e^height where x_1 > 0."""

    dim = 2

    def __init__(self, height: float) -> None:
        super().__init__()
        self.height = height

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x.square().sum(-1) + self.height * (x[:, 0] > 0)


class Box(Energy):
    """Uniform on [-1, 1]², nothing outside."""

    dim = 2

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        inside = (x.abs() <= 1).all(-1)
        return torch.where(inside, 0.0 * x.sum(-1), torch.inf)


def jumping_agent(target: Energy, **options: object) -> ValueGradientAgent:
    objective = GradientMatching(batch_size=512, refresh_every=20, **options)  # type: ignore[arg-type]
    config = ValueGradientConfig(
        objective=objective, network=MLPNetwork(width=32, depth=2), lr=1e-2
    )
    return config.build(SamplingMDP(target, MDPConfig()))


def share(agent: ValueGradientAgent, inside: Callable[[torch.Tensor], torch.Tensor]) -> list[float]:
    """How many samples lie inside, as drawn and by weight."""
    samples = agent.sampler().sample(8000, 7)
    assert samples.log_weight is not None
    weight = torch.softmax(samples.log_weight.double(), 0)
    return [float(inside(samples.x).double().mean()), float(weight @ inside(samples.x).double())]


@pytest.mark.filterwarnings("ignore:Box.energy is NaN", "ignore:Step.energy hides")
def test_a_density_that_jumps_is_learned_from_denoising_targets_and_it_is_said() -> None:
    right = lambda x: x[:, 0] > 0  # noqa: E731
    for height, truth, at_most in ((4.0, 0.01799, 0.25), (1.0, 0.26894, 0.45)):
        agent = jumping_agent(Step(height))
        with pytest.warns(UserWarning, match="the target's density jumps"):
            agent.learn(BudgetConfig(updates=300), **QUIET)
        drawn, weighted = share(agent, right)
        assert weighted == pytest.approx(truth, abs=0.01)
        assert drawn < at_most  # 0.50 where ∇E is believed
        assert any("density jumps" in note for note in agent.report_details()["notes"])


@pytest.mark.filterwarnings("ignore:Box.energy")
def test_learning_a_box_moves_samples_into_it() -> None:
    agent = jumping_agent(Box())
    inside = lambda x: (x.abs() <= 1).all(-1)  # noqa: E731
    before = share(agent, inside)[0]
    with pytest.warns(UserWarning, match="the target's density jumps"):
        agent.learn(BudgetConfig(updates=150), **QUIET)
    drawn, weighted = share(agent, inside)
    assert drawn > 0.8 > before and weighted == pytest.approx(1.0)
    assert agent.skipped == 0


@pytest.mark.parametrize("targets", ["both", "denoising"])
def test_the_targets_of_a_jump_may_be_chosen(targets: str) -> None:
    agent = jumping_agent(Step(4.0), targets=targets)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent.learn(BudgetConfig(updates=120), **QUIET)
    assert not agent.report_details()["notes"]
    drawn, _ = share(agent, lambda x: x[:, 0] > 0)
    assert drawn > 0.45 if targets == "both" else drawn < 0.42


@pytest.mark.parametrize("target", [GMM9(), FourGauss(), Funnel(dim=3)])
def test_continuous_densities_do_not_jump(target: Energy) -> None:
    objective = GradientMatching(batch_size=256, refresh_every=10)
    config = ValueGradientConfig(
        objective=objective, network=MLPNetwork(width=32, depth=2), prior_std=4.0
    )
    agent = config.build(SamplingMDP(target, MDPConfig()))
    agent.learn(BudgetConfig(updates=100), **QUIET)
    assert matching(agent).continuity.states > 50
    assert not matching(agent).denoises_only and not agent.notes()


def test_noise_scales_at_their_bound_are_said() -> None:
    std = 1e-6
    target = GaussianMixture(torch.zeros(1, 2), torch.full((1, 2), std**2))
    config = ValueGradientConfig(network=MLPNetwork(width=8, depth=1), prior_std=std)
    agent = config.build(SamplingMDP(target, MDPConfig(num_steps=4)))
    with pytest.warns(UserWarning, match="rho_t is at its bound 0.0001 in 1 of 4 steps"):
        agent.learn(BudgetConfig(updates=1), **QUIET)


@pytest.mark.filterwarnings("ignore:Box.energy")
@pytest.mark.parametrize("kind", [PISConfig, TrajectoryBalanceConfig, LogVarianceConfig])
def test_updates_that_are_skipped_are_counted_in_the_report_and_said(kind: type) -> None:
    config = kind(batch_size=32, width=8, depth=1)
    agent = config.build(SamplingMDP(Box(), MDPConfig(num_steps=4)))
    with pytest.warns(UserWarning, match=r"5 of 5 updates were skipped.*hardly learned"):
        agent.learn(BudgetConfig(updates=5), **QUIET)
    assert agent.report_details()["skipped_updates"] == 5
    assert float(agent.update()["train/skipped_updates"]) == 6
