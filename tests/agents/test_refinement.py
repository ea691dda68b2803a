"""MCMC inside gradient matching: exact where it claims to be."""

import pytest
import torch

from vgs_rl import MDPConfig, SamplingMDP, ScheduleConfig
from vgs_rl.agents import GradientMatching, ValueGradientConfig
from vgs_rl.agents.value_gradient.gradient_matching import GradientMatchingLearner
from vgs_rl.agents.value_gradient.refinement import PosteriorAverage, RefinedBuffer, resample
from vgs_rl.agents.value_gradient.score_targets import _posterior_means
from vgs_rl.envs import Gaussian, GaussianMixture
from vgs_rl.training.config import BudgetConfig


def make_mdp(temperature: float = 1.0) -> SamplingMDP:
    schedule = ScheduleConfig(kind="geometric", first=0.5, last=0.01)
    config = MDPConfig(chain="ve", num_steps=8, schedule=schedule, temperature=temperature)
    return SamplingMDP(Gaussian((1.0, -1.0), (0.5, 2.0)), config)


def test_posterior_averages_are_unbiased_and_vary_less() -> None:
    mdp = make_mdp()
    generator = mdp.generator(0)
    x_T = mdp.energy.sample(40_000, generator)
    gradient = mdp.energy.energy_and_gradient(x_T)[1]
    t = torch.arange(len(x_T)) % 8
    x, _ = mdp.noised_marginal(x_T, t, generator)
    average = PosteriorAverage(mdp, steps=12, max_drift=100.0)
    for _ in range(5):  # adapts its step sizes
        average(x_T[:800], gradient[:800], x[:800], t[:800], generator)
    mean, slope = average(x_T, gradient, x, t, generator)
    noise = mdp.chain.S[t].unsqueeze(-1)
    variance, centre = torch.tensor([0.5, 2.0]), torch.tensor([1.0, -1.0])
    exact = (noise * centre + variance * x) / (variance + noise)
    for k in range(8):
        rows = t == k
        error = (mean - exact)[rows]
        single = (x_T - exact)[rows]
        limit = 5 * error.std(0) / len(error) ** 0.5
        assert bool((error.mean(0).abs() < limit).all())
        assert bool((error.var(0) < 0.6 * single.var(0)).all())
        assert bool((error * (x - centre)[rows]).mean(0).abs().max() < 0.05)
    # For a Gaussian the gradient is linear: its average is the gradient at the average.
    torch.testing.assert_close(slope, (mean - centre) / variance, rtol=1e-4, atol=1e-4)


def test_posterior_averages_count_their_energies() -> None:
    mdp = make_mdp()
    generator = mdp.generator(0)
    x = mdp.energy.sample(64, generator)
    gradient = mdp.energy.energy_and_gradient(x)[1]
    PosteriorAverage(mdp, steps=5, max_drift=10.0)(x, gradient, x, torch.arange(64) % 8, generator)
    assert mdp.energy_evaluations == (1 + 5) * 64  # where it starts, and every proposal


def test_a_refined_buffer_moves_to_the_target_at_its_temperature() -> None:
    mdp = make_mdp(temperature=2.0)
    generator = mdp.generator(1)
    buffer = RefinedBuffer(mdp, 4000, max_drift=5.0)
    buffer.add(torch.zeros(4000, 2), 150, generator)
    assert len(buffer) == 4000
    assert mdp.energy_evaluations == 151 * 4000
    torch.testing.assert_close(buffer.x.mean(0), torch.tensor([1.0, -1.0]), atol=0.15, rtol=0)
    torch.testing.assert_close(buffer.x.var(0), torch.tensor([1.0, 4.0]), atol=0, rtol=0.15)
    expected = mdp.energy.energy_and_gradient(buffer.x)[1]
    torch.testing.assert_close(buffer.gradient, expected)


def test_new_states_replace_random_rows_of_a_full_buffer() -> None:
    mdp = make_mdp()
    generator = mdp.generator(2)
    buffer = RefinedBuffer(mdp, 100, max_drift=5.0)
    buffer.add(torch.zeros(100, 2), 0, generator)
    buffer.add(torch.ones(30, 2), 0, generator)
    assert len(buffer) == 100 and int((buffer.x == 1).all(-1).sum()) == 30
    x, gradient = buffer.draw(250, generator)
    assert x.shape == gradient.shape == (250, 2)
    other = RefinedBuffer(mdp, 100, max_drift=5.0)
    other.load_state_dict(buffer.state_dict())
    torch.testing.assert_close(other.x, buffer.x)


def test_annealed_first_states_have_the_modes_shares() -> None:
    means, variances = [[-4.0, 0.0], [4.0, 0.0]], [[0.2, 0.2], [0.2, 0.2]]
    target = GaussianMixture(means, variances, weights=[0.85, 0.15])
    mdp = SamplingMDP(target, MDPConfig(num_steps=4))

    def share(anneal: int) -> float:
        objective = GradientMatching(
            capacity=4_000,
            refine_steps=1,
            first_anneal_steps=anneal,
            first_refine_steps=60,
            batch_size=8,
            start_size=64,
        )
        agent = ValueGradientConfig(objective=objective, prior_std=4.0).build(mdp, seed=0)
        agent.learn(BudgetConfig(updates=1), progress_bar=False)
        assert agent.counters.energy_evaluations > 4_000 * (anneal + 60)
        assert isinstance(agent.objective, GradientMatchingLearner)
        return float((agent.objective.source.rows.x[:, 0] < 0).float().mean())

    assert abs(share(80) - 0.85) < 0.04
    assert share(0) < 0.6  # MALA alone leaves them where they began


def test_resampling_leaves_out_what_is_not_finite() -> None:
    x = torch.arange(6.0).unsqueeze(-1)
    log_weight = torch.tensor([0.0, -torch.inf, 0.0, torch.nan, 0.0, 0.0])
    x[5] = torch.nan
    rows = resample(x, log_weight, 300, 0.0, torch.Generator().manual_seed(0)).flatten()
    assert sorted(set(rows.tolist())) == [0.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"refine_steps": 5, "start_widening": 1.3},
            r"must be 1 with refine_steps, got 1\.0 and 1\.3",
        ),
        ({"first_refine_steps": 5}, "first_refine_steps needs refine_steps above 0"),
        ({"first_anneal_steps": 5}, "first_anneal_steps needs refine_steps above 0"),
    ],
)
def test_contradictory_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradientMatching(**options)  # type: ignore[arg-type]


def test_posterior_means_are_those_of_a_softmax_over_distances() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, x_T, values = draw(7, 3), draw(50, 3), draw(50, 9)  # wider than the states
    scale, spread = draw(7, 1).exp(), draw(7, 1).exp()
    squares = (x[:, None] - x_T / scale[:, None]).square().sum(-1)
    weights = torch.softmax(-0.5 * squares / spread, dim=-1)
    means = _posterior_means(x, x_T, scale, spread, torch.float64, values)
    torch.testing.assert_close(means, weights @ values)
    rough = _posterior_means(x, x_T, scale, spread, torch.float32, values)
    torch.testing.assert_close(rough, (weights @ values).float(), rtol=1e-3, atol=1e-4)
