"""Students: exact densities and weights, what a mixture knows, files, errors."""

import functools
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import call, without_pictures
from tiny import TINY
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import vgs_rl
from vgs_rl import CentreOfMassFree, MDPConfig, SamplingMDP, ScheduleConfig, Sphere
from vgs_rl.agents import DistilledAgent, DistilledConfig, ExactSampler, MLPNetwork
from vgs_rl.agents.distilled.densities import Choice, choose_density
from vgs_rl.agents.distilled.distill import MOST_STEPS, plan
from vgs_rl.agents.distilled.flow import FlowSampler, coupling_masks
from vgs_rl.agents.distilled.kernels import KernelStudent
from vgs_rl.agents.distilled.teacher import TeacherStates
from vgs_rl.envs import FourGauss, Funnel10, GaussianMixture, ManyWell
from vgs_rl.exploration import AffineMap, Composed, LocationScale
from vgs_rl.samplers.base import ChainSampler
from vgs_rl.starts import Mixture, ProductMixture, StartConfig
from vgs_rl.training.folder import RunFolder
from vgs_rl.weights import effective_share

SMALL = {"width": 8, "depth": 1, "components": 3}
WEIGHTS, MEANS = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([[-2.0, 0.5], [0.5, 1.0], [1.5, -1.0]])
VARIANCES = torch.tensor([[0.3, 0.5], [0.2, 0.4], [0.6, 0.1]])


def mixture_target(**options: object) -> GaussianMixture:
    return GaussianMixture(MEANS.tolist(), VARIANCES.tolist(), WEIGHTS.tolist(), **options)


def fitted() -> Mixture:
    return Mixture(weights=WEIGHTS.double(), means=MEANS.double(), covariances=VARIANCES.double())


BENT = Composed(
    AffineMap(torch.tensor([0.3, -0.2]), torch.tensor([[0.9, 0.0], [0.4, 1.2]])),
    LocationScale(
        torch.tensor([1, -1]),
        torch.tensor([[0.2, 0.5, -0.3], [0.0, 0.0, 0.0]]),
        torch.tensor([[0.1, 0.4, -0.2], [0.0, 0.0, 0.0]]),
    ),
)


def student(
    steps: int,
    chain: str = "ve",
    seed: int = 3,
    stir: float = 0.2,
    coordinates: Composed | None = None,
    **options: object,
) -> DistilledAgent:
    """A student whose weights are stirred, so that it is not what it begins as."""
    if steps == 1:
        pytest.importorskip("zuko")
    schedule = ScheduleConfig(total_noise=0.7)
    start = StartConfig(kind="noised", components=3, covariance="diagonal", learned=False)
    config = MDPConfig(chain=chain, num_steps=steps, schedule=schedule, start=start)  # type: ignore[arg-type]
    mdp = SamplingMDP(mixture_target(log_z=1.3), config)
    agent = DistilledConfig(**SMALL | options).build(mdp, seed=seed)
    mdp.start.become(fitted())  # type: ignore[operator]
    choice = Choice(fitted(), start, 1.0, coordinates)
    agent.average.begin(mdp.energy.sample(500, mdp.generator(0)), choice)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in agent.average.parameters():
            parameter.add_(stir * torch.randn(parameter.shape, generator=generator))
    return agent


@pytest.mark.parametrize("coordinates", [None, BENT], ids=["straight", "bent"])
def test_the_density_of_a_flow_integrates_to_one(coordinates: Composed | None) -> None:
    sampler = student(1, coordinates=coordinates).sampler()
    assert isinstance(sampler, FlowSampler)
    line = torch.linspace(-12, 12, 321)
    grid = torch.cartesian_prod(line, line)
    mass = sampler.log_prob(grid).double().exp().sum() * float(line[1] - line[0]) ** 2
    assert float(mass) == pytest.approx(1.0, abs=5e-3)


@pytest.mark.parametrize("coordinates", [None, BENT], ids=["straight", "bent"])
def test_a_flow_is_as_dense_where_it_draws_as_its_inverse_says(
    coordinates: Composed | None,
) -> None:
    agent = student(1, coordinates=coordinates)
    samples = agent.sampler().sample(500, 1)
    sampler = agent.sampler()
    assert isinstance(sampler, FlowSampler) and samples.log_weight is not None
    found = -agent.mdp.energy(samples.x) - sampler.log_prob(samples.x)
    assert torch.allclose(found, samples.log_weight, atol=2e-3)
    again = sampler.reverse_log_weight(samples.x, torch.Generator())
    assert torch.allclose(again, samples.log_weight, atol=2e-3)


