"""How the package calls a user's energy: copies, types, gradients, and names that are taken."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vgs_rl import (
    ChainSampler,
    Energy,
    MDPConfig,
    SamplingMDP,
    StartConfig,
)
from vgs_rl.agents import (
    GradientMatching,
    MALASampler,
    PISConfig,
    TrajectoryBalanceConfig,
    ValueGradientConfig,
)
from vgs_rl.envs import (
    DW4,
    GMM9,
    LJ13,
    CheckError,
    check_energy,
)
from vgs_rl.geometry import CentreOfMassFree, Sphere

SHORT = MDPConfig(num_steps=3)
SMALL = GradientMatching(
    batch_size=64, first_size=256, refresh_size=256, start_size=256, refresh_every=1
)


class Bowl(Energy):
    dim = 3

    def energy(self, x: Tensor) -> Tensor:
        return 0.5 * x.square().sum(-1)


class Hasty(Bowl):
    """Changes its x in place."""

    def energy(self, x: Tensor) -> Tensor:
        x *= 0.5
        return 2.0 * x.square().sum(-1)


class Reusing(Bowl):
    """Returns the same memory at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = torch.empty(100_000, dtype=torch.float64)

    def energy(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            return super().energy(x)
        self.memory[: len(x)] = super().energy(x)
        return self.memory[: len(x)]


class Double(Bowl):
    """Works in double precision only, and returns it."""

    dtype = torch.float64

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.eye(3, dtype=torch.float64))

    def energy(self, x: Tensor) -> Tensor:
        return 0.5 * (x @ self.matrix).square().sum(-1)


class Engine(Bowl):
    """Computes in NumPy, in double precision."""

    def energy(self, x: Tensor) -> Tensor:
        a = x.numpy().astype(np.float64)  # refuses a tensor that needs gradients
        return torch.from_numpy(0.5 * (a**2).sum(-1))


class DetachedEngine(Bowl):
    def energy(self, x: Tensor) -> Tensor:
        a = x.detach().numpy().astype(np.float64)
        return torch.from_numpy(0.5 * (a**2).sum(-1))


class EngineWithForces(Engine):
    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.energy(x), torch.from_numpy(x.numpy().astype(np.float64))


class OwnAutograd(Bowl):
    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x.requires_grad_(True)
        energy = self.energy(x)
        return energy, torch.autograd.grad(energy.sum(), x)[0]


