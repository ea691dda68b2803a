"""The parts of the path gap: closed forms, curvature, sums, and predictions that come true."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import vgs_rl
from vgs_rl import (
    Chain,
    ChainSampler,
    ErrorBudget,
    MDPConfig,
    SamplingMDP,
    ScheduleConfig,
    StartConfig,
    error_budget,
)
from vgs_rl.envs import GMM9, Gaussian
from vgs_rl.envs.targets.gaussian import GaussianMixture
from vgs_rl.evaluation.budget.bridges import halved
from vgs_rl.evaluation.budget.result import Estimate
from vgs_rl.networks.base import ExactValue
from vgs_rl.networks.policies import ValueGradientPolicy
from vgs_rl.plots.budget import plot_budgets
from vgs_rl.samplers.oracle import oracle_sampler
from vgs_rl.samplers.stochastic import GaussianKernel

VARIANCES = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
TILT, RHO, STEPS = 0.2, 0.8, 3


def gaussian_sampler() -> ChainSampler:
    """Of N(0, diag VARIANCES), by u = u* + TILT x; noise scales and start do not fit."""
    config = MDPConfig(num_steps=STEPS, start=StartConfig(kind="gaussian", scale=1.3))
    mdp = SamplingMDP(Gaussian([0.0] * 3, VARIANCES), config)
    mdp.rho.fill_(RHO)
    exact = ValueGradientPolicy(mdp, ExactValue(mdp.energy, mdp.chain), "posterior")
    return ChainSampler(mdp, lambda x, t: exact(x, t) + TILT * x)


def reversed_variances(chain: Chain) -> Tensor:
    """Var(v | x_t) of each coordinate, shape (T, D)."""
    noised = VARIANCES / chain.A.square().unsqueeze(-1) + chain.S.unsqueeze(-1)
    return 1 - chain.s.square().unsqueeze(-1) / noised[:-1]


def closed_form(sampler: ChainSampler) -> dict[str, Tensor]:
    chain = sampler.mdp.chain.to(torch.device("cpu"), torch.float64)
    noised = VARIANCES / chain.A.square().unsqueeze(-1) + chain.S.unsqueeze(-1)
    ratio = noised[0] / 1.3**2
    within = reversed_variances(chain)
    width = within.mean(-1)
    halves = reversed_variances(halved(chain)).mean(-1).view(-1, 2)
    return {
        "start": 0.5 * (ratio - 1 - ratio.log()).sum(),
        "learning": 0.5 * TILT**2 * noised[:-1].sum(-1) / RHO**2,
        "noise scale": 1.5 * (width / RHO**2 - 1 - (width / RHO**2).log()),
        "discretisation": 1.5 * width.log() - 0.5 * within.log().sum(-1),
        "more steps": 1.5 * (width.log() - halves.log().sum(-1)).sum(),
    }


def close(found: Estimate, truth: float, errors: float = 4.0) -> bool:
    return abs(found.value - truth) <= errors * found.error + 1e-6


@pytest.mark.parametrize("exact", [True, False], ids=["values", "posterior draws"])
def test_the_parts_of_a_gaussian_are_its_closed_forms(exact: bool) -> None:
    sampler = gaussian_sampler()
    budget = error_budget(sampler, n=6_000 if exact else 500, paths=6_000, exact=exact)
    truth = closed_form(sampler)
    for name, part in budget.parts.items():
        assert close(part, float(truth[name].sum())), name
        for step, (value, error) in enumerate(zip(part.per_step, part.per_step_error, strict=True)):
            assert close(Estimate(value=value, error=error), float(truth[name][step]), 4.5), name
    assert close(budget.predictions["more steps"], float(truth["more steps"]))
    assert close(
        budget.total, sum(float(part.sum()) for part in truth.values()) - float(truth["more steps"])
    )
    assert budget.adds_up and budget.total.error < (0.03 if exact else 0.15)


def test_standard_errors_are_those_of_repeats() -> None:
    sampler = gaussian_sampler()
    truth = closed_form(sampler)
    budgets = [error_budget(sampler, n=500, paths=10, seed=seed) for seed in range(20)]
    for name in ("start", "learning", "noise scale", "discretisation"):
        parts = [budget.parts[name] for budget in budgets]
        apart = [(part.value - float(truth[name].sum())) / part.error for part in parts]
        assert 0.5 < math.sqrt(sum(z * z for z in apart) / len(apart)) < 1.6, name


def test_discretisation_is_the_spread_of_curvature() -> None:
    """½ ∫ r E‖V'' - h‖² / rho_r² dr of the theorem; one dimension, where quadrature is exact."""
    target = GaussianMixture([[-2.0], [2.0]], [[0.3], [0.5]], [0.3, 0.7])
    schedule = ScheduleConfig(kind="auto", total_noise=6.0)
    sampler = oracle_sampler(
        SamplingMDP(target, MDPConfig(chain="ve", num_steps=3, schedule=schedule))
    )
    found = error_budget(sampler, n=20_000, paths=10).parts["discretisation"]
    S, x = sampler.mdp.chain.S.double(), torch.linspace(-16, 16, 4_001, dtype=torch.float64)
    node, weight = gauss_legendre(24)
    for t in range(3):
        total = 0.0
        for share, each in zip(node, weight, strict=True):
            r = float((S[t] - S[t + 1]) * share)
            noised = GaussianMixture(
                [[-2.0], [2.0]],
                [[0.3 + float(S[t + 1]) + r], [0.5 + float(S[t + 1]) + r]],
                [0.3, 0.7],
            )
            density = (-noised.energy(x.unsqueeze(-1))).exp()
            slope = noised.energy_and_gradient(x.unsqueeze(-1))[1][:, 0]
            curvature = torch.gradient(slope, spacing=(x,))[0]
            information = torch.trapezoid(density * slope.square(), x)
            spread = torch.trapezoid(density * (curvature - information).square(), x)
            total += 0.5 * each * float((S[t] - S[t + 1]) * r * spread / (1 - r * information))
        assert close(Estimate(value=found.per_step[t], error=found.per_step_error[t]), total)


def gauss_legendre(n: int) -> tuple[list[float], list[float]]:
    """Nodes and weights on [0, 1]."""
    k = torch.arange(1, n, dtype=torch.float64)
    off = k / (4 * k.square() - 1).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return ((values + 1) / 2).tolist(), vectors[0].square().tolist()


def gmm9(steps: int) -> SamplingMDP:
    start = StartConfig(kind="mixture", components=10, scale=1.6)
    schedule = ScheduleConfig(total_noise=0.8)
    return SamplingMDP(GMM9(), MDPConfig(num_steps=steps, schedule=schedule, start=start))


@pytest.fixture(scope="module")
def budgets() -> dict[str, ErrorBudget]:
    """Of the exact control of GMM-9 with 5 and 10 steps, and of a worse one with 5."""
    exact = {f"{steps}": oracle_sampler(gmm9(steps), n_fit=5_000) for steps in (5, 10)}
    right, mdp = exact["5"].policy, gmm9(5)
    mdp.load_state_dict(exact["5"].mdp.state_dict())
    mdp.rho.fill_(0.9)
    exact["worse"] = ChainSampler(mdp, lambda x, t: 0.7 * right(x, t))
    return {name: error_budget(each, n=5_000, paths=20_000) for name, each in exact.items()}


def test_the_parts_of_a_mixture_add_up_to_the_measured_gap(budgets: dict[str, ErrorBudget]) -> None:
    for budget in budgets.values():
        assert abs(budget.total.value / budget.gap.value - 1) < 0.1 and budget.adds_up
        error = math.hypot(budget.total.error, budget.gap.error)
        assert abs(budget.total.value - budget.gap.value) < 4 * error
        for part in budget.parts.values():
            assert sum(part.per_step) == pytest.approx(part.value, abs=1e-9) or not part.per_step


@pytest.mark.parametrize(
    ("before", "after", "purchase"),
    [("5", "10", "more steps"), ("worse", "5", "longer training")],
)
def test_predictions_come_true(
    budgets: dict[str, ErrorBudget], before: str, after: str, purchase: str
) -> None:
    gained = budgets[before].gap.value - budgets[after].gap.value
    predicted = budgets[before].predictions[purchase]  # type: ignore[index]
    error = math.hypot(predicted.error, budgets[before].gap.error, budgets[after].gap.error)
    assert predicted.value == pytest.approx(gained, rel=0.25)
    assert abs(predicted.value - gained) < 4 * error
    assert budgets[before].best == purchase and f"Buy {purchase}" in budgets[before].sentence


def test_posterior_draws_find_what_exact_values_find(budgets: dict[str, ErrorBudget]) -> None:
    mdp = budgets["5"]
    drawn = error_budget(oracle_sampler(gmm9(5), n_fit=5_000), n=300, paths=100, exact=False)
    assert drawn.method == "posterior draws"
    for name, part in drawn.parts.items():
        truth = mdp.parts[name]
        assert abs(part.value - truth.value) < 4 * math.hypot(part.error, truth.error) + 0.005


def test_the_same_seed_gives_the_same_budget_and_moves_no_counter() -> None:
    sampler = gaussian_sampler()
    before = sampler.mdp.energy_evaluations
    one, again, other = (error_budget(sampler, n=200, paths=50, seed=s) for s in (1, 1, 2))
    assert one == again != other and sampler.mdp.energy_evaluations == before


@pytest.mark.parametrize("kind", ["vp", "ve"])
def test_a_halved_chain_is_the_automatic_one_of_twice_the_steps(kind: str) -> None:
    schedule = ScheduleConfig(total_noise=0.7)
    once, twice = (Chain.build(schedule, kind, steps) for steps in (4, 8))  # type: ignore[arg-type]
    found = halved(once)
    for name in ("s", "a", "A", "S"):
        assert torch.allclose(getattr(found, name), getattr(twice, name), rtol=1e-9)
    steep = Chain.build(ScheduleConfig(kind="geometric", first=1.0, last=1e-3), "ve", 5)
    assert torch.allclose(halved(steep).S[::2], steep.S, rtol=1e-9)


def test_a_target_without_samples_is_split_from_the_samplers_own() -> None:
    class Ring(vgs_rl.Energy):
        dim = 2

        def energy(self, x: Tensor) -> Tensor:
            return 2 * (x.norm(dim=-1) - 1.5) ** 2

    schedule, start = ScheduleConfig(total_noise=0.3), StartConfig(kind="gaussian", scale=1.2)
    config = MDPConfig(chain="ve", num_steps=3, schedule=schedule, start=start)
    sampler = ChainSampler(SamplingMDP(Ring(), config), lambda x, t: torch.zeros_like(x))
    budget = error_budget(sampler, n=300, paths=5_000)
    assert budget.premise == "weighted samples of its own" and not budget.log_z_known
    assert budget.adds_up and 0.0 < budget.log_z_error < 0.1
    assert budget.best == "longer training"
    awful = ChainSampler(sampler.mdp, lambda x, t: 3 * x)
    assert "too uneven" in repr(error_budget(awful, n=100, paths=2_000))


def test_a_budget_is_shown_drawn_and_written(budgets: dict[str, ErrorBudget]) -> None:
    budget = budgets["worse"]
    state = json.loads(json.dumps(budget.as_dict(), allow_nan=False))
    assert state["sentence"] == budget.sentence in repr(budget)
    assert len(state["parts"]["learning"]["per_step"]) == 5
    figure = budget.plot()
    heights = sum(patch.get_height() for patch in figure.axes[0].patches)
    assert heights == pytest.approx(budget.total.value, rel=1e-6)
    assert len(plot_budgets([*budgets.values()]).axes) == 1


def test_a_sentence_admits_what_does_not_add_up(budgets: dict[str, ErrorBudget]) -> None:
    wrong = replace(budgets["5"], gap=Estimate(value=9.0, error=0.1))
    assert wrong.sentence.endswith("But the parts do not add up to the gap.")
    nothing = dict.fromkeys(wrong.predictions, Estimate(value=0.001, error=0.001))
    small = replace(budgets["5"], predictions=nothing)
    assert small.best is None and small.sentence.startswith("Nothing is worth buying")


def test_what_cannot_be_split_is_refused_by_name() -> None:
    sampler = gaussian_sampler()
    mdp = sampler.mdp
    warm = SamplingMDP(mdp.energy, replace(mdp.config, temperature=2.0))
    zeros = GaussianKernel(lambda x, t: (torch.zeros_like(x), torch.zeros_like(x)))
    cases = {
        "temperature 1, got 2": ChainSampler(warm, sampler.policy),
        "steps of one width, got the kernel GaussianKernel": ChainSampler(mdp, zeros),
        "noise_scale 1": ChainSampler(mdp, sampler.policy, noise_scale=0.9),
        "needs a ChainSampler, got MALA": vgs_rl.MALA("GMM9"),
    }
    for message, each in cases.items():
        with pytest.raises(ValueError, match=message):
            error_budget(each)
    with pytest.raises(ValueError, match="n must be at least 100, got 10"):
        error_budget(sampler, n=10)
    with pytest.raises(ValueError, match="exact must be False: DW4 has no exact values"):
        error_budget(
            ChainSampler(
                SamplingMDP(
                    vgs_rl.find("DW4").make_energy(),
                    MDPConfig(chain="ve", schedule=ScheduleConfig(total_noise=1.0)),
                ),
                sampler.policy,
            ),
            exact=True,
        )