def test_a_funnel_needs_one_step_and_no_training() -> None:
    pytest.importorskip("zuko")
    energy = Funnel10()
    student = vgs_rl.distill(ExactSampler(energy), energy, updates=0, states=4_000)
    samples = student.sampler().sample(4_000, 1)
    assert samples.log_weight is not None and samples.ess > 0.9
    assert float(samples.log_weight.mean()) == pytest.approx(0.0, abs=0.1)


def test_no_weight_is_large_between_modes() -> None:
    pytest.importorskip("zuko")
    energy = ManyWell(4)
    student = vgs_rl.distill(ExactSampler(energy), energy, updates=0, states=4_000)
    sampler = student.sampler()
    assert isinstance(sampler, FlowSampler) and energy.log_z is not None
    between = torch.zeros(1, 4)  # the top of both barriers
    log_w = -energy(between) - sampler.log_prob(between) - energy.log_z
    assert float(log_w) < 1.0


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("seed", [3, 4])
def test_the_mean_weight_of_any_student_is_z(steps: int, seed: int) -> None:
    log_weight = student(steps, seed=seed).sampler().sample(30_000, 0).log_weight
    assert log_weight is not None
    w = (log_weight.double() - 1.3).exp()
    assert abs(float(w.mean()) - 1) < 4.5 * float(w.std()) / math.sqrt(len(w))


@pytest.mark.parametrize("chain", ["vp", "ve"])
@pytest.mark.parametrize("factorised", [False, True])
def test_log_weights_of_a_chain_are_those_of_an_independent_computation(
    chain: str, factorised: bool
) -> None:
    agent = student(3, chain)
    mdp, network = agent.mdp, agent.average
    assert isinstance(network, KernelStudent)
    if factorised:
        network = DistilledConfig(**SMALL, factorised=True).build(mdp).average
        assert isinstance(network, KernelStudent)
    with torch.no_grad():
        states, log_weight = network.draw(mdp, 200, mdp.generator(5))
        found = -mdp.energy(states[-1]) - mdp.start.log_prob(states[0])
        for t in range(3):
            x, x_next, c = states[t], states[t + 1], network.components(states[t], t)
            a, s, sigma = mdp.chain.a[t], mdp.chain.s[t], mdp.chain.sigma[t]
            back = Normal(x_next / a, s).log_prob(x).sum(-1)
            means = a * x.unsqueeze(1) + sigma * c.mean  # the kernel of x_{t+1} itself
            parts = Normal(means, sigma * c.log_std.exp())
            if factorised:
                each = Normal(parts.loc.mT, parts.scale.mT)
                kernel = MixtureSameFamily(Categorical(logits=c.log_weight.mT), each)
                forth = kernel.log_prob(x_next).sum(-1)
            else:
                joint = MixtureSameFamily(Categorical(logits=c.log_weight), Independent(parts, 1))
                forth = joint.log_prob(x_next)
            found = found + back - forth
    assert torch.allclose(found, log_weight, atol=2e-3)


@pytest.mark.parametrize("chain", ["vp", "ve"])
@pytest.mark.parametrize("steps", [2, 5])
def test_of_a_mixture_the_untrained_student_is_exact(chain: str, steps: int) -> None:
    log_weight = student(steps, chain, stir=0.0).sampler().sample(300, 1).log_weight
    assert log_weight is not None
    assert torch.allclose(log_weight, torch.tensor(1.3), atol=2e-3)


def test_of_a_product_of_mixtures_the_untrained_student_is_exact() -> None:
    product = ProductMixture(
        weights=torch.tensor([[0.3, 0.7], [0.6, 0.4]]),
        means=torch.tensor([[-2.0, 1.0], [0.0, 3.0]]),
        variances=torch.tensor([[0.3, 0.5], [0.2, 0.4]]),
    )
    energy = vgs_rl.FunctionEnergy(lambda x: -product.log_prob(x), 2)
    config = MDPConfig(
        chain="ve",
        num_steps=2,
        schedule=ScheduleConfig(total_noise=0.5),
        start=StartConfig(kind="noised_product", components=2, learned=False),
    )
    mdp = SamplingMDP(energy, config)
    agent = DistilledConfig(width=8, depth=1, components=2, factorised=True).build(mdp)
    mdp.start.become(product)  # type: ignore[operator]
    agent.average.begin(torch.zeros(2, 2), Choice(product, config.start, 1.0))
    log_weight = agent.sampler().sample(300, 1).log_weight
    assert log_weight is not None and torch.allclose(log_weight, torch.zeros(()), atol=2e-3)