class Attached(Bowl):
    """Has parameters of its own, which need gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def energy(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return self.scale * super().energy(x)


KINDS = [Hasty, Reusing, Double, Engine, DetachedEngine, EngineWithForces, OwnAutograd, Attached]
pytestmark = pytest.mark.filterwarnings("ignore:.*hides its gradient")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_kind_of_energy_gives_the_same_numbers_as_a_plain_one(
    kind: type[Energy], dtype: torch.dtype
) -> None:
    mdps = [SamplingMDP(make(), SHORT, dtype=dtype) for make in (Bowl, kind)]
    rollouts = []
    for mdp in mdps:
        with torch.no_grad():
            generator = mdp.generator(0)
            rollouts.append(mdp.rollout(lambda x, t: -0.1 * x, 50, generator, with_gradient=True))
    for name in ("x", "log_weight", "energy", "gradient", "cost"):
        right, got = (getattr(rollout, name) for rollout in rollouts)
        assert got.dtype == dtype and not got.requires_grad
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-4)
    # Another call leaves what was returned before as it was.
    x, energy = rollouts[1].x, rollouts[1].energy
    before = energy.clone()
    mdps[1].evaluate_energy(x + 1)
    assert torch.equal(energy, before)
    torch.testing.assert_close(0.5 * x.square().sum(-1), energy)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_energy_trains_and_samples(kind: type[Energy]) -> None:
    losses = []
    for make in (Bowl, kind):
        agent = ValueGradientConfig(objective=SMALL).build(SamplingMDP(make(), SHORT), seed=0)
        losses += [float(agent.update()["train/loss"]) for _ in range(2)]
    assert losses[:2] == pytest.approx(losses[2:], rel=1e-2, abs=1e-4)
    samples = agent.sampler().sample(100)
    assert samples.log_weight is not None and bool(samples.log_weight.isfinite().all())


@pytest.mark.parametrize("kind", [Hasty, Engine, EngineWithForces])
@pytest.mark.parametrize("config", [PISConfig, TrajectoryBalanceConfig])
def test_gradients_flow_back_through_an_energy_that_autograd_does_not_see(
    kind: type[Energy], config: Any
) -> None:
    weights = []
    for make in (Bowl, kind):
        agent = config(batch_size=64, width=8).build(SamplingMDP(make(), SHORT), seed=0)
        for _ in range(3):
            agent.update()
        weights.append(torch.cat([p.flatten() for p in agent.network.parameters()]))
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-4)


def test_differences_are_announced_once_and_counted_as_what_they_cost() -> None:
    seen = 0

    class Counting(DetachedEngine):
        def energy(self, x: Tensor) -> Tensor:
            nonlocal seen
            seen += len(x)
            return super().energy(x)

    mdp = SamplingMDP(Counting(), SHORT)
    seen = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
        _, gradient = mdp.evaluate_gradient(x)
        mdp.evaluate_gradient(x)
    assert [str(w.message) for w in caught] == [
        "Counting.energy hides its gradient from autograd: ∇E is taken by central differences, "
        "6 more evaluations per state; write energy_and_gradient(x), or energy(x) in torch "
        "operations"
    ]
    assert mdp.energy_evaluations == seen == 2 * 10 * 7
    torch.testing.assert_close(gradient, x, rtol=1e-4, atol=1e-4)


def test_a_budget_of_mcmc_holds_where_differences_stand_in_for_the_gradient() -> None:
    samples = MALASampler(Engine(), 7 * 400, chains=20).sample(20)
    assert samples.energy_evaluations == 7 * 400
    with pytest.raises(ValueError, match=r"at least 3 x chains x 7 per gradient of Engine = 420"):
        MALASampler(Engine(), 400, chains=20).sample(20)


@pytest.mark.parametrize("kind", [Reusing, Double, DetachedEngine, Engine, EngineWithForces])
def test_engines_of_another_type_pass_their_check(kind: type[Energy]) -> None:
    samples = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    report = check_energy(kind(), samples=samples)
    assert {"types on cpu, torch.float32", "gradient agrees with finite differences"} <= set(
        report.passed
    )


def test_a_check_names_an_energy_that_changes_its_states() -> None:
    with pytest.raises(CheckError, match="expected energy to leave x as it was, it changed 64 of"):
        check_energy(Hasty())


@pytest.mark.parametrize("energy", [DW4, LJ13, GMM9])
def test_targets_work_under_another_default_type(energy: type[Energy]) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        mdp = SamplingMDP(energy(), SHORT)
        rollout = mdp.rollout(lambda x, t: 0 * x, 4, mdp.generator(0))
        assert rollout.log_weight.dtype == torch.float32
        agent = ValueGradientConfig(
            objective=GradientMatching(
                batch_size=8, refresh_size=8, start_size=8, capacity=16, refine_steps=1,
                first_anneal_steps=2,
            )
        ).build(SamplingMDP(energy(), SHORT), seed=0)  # fmt: skip
        assert bool(agent.update()["train/loss"].isfinite())
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", ["gaussian", "mixture", "product"])
def test_a_start_has_the_digits_of_its_mdp(kind: Any) -> None:
    config = MDPConfig(num_steps=3, start=StartConfig(kind=kind, scale=1.3))
    mdp = SamplingMDP(GMM9(), config, dtype=torch.float64)
    values = {name: value for name, value in mdp.start.state_dict().items()}
    scale = values["log_scale"].exp() if kind == "gaussian" else values["variances"].sqrt()
    assert scale.dtype == torch.float64
    torch.testing.assert_close(scale, torch.full_like(scale, 1.3), rtol=1e-15, atol=0)


class Declares(Bowl):
    def __init__(self, buffers: dict[str, Any] | None = None, **attributes: Any) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)
        for name, value in (buffers or {}).items():
            self.register_buffer(name, value)


@pytest.mark.parametrize(
    ("attributes", "buffers"),
    [
        ({"data": torch.zeros(5)}, {}),
        ({"data": np.zeros((5, 3))}, {}),
        ({}, {"data": torch.zeros(5, 3)}),
        ({"data": torch.nn.Parameter(torch.zeros(5))}, {}),
        ({}, {"mode_probabilities": torch.ones(2) / 2}),
        ({"mode_probabilities": torch.ones(2) / 2}, {}),
        ({"geometry": Sphere(3)}, {}),
        ({"geometry": CentreOfMassFree(3, 1)}, {}),
        ({"log_z": 1.5}, {}),
        ({"dim": np.int64(3)}, {}),
    ],
)
def test_names_of_the_base_class_may_be_attributes_and_buffers(
    attributes: dict[str, Any], buffers: dict[str, Any]
) -> None:
    energy = Declares(buffers, **attributes)
    (name, value), *_ = (attributes | buffers).items()
    for each in (energy, copy.deepcopy(energy)):
        held = getattr(each, name)
        assert type(held) is type(value)
        if name != "geometry":  # of a linear chain
            SamplingMDP(each, SHORT)
            assert torch.equal(torch.as_tensor(held), torch.as_tensor(value))
    assert energy.symmetry is None


@pytest.mark.parametrize(
    ("attributes", "buffers", "message"),
    [
        ({"log_z": torch.zeros(2)}, {}, r"Declares.log_z must be a float or None, got a Tensor"),
        ({}, {"log_z": torch.zeros(())}, r"Declares.log_z must be a float or None, got a Tensor"),
        ({"symmetry": (3, 1)}, {}, r"Declares.symmetry must be a vgs_rl.Particles or None"),
        ({"geometry": Sphere(4)}, {}, r"Declares.geometry must be a .* of dim 3"),
        ({"mode_probabilities": [1.0]}, {}, r"Declares.mode_probabilities must be a tensor"),
        ({"dim": torch.tensor(3)}, {}, r"Declares.dim must be a positive integer"),
        ({}, {"dim": torch.tensor(3)}, r"Declares.dim cannot hold this"),
        ({"dtype": "float64"}, {}, r"Declares.dtype must be a floating torch.dtype or None"),
        ({"reference": torch.zeros(2)}, {}, r"Declares.reference cannot hold this: the name is"),
        ({}, {"value": torch.zeros(2)}, r"Declares.value cannot hold this: the name is taken"),
        ({"can_sample": True}, {}, r"Declares.can_sample cannot hold this: the name is taken"),
    ],
)
def test_what_a_name_of_the_base_class_cannot_hold_is_refused_by_name(
    attributes: dict[str, Any], buffers: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        SamplingMDP(Declares(buffers, **attributes), SHORT)


def test_an_energy_without_its_base_is_refused_by_name() -> None:
    class Forgetful(Bowl):
        def __init__(self) -> None:
            self.width = 2.0

    with pytest.raises(ValueError, match=r"^Forgetful.__init__ must call super\(\)"):
        SamplingMDP(Forgetful())


def test_samples_have_the_weights_of_their_own_states() -> None:
    policy = lambda x, t: 0 * x  # noqa: E731
    for kind in (Bowl, Hasty):
        mdp = SamplingMDP(kind(), SHORT)
        samples = ChainSampler(mdp, policy).sample(5000, 0)
        assert samples.log_weight is not None
        if kind is Bowl:
            right = samples
        torch.testing.assert_close(samples.x, right.x)
        torch.testing.assert_close(samples.log_weight, right.log_weight)
