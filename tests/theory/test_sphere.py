"""The unit sphere: its geometry, the MDP's exactness on it, starts at data."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vgs_rl import (
    CentreOfMassFree,
    ChainSampler,
    Energy,
    Euclidean,
    MDPConfig,
    SamplingMDP,
    ScheduleConfig,
    Sphere,
    StartConfig,
)
from vgs_rl.agents import (
    TD0,
    GradientMatching,
    LogVarianceConfig,
    MALASampler,
    PISConfig,
    SoftBellman,
    TwistedSMC,
    ValueGradientAgent,
    ValueGradientConfig,
)
from vgs_rl.envs import SamplingVectorEnv, check_energy, check_vector_env
from vgs_rl.samplers.mcmc.langevin import LangevinKernel
from vgs_rl.starts import DataStart, UniformStart, make_start
from vgs_rl.training.config import BudgetConfig
from vgs_rl.transitions import State
from vgs_rl.weights import log_z_estimate

DOUBLE = torch.float64


class VonMisesFisher(Energy):
    """E = -kappa x_3 on the sphere in R^3; Z = 4 pi sinh(kappa) / kappa."""

    dim = 3

    def __init__(self, kappa: float = 2.0) -> None:
        super().__init__()
        self.kappa = kappa
        self.log_z = math.log(4 * math.pi * math.sinh(kappa) / kappa)

    @property
    def geometry(self) -> Sphere:
        return Sphere(3)

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        return -self.kappa * x[:, 2]

    def sample(self, n: int, generator: torch.Generator) -> torch.Tensor:
        u = torch.rand(n, generator=generator, device=generator.device, dtype=DOUBLE)
        height = 1 + (u + (1 - u) * math.exp(-2 * self.kappa)).log() / self.kappa
        angle = torch.rand(n, generator=generator, dtype=DOUBLE) * 2 * math.pi
        radius = (1 - height.square()).clamp_min(0).sqrt()
        return torch.stack([radius * angle.cos(), radius * angle.sin(), height], -1).float()


def config(num_steps=4, variance=0.1, start="uniform", **arguments):
    schedule = ScheduleConfig(kind="constant", first=variance)
    start = StartConfig(kind=start)
    return MDPConfig(chain="ve", num_steps=num_steps, schedule=schedule, start=start, **arguments)


def points(n, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sphere = Sphere(dim)
    x = sphere.project(torch.randn(n, dim, generator=generator, dtype=DOUBLE))
    v = sphere.tangent(torch.randn(n, dim, generator=generator, dtype=DOUBLE), x)
    return sphere, x, v


@given(st.integers(2, 40), st.floats(1e-9, 20.0), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_a_walk_stays_on_the_sphere_and_has_the_length_of_its_velocity(dim, scale, seed):
    sphere, x, v = points(16, dim, seed)
    scale = torch.tensor(scale, dtype=DOUBLE)
    end, arriving = sphere.geodesic(x, v, scale)
    torch.testing.assert_close(end.norm(dim=-1), torch.ones(16, dtype=DOUBLE))
    length = scale * v.norm(dim=-1)
    torch.testing.assert_close((x * end).sum(-1), length.cos(), rtol=0, atol=1e-10)
    # The velocity keeps its length, stays tangent, and leads back where it came from.
    torch.testing.assert_close(arriving.norm(dim=-1), v.norm(dim=-1))
    torch.testing.assert_close((arriving * end).sum(-1), torch.zeros(16, dtype=DOUBLE))
    back, returning = sphere.geodesic(end, -arriving, scale)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(returning, -v, rtol=0, atol=1e-8)


def test_a_walk_of_no_length_stays_and_has_a_finite_gradient():
    sphere, x, _ = points(3, 5)
    v = torch.zeros_like(x, requires_grad=True)
    end = sphere.move(x, v, torch.ones((), dtype=DOUBLE))
    torch.testing.assert_close(end.detach(), x)
    (gradient,) = torch.autograd.grad(end.sum(), v)
    assert bool(torch.isfinite(gradient).all())


def test_projection_is_the_nearest_point_and_tangents_are_orthogonal():
    sphere, x, v = points(50, 6)
    assert float((x * v).sum(-1).abs().max()) < 1e-14
    torch.testing.assert_close(sphere.tangent(v, x), v)
    torch.testing.assert_close(sphere.project(3.7 * x), x)
    assert sphere.effective_dim == 5


@pytest.mark.parametrize("space", [Euclidean(6), CentreOfMassFree(3, 2)])
def test_linear_spaces_move_in_straight_lines(space):
    generator = torch.Generator().manual_seed(0)
    x, v = space.project(torch.randn(2, 5, 6, generator=generator)).unbind(0)
    scale = torch.tensor(0.3)
    assert torch.equal(space.tangent(v, x), space.project(v))
    assert torch.equal(space.move(x, v, scale), torch.addcmul(x, scale, v))
    assert torch.equal(space.geodesic(x, v, scale)[1], v)


def test_a_step_is_isotropic_in_the_tangent_space():
    energy = VonMisesFisher()
    mdp = SamplingMDP(energy, config(1, variance=0.04), dtype=DOUBLE)
    generator = mdp.generator(0)
    n = 100_000
    x = torch.tensor([[0.6, 0.0, 0.8]], dtype=DOUBLE).expand(n, -1)
    end = mdp.step(State(x, 0), torch.zeros_like(x), generator).state.x
    axes = torch.tensor([[0.8, 0.0, -0.6], [0.0, 1.0, 0.0]], dtype=DOUBLE)
    # The logarithm at x gives the tangent vector back: N(0, s² I) in two dimensions.
    along = (end * x).sum(-1, keepdim=True)
    v = (end - along * x) * (along.arccos() / (1 - along.square()).sqrt())
    v = v @ axes.T
    expected = 0.04 * torch.eye(2, dtype=DOUBLE)
    torch.testing.assert_close(v.T @ v / n, expected, rtol=0, atol=5 * 0.04 * math.sqrt(2 / n))
    kurtosis = (v / 0.2).pow(4).mean(0)
    torch.testing.assert_close(kurtosis, torch.full((2,), 3.0, dtype=DOUBLE), rtol=0.05, atol=0)


def swirl(x, t):
    """A control that fits nothing: weights must be exact for it all the same."""
    u = torch.stack([x[:, 1] - 0.3 * x[:, 2], -x[:, 0], 0.8 * torch.ones(len(x))], -1)
    return Sphere(3).tangent(u.to(x), x)


@pytest.mark.parametrize("variance", [0.05, 9.0])
@pytest.mark.parametrize("rho", [1.0, 0.8])
def test_log_weight_is_unbiased_for_z_however_long_the_steps(variance, rho):
    """s = 3: most steps are longer than pi and wrap around."""
    energy = VonMisesFisher()
    mdp = SamplingMDP(energy, config(3, variance))
    mdp.rho.fill_(rho)
    samples = ChainSampler(mdp, swirl).sample(400_000, 0)
    w = (samples.log_weight.double() - energy.log_z).exp()
    error = float(w.std()) / math.sqrt(len(w))
    assert error < 0.05
    assert abs(float(w.mean()) - 1) < 4 * error


@pytest.mark.parametrize("variance", [0.05, 9.0])
def test_reverse_weights_are_unbiased_for_one_over_z(variance):
    energy = VonMisesFisher()
    mdp = SamplingMDP(energy, config(3, variance))
    sampler = ChainSampler(mdp, swirl)
    generator = mdp.generator(1)
    x = energy.sample(400_000, generator)
    log_weight = sampler.reverse_log_weight(x, generator).double()
    inverse = (energy.log_z - log_weight).exp()
    error = float(inverse.std()) / math.sqrt(len(inverse))
    assert error < 0.05
    assert abs(float(inverse.mean()) - 1) < 4 * error
    forward = sampler.sample(50_000, 2).log_weight
    assert float(forward.mean()) < energy.log_z < float(log_weight.mean())


def test_noising_ends_uniform_and_has_the_mean_of_a_random_walk():
    energy = VonMisesFisher()
    mdp = SamplingMDP(energy, config(5, variance=0.05), dtype=DOUBLE)
    n = 100_000
    x = torch.tensor([[0.0, 0.6, 0.8]], dtype=DOUBLE).expand(n, -1)
    # E[cos r] of one step, r² / s² ~ chi²_2, by quadrature; steps multiply.
    r = torch.linspace(0, 3, 20_001, dtype=DOUBLE)
    step = torch.trapezoid(r / 0.05 * torch.exp(-r.square() / 0.1) * r.cos(), r)
    for t in (0, 3, 5):
        mean = mdp.noised(x, t, mdp.generator(0)).mean(0)
        torch.testing.assert_close(mean, x[0] * step ** (5 - t), rtol=0, atol=5 / math.sqrt(n))
    rows = torch.tensor([0, 3, 5]).repeat(n // 3)
    mixed = mdp.noised(x[: len(rows)], rows, mdp.generator(0))
    for t in (0, 3, 5):
        mean = mixed[rows == t].mean(0)
        torch.testing.assert_close(mean, x[0] * step ** (5 - t), rtol=0, atol=10 / math.sqrt(n))
    assert torch.equal(mixed[rows == 5], x[: len(rows)][rows == 5])


def test_a_fitted_noise_scale_is_that_of_the_bridge():
    """Without drift the bridge's pushes have the step's own spread, and more from the curvature."""
    mdp = SamplingMDP(VonMisesFisher(0.1), config(3, variance=0.01))
    x = mdp.energy.sample(20_000, mdp.generator(0))
    mdp.fit_noise_scale(lambda x, t: torch.zeros_like(x), x, mdp.generator(1))
    torch.testing.assert_close(mdp.rho, torch.ones(3), rtol=0, atol=0.02)


def test_uniform_start_is_uniform_and_knows_its_density():
    start = UniformStart(Sphere(4))
    x = start.sample(100_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.T @ x / len(x), torch.eye(4) / 4, rtol=0, atol=0.01)
    torch.testing.assert_close(start.log_prob(x[:1]), torch.tensor([-math.log(2 * math.pi**2)]))
    with pytest.raises(ValueError, match="start.kind 'uniform' needs a Sphere .* got Euclidean"):
        make_start(StartConfig(kind="uniform"), Euclidean(3))


class Digits(VonMisesFisher):
    """With data, so that chains may start there."""

    def __init__(self, n: int = 40) -> None:
        super().__init__()
        self.rows = self.sample(n, torch.Generator().manual_seed(0))

    @property
    def data(self) -> torch.Tensor:
        return self.rows


class Bowl(Energy):
    dim = 2
    data = torch.tensor([[1.0, 0.0], [-1.0, 2.0]])

    def energy(self, x):
        return 0.5 * x.square().sum(-1)


def test_a_start_at_data_is_the_data_noised_by_the_chain():
    mdp = SamplingMDP(Bowl(), config(5, variance=0.02, start="data"))
    x = mdp.start.sample(100_000, mdp.generator(0))
    left = x[x[:, 0] < 0]
    torch.testing.assert_close(left.mean(0), mdp.start.data[1], rtol=0, atol=0.01)
    torch.testing.assert_close(left.var(0), torch.full((2,), 0.1), rtol=0.05, atol=0)
    mdp.start.widen(2.0)
    wide = mdp.start.sample(100_000, mdp.generator(0))
    torch.testing.assert_close(wide.var(0), torch.full((2,), 1 + 0.4), rtol=0.03, atol=0)
    on_sphere = SamplingMDP(Digits(), config(5, variance=0.02, start="data"))
    x = on_sphere.start.sample(1000, on_sphere.generator(0))
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(1000))


def test_data_that_are_not_on_the_sphere_are_refused():
    chain = SamplingMDP(VonMisesFisher(), config()).chain
    with pytest.raises(ValueError, match="data must lie on the Sphere, got a row off it by 1"):
        DataStart(Sphere(3), torch.tensor([[2.0, 0.0, 0.0]]), chain)
    with pytest.raises(ValueError, match=r"data must have shape \(N, 3\).* got \(3,\)"):
        DataStart(Sphere(3), torch.ones(3), chain)
    with pytest.raises(ValueError, match="data must be finite"):
        DataStart(Sphere(3), torch.full((1, 3), torch.nan), chain)
    with pytest.raises(ValueError, match="needs an energy with data, VonMisesFisher has none"):
        SamplingMDP(VonMisesFisher(), config(start="data"))


def test_without_a_density_there_are_no_weights_anywhere():
    mdp = SamplingMDP(Bowl(), config(5, start="data"))
    assert not mdp.start.has_density
    with pytest.raises(NotImplementedError, match="no density"):
        mdp.start.log_prob(torch.zeros(1, 2))
    sampler = ChainSampler(mdp, lambda x, t: torch.zeros_like(x))
    assert sampler.sample(10).log_weight is None and not sampler.has_reverse_weights
    with pytest.raises(ValueError, match="reverse_log_weight needs a start with a density"):
        sampler.reverse_log_weight(torch.zeros(1, 2), mdp.generator(0))
    for build in (
        lambda: ValueGradientConfig(objective=GradientMatching()).build(mdp),
        lambda: LogVarianceConfig().build(mdp),
        lambda: TwistedSMC(mdp, None),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match="needs a start with a density, got DataStart"):
            build()
    agent = PISConfig(batch_size=16).build(mdp)
    assert {"rollout/elbo", "rollout/path_ess"}.isdisjoint(agent.update())


def test_an_agent_learns_without_weights(tmp_path):
    """Validation has no ELBO then: no checkpoint is the best, the last one is kept."""
    from vgs_rl.training.config import EvaluationConfig
    from vgs_rl.training.folder import RunFolder

    mdp = SamplingMDP(Bowl(), config(5, start="data"))
    agent = ValueGradientAgent(mdp, ValueGradientConfig(objective=TD0(batch_size=32)), seed=0)
    evaluation = EvaluationConfig(validation_samples=50, validate_every=5, log_every=5)
    folder = RunFolder(tmp_path / "run", "")
    budget = BudgetConfig(updates=10)
    assert agent.learn(budget, evaluation=evaluation, folder=folder, progress_bar=False).finished
    folder.close()
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir()) == ["last.pt"]
    assert not any("eval/elbo" in record or "rollout/elbo" in record for record in folder.records)


@pytest.mark.parametrize("energy", [Digits(), Bowl()], ids=["sphere", "plane"])
def test_environments_with_a_start_at_data_pass_the_check_and_call_the_metric_log_path(energy):
    envs = SamplingVectorEnv(energy, num_envs=3, mdp=config(3, start="data"))
    report = check_vector_env(envs)
    assert "metrics of the sampling MDP" in report.passed
    envs.reset(seed=0)
    for _ in range(3):
        infos = envs.step(envs.action_space.sample())[-1]
    assert "log_path" in infos and "log_weight" not in infos


def test_the_sphere_environment_passes_the_check_and_its_weights_are_unbiased():
    energy = VonMisesFisher()
    assert (
        "metrics of the sampling MDP"
        in check_vector_env(SamplingVectorEnv(energy, num_envs=4, mdp=config(3))).passed
    )
    envs = SamplingVectorEnv(energy, num_envs=100_000, mdp=config(3))
    envs.action_space.seed(0)
    envs.reset(seed=0)
    for _ in range(3):
        infos = envs.step(0.05 * envs.action_space.sample())[-1]
    log_z = float(log_z_estimate(torch.from_numpy(infos["log_weight"])))
    assert abs(log_z - energy.log_z) < 0.02


def test_check_energy_knows_the_sphere():
    report = check_energy(VonMisesFisher())
    assert "Green's identity on the sphere" in report.passed
    assert "virial identity" not in report.passed


@pytest.mark.parametrize(
    ("drift", "objective"),
    [
        ("posterior", TD0),
        pytest.param("bellman", SoftBellman, marks=pytest.mark.slow),
        pytest.param("bellman", TD0, marks=pytest.mark.slow),
        pytest.param("posterior", SoftBellman, marks=pytest.mark.slow),
    ],
)
def test_the_value_gradient_agent_improves_the_elbo_on_the_sphere(drift, objective):
    energy = VonMisesFisher(4.0)
    mdp = SamplingMDP(energy, config(8, variance=0.15))
    objective = objective(batch_size=128, noise_scale=1.0, passes=2)
    options = ValueGradientConfig(drift=drift, objective=objective, ema=0.9, final_lr=1.0)
    agent = ValueGradientAgent(mdp, options, seed=0)
    before = ChainSampler(mdp, lambda x, t: torch.zeros_like(x)).sample(4000).log_weight.mean()
    agent.learn(BudgetConfig(updates=600), progress_bar=False)
    samples = agent.sampler().sample(20_000)
    elbo = float(samples.log_weight.mean())
    assert float(before) < energy.log_z - 1.5
    assert energy.log_z - 0.75 < elbo < energy.log_z
    assert abs(float(log_z_estimate(samples.log_weight)) - energy.log_z) < 0.05


def test_langevin_on_the_sphere_finds_the_mean_height():
    energy = VonMisesFisher(2.0)
    generator = torch.Generator().manual_seed(0)
    x = Sphere(3).project(torch.randn(20_000, 3, generator=generator))
    kernel = LangevinKernel(energy, x, step_size=0.02)
    for _ in range(200):
        kernel.step(generator)
    torch.testing.assert_close(kernel.x.norm(dim=-1), torch.ones(20_000))
    expected = 1 / math.tanh(2.0) - 0.5
    assert abs(float(kernel.x[:, 2].mean()) - expected) < 0.015


def test_what_needs_a_linear_space_says_so():
    energy = VonMisesFisher()
    with pytest.raises(ValueError, match="chain must be 've' on a Sphere.*got 'vp'"):
        SamplingMDP(energy)
    with pytest.raises(ValueError, match="start.kind 'gaussian' needs a linear geometry, got Sph"):
        SamplingMDP(energy, config(start="gaussian"))
    mdp = SamplingMDP(energy, config())
    with pytest.raises(ValueError, match="noise that belongs to no state needs a linear"):
        mdp.noise(3, mdp.generator(0))
    with pytest.raises(ValueError, match="needs a linear geometry, got Sphere"):
        mdp.noised_marginal(mdp.start.sample(2, mdp.generator(0)), 0, mdp.generator(0))
    with pytest.raises(ValueError, match="GradientMatching needs a linear geometry"):
        ValueGradientAgent(mdp)
    with pytest.raises(ValueError, match="MALA needs a linear geometry"):
        MALASampler(energy, 1000, chains=10).sample(10)
    with pytest.raises(ValueError, match="agent logvar needs a linear geometry"):
        LogVarianceConfig().build(mdp)