def test_any_two_coordinates_meet_in_a_coupling() -> None:
    for dim in (2, 3, 10, 16):
        kept = torch.stack(coupling_masks(dim))
        sees = (kept.unsqueeze(2) & ~kept.unsqueeze(1)).any(0)  # i is kept while j is moved
        assert bool((sees | torch.eye(dim, dtype=torch.bool)).all())
        assert bool(kept.any(1).all()) and not bool(kept.all(1).any())


def test_weights_make_states_of_the_target_out_of_a_wrong_teacher() -> None:
    teacher = student(2, stir=0.1).sampler()
    assert float(effective_share(teacher.sample(4_000, 0).log_weight)) < 0.95  # type: ignore[arg-type]
    states = TeacherStates.draw(teacher, 20_000, 1)
    nearest = torch.cdist(states.x, MEANS).argmin(1).bincount(minlength=3) / len(states.x)
    exact = mixture_target().sample(20_000, torch.Generator().manual_seed(0))
    expected = torch.cdist(exact.float(), MEANS).argmin(1).bincount(minlength=3) / len(exact)
    assert torch.allclose(nearest, expected, atol=0.03)
    assert len(states.held) == 2_000 and states.weighted and states.ess < 0.95


def test_coordinates_that_are_independent_get_a_product() -> None:
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (1_200, 5), generator=generator) * 6.0 - 3.0
    x = signs + torch.randn(1_200, 5, generator=generator)
    choice = choose_density(x, generator, chain=True)
    assert choice.config.kind == "noised_product" and choice.within == pytest.approx(1.0, abs=0.2)


class InDoubles(ExactSampler):
    def _draw(self, n: int, generator: torch.Generator) -> vgs_rl.Samples:
        samples = super()._draw(n, generator)
        return replace(samples, x=samples.x.double(), log_weight=torch.zeros(n).double())


@pytest.mark.parametrize("steps", [1, 2])
def test_a_teacher_may_draw_in_another_type_than_its_student(steps: int) -> None:
    """As an agent does whose target was explored."""
    pytest.importorskip("zuko")
    energy = FourGauss()
    student = vgs_rl.distill(
        InDoubles(energy), energy, steps=steps, updates=2, states=500, progress_bar=False
    )
    x = energy.sample(50, torch.Generator().manual_seed(0))
    sampler, seeds = student.sampler(), (torch.Generator().manual_seed(1) for _ in range(2))
    one, other = (
        sampler.reverse_log_weight(each, seed)
        for each, seed in zip((x, x.double()), seeds, strict=True)
    )
    assert torch.equal(one, other) and student.sample(20).x.dtype == torch.float32


@pytest.mark.parametrize("steps", [1, 2])
def test_a_student_learns_what_its_mixture_lacks_and_is_kept_in_files(
    steps: int, tmp_path: Path
) -> None:
    """A wave: no mixture is exact; the student's gap shrinks, and its file draws the same."""
    pytest.importorskip("zuko")

    class Wave(vgs_rl.Energy):
        dim = 2
        can_sample = True

        def energy(self, x: torch.Tensor) -> torch.Tensor:
            return 0.5 * x[:, 0] ** 2 + 4.0 * (x[:, 1] - (2 * x[:, 0]).sin()) ** 2

        def sample(self, n: int, generator: torch.Generator) -> torch.Tensor:
            z = torch.randn(n, 2, generator=generator)
            return torch.stack([z[:, 0], (2 * z[:, 0]).sin() + z[:, 1] / math.sqrt(8)], dim=1)

    energy = Wave()
    exact = ExactSampler(energy)
    with pytest.warns(UserWarning, match="no log-weights"):
        agent = vgs_rl.distill(
            exact, energy, steps=steps, updates=80, states=2_000, progress_bar=False
        )
    held = energy.sample(2_000, torch.Generator().manual_seed(9))

    def gap(drawing: DistilledAgent) -> float:
        sampler = drawing.sampler()
        reverse = sampler.reverse_log_weight(held, torch.Generator().manual_seed(1))
        forward = sampler.sample(2_000, 2).log_weight
        assert forward is not None
        return float(reverse.mean() - forward.mean())

    start = vgs_rl.distill(exact, energy, steps=steps, updates=0, states=2_000)
    assert gap(agent) < gap(start)
    agent.save(tmp_path / "student.pt")
    again = DistilledAgent.load(tmp_path / "student.pt", energy)
    assert torch.equal(again.sample(50, 3).x, agent.sample(50, 3).x)
    assert torch.equal(again.teacher.x, agent.teacher.x)


def test_the_command_distils_a_run_into_a_run_and_a_file(tmp_path: Path) -> None:
    settings = """\
budget: {updates: 20}
evaluation: {n_samples: 200, validation_samples: 100, validate_every: 10, figures_every: 0}
device: cpu
"""
    (tmp_path / "tiny.yaml").write_text(TINY + settings)
    with without_pictures():
        call("train", "tiny.yaml", "--progress=false", folder=tmp_path)
        options = ["--steps=2", "--updates=10", "--states=300", "--export=two.pt"]
        teacher = "runs/FourGauss/vgs/0"
        out, _ = call("distill", teacher, *options, "--progress=false", folder=tmp_path)
    assert "2 calls" in out and "teacher" in out
    run = vgs_rl.load_run(tmp_path / "runs/FourGauss/distilled-2/0", "best")
    sampler = vgs_rl.load_sampler(tmp_path / "two.pt", device="cpu")
    assert isinstance(sampler, ChainSampler) and sampler.mdp.num_steps == 2
    assert torch.equal(sampler.sample(64, 1).x, run.sample(64, 1).x)
    call("evaluate", "--pretrained=two.pt", "--n=100", folder=tmp_path)
    call("sample", "two.pt", "--n=10", "--output=x.npz", folder=tmp_path)
    with without_pictures():
        again = ["--resume", "runs/FourGauss/distilled-2/0", "--budget.updates=14"]
        call("train", *again, "--progress=false", folder=tmp_path)
    went_on = vgs_rl.load_run(tmp_path / "runs/FourGauss/distilled-2/0", "last")
    assert went_on.counters.updates == 14


class OnSphere(vgs_rl.Energy):
    dim = 3

    @property
    def geometry(self) -> Sphere:
        return Sphere(3)

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0]


class Different(OnSphere):
    """Three particles that do not exchange."""

    @property
    def geometry(self) -> CentreOfMassFree:  # type: ignore[override]
        return CentreOfMassFree(3, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": MOST_STEPS + 1}, f"steps must be at most {MOST_STEPS}"),
        ({"states": 10}, "states must be at least 100, got 10"),
        ({"updates": -1}, "updates must be at least 0, got -1"),
        ({"energy": OnSphere()}, "states in R\\^D, or of particles, .*, got OnSphere on a Sphere"),
        ({"energy": Different()}, "a symmetry to be distilled, .*, got Different without one"),
    ],
)
def test_what_cannot_be_distilled_is_refused_by_name(
    arguments: dict[str, object], message: str
) -> None:
    pytest.importorskip("zuko")
    with pytest.raises(ValueError, match=message):
        vgs_rl.distill(ExactSampler(FourGauss()), **arguments)  # type: ignore[arg-type]


def test_compiled_students_and_those_of_a_sphere_are_refused() -> None:
    with pytest.raises(ValueError, match="got OnSphere on a Sphere"):
        schedule, start = ScheduleConfig(total_noise=1.0), StartConfig(kind="uniform")
        chain = MDPConfig(chain="ve", num_steps=2, schedule=schedule, start=start)
        DistilledConfig().build(SamplingMDP(OnSphere(), chain))
    with pytest.raises(ValueError, match="compiled is for value gradients"):
        student(2).sampler(compiled=True)


def test_without_zuko_one_step_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'vgs-rl\[flows\]'"):
        plan(ExactSampler(FourGauss()), FourGauss(), 1)


def test_an_agent_of_one_step_draws_with_its_student_and_is_kept_with_it(tmp_path: Path) -> None:
    pytest.importorskip("zuko")
    network = MLPNetwork(width=8, depth=1)
    agent = vgs_rl.VGS(mixture_target(), seed=2, device="cpu", one_step=True, network=network)
    small = functools.partialmethod(vgs_rl.VGS.distill, updates=3, states=300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vgs_rl.VGS, "distill", small)
        agent.learn(updates=2, progress_bar=False)
    assert agent.student is not None and isinstance(agent.drawing, FlowSampler)
    assert agent.evaluate(50).energy_evaluations == (
        agent.counters.energy_evaluations + agent.student.counters.energy_evaluations
    )
    agent.save(tmp_path / "one.pt")
    again = vgs_rl.VGS.load(tmp_path / "one.pt", mixture_target(), device="cpu")
    assert torch.equal(again.sample(20, 5).x, agent.sample(20, 5).x)
    assert torch.equal(again.student.teacher.x, agent.student.teacher.x)  # type: ignore[union-attr]
    message = "folder must be left out where one_step is True"
    with RunFolder(tmp_path / "run", "x: 1\n") as folder, pytest.raises(ValueError, match=message):
        agent.learn(updates=4, folder=folder)
    with pytest.raises(ValueError, match="got Different without one"):
        vgs_rl.PIS(Different(), one_step=True)
