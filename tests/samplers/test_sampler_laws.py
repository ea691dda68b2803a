"""Laws that hold for every sampler: its temperature, its costs, its pilots, weights of 0."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vgs_rl import (
    ChainSampler,
    Energy,
    MDPConfig,
    SamplingMDP,
)
from vgs_rl.agents import (
    AnnealedSMC,
    ExactSampler,
    HMCSampler,
    MALASampler,
    ParallelTempering,
    RefinedSampler,
    TwistedSMC,
    ULASampler,
)
from vgs_rl.envs import FourGauss
from vgs_rl.evaluation.evaluate import evaluate
from vgs_rl.networks.base import ExactValue
from vgs_rl.networks.policies import ValueGradientPolicy
from vgs_rl.samplers.base import DrawnSampler, Sampler, pilot_generator


def chain(temperature: float = 1.0) -> ChainSampler:
    mdp = SamplingMDP(FourGauss(), MDPConfig(num_steps=4, temperature=temperature))
    return ChainSampler(mdp, lambda x, t: torch.zeros_like(x))


def twisted(temperature: float) -> TwistedSMC:
    mdp = chain(temperature).mdp
    return TwistedSMC(mdp, ValueGradientPolicy(mdp, ExactValue(mdp.energy, mdp.chain), "posterior"))


def on_the_target(kind: Callable[..., Sampler], *numbers: float, **options: float):
    return lambda tau: kind(FourGauss(), *numbers, temperature=tau, **options)


SAMPLERS: dict[str, Callable[[float], Sampler]] = {
    "chain": chain,
    "MALA": on_the_target(MALASampler, 400, chains=20),
    "ULA": on_the_target(ULASampler, 400, chains=20),
    "HMC": on_the_target(HMCSampler, 2_000, chains=20),
    "PT": on_the_target(ParallelTempering, 4_000, chains=5),
    "AIS": on_the_target(AnnealedSMC, 3, pilot=10),
    "annealed SMC": on_the_target(AnnealedSMC, 3, pilot=10, threshold=0.9),
    "twisted SMC": twisted,
    "refined": lambda tau: RefinedSampler(chain(tau), FourGauss(), 2, pilot=10),
    "drawn": lambda tau: DrawnSampler(chain(tau).sample(60)),
    "refined, drawn": lambda tau: RefinedSampler(
        DrawnSampler(chain(tau).sample(80)), FourGauss(), 2, pilot=10
    ),
}
OF_TRUTH = {
    "tvd_energy",
    "sinkhorn",
    "std_error",
    "mode_weight_error",
    "log_z_error",
    "log_z_high",
    "tv_bound",
    "eubo",
    "gap",
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_evaluated_at_its_own_temperature(name: str) -> None:
    sampler = SAMPLERS[name](2.0)
    assert sampler.temperature == 2.0
    report = evaluate(sampler, FourGauss(), 60)
    assert report.details["temperature"] == 2.0 and report.details["log_z"] is None
    assert not report.metrics.keys() & OF_TRUTH
    assert all(
        f.ideal is None for k, f in report.metrics.items() if k in ("elbo", "log_z", "log_z_low")
    )
    assert report.metrics.keys() <= {
        *("log_z", "log_z_low", "elbo", "ess", "largest_weight", "k_hat", "path_ess")
    }


@pytest.mark.parametrize("name", SAMPLERS)
def test_at_temperature_one_exact_samples_apply(name: str) -> None:
    sampler = SAMPLERS[name](1.0)
    metrics = evaluate(sampler, FourGauss(), 60).metrics
    assert {"tvd_energy", "mode_weight_error"} <= metrics.keys()
    assert ("elbo" in metrics) == (name in ("chain", "AIS", "drawn"))
    assert ("log_z_error" in metrics) == ("SMC" in name or "elbo" in metrics)


def test_the_exact_sampler_is_at_temperature_one() -> None:
    assert ExactSampler(FourGauss()).temperature == 1.0


def test_samples_carry_their_temperature_into_a_file(tmp_path) -> None:
    chain(2.0).sample(5).save(tmp_path / "samples.pt")
    loaded = DrawnSampler(type(chain().sample(1)).load(tmp_path / "samples.pt"))
    assert loaded.temperature == loaded.sample(5).temperature == 2.0


class Wrapped(Sampler):
    """A user's sampler around a chain of ours."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def _draw(self, n: int, generator: torch.Generator):
        return self.sampler.sample(n, generator)


@pytest.mark.parametrize("resample", [False, True])
@pytest.mark.parametrize("kind", ["chain", "twisted", "refined", "wrapped"])
def test_no_evaluation_moves_a_training_counter(kind: str, resample: bool) -> None:
    inner = twisted(1.0) if kind == "twisted" else chain()
    mdp = inner.mdp
    mdp.energy_evaluations = 17
    sampler: Sampler = inner
    if kind == "refined":
        sampler = RefinedSampler(inner, mdp.energy, 2, pilot=10)
        resample = False
    if kind == "wrapped":
        sampler = Wrapped(inner)
    report = evaluate(sampler, mdp.energy, 50, resample=resample)
    assert mdp.energy_evaluations == 17
    assert report.details["sampling_energy_evaluations"] >= 50 * (5 if resample else 1)


def test_the_pilot_of_twisted_smc_is_counted_in_its_first_draw() -> None:
    mdp = chain().mdp
    policy = ValueGradientPolicy(mdp, ExactValue(mdp.energy, mdp.chain), "posterior")
    sampler = TwistedSMC(mdp, policy, pilot=300)
    assert mdp.energy_evaluations == 0
    assert [sampler.sample(40).energy_evaluations for _ in range(2)] == [340, 40]


class Recorded(FourGauss):
    """Remembers every state it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def energy(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return super().energy(x)

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(x.detach().clone())
        return super().energy_and_gradient(x)


@pytest.mark.parametrize("name", ["AIS", "twisted SMC", "refined"])
def test_no_pilot_shares_rows_with_the_draw_of_any_small_seed(name: str) -> None:
    if name == "AIS":
        energy = Recorded()
        AnnealedSMC(energy, 2, pilot=20).sample(20)
        pilot, start = energy.seen[0], energy.seen[3 * (1 + 2 * 5)]
        assert pilot.shape == start.shape and not bool(torch.isin(pilot, start).any())
    for seed in range(3):
        own = torch.randn(50, generator=pilot_generator(torch.device("cpu")))
        drawn = torch.randn(50, generator=torch.Generator().manual_seed(seed))
        assert not bool(torch.isin(own, drawn).any())
    if name == "refined":
        inner = chain()
        asked: list[int] = []
        sample = inner.sample
        inner.sample = lambda n, generator=0, **options: (  # type: ignore[method-assign]
            asked.append(generator.initial_seed()) or sample(n, generator, **options)
        )
        RefinedSampler(inner, FourGauss(), 1, pilot=10).sample(10)
        assert asked[0] != asked[1] == 0


class HoleToTheRight(Energy):
    """A standard normal in the plane whose energy is `hole` for x_1 > edge."""

    dim = 2
    log_z = math.log(2 * math.pi)

    def __init__(self, hole: float, edge: float) -> None:
        super().__init__()
        self.hole, self.edge = hole, edge

    def energy(self, x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > self.edge, self.hole, 0.5 * x.square().sum(-1))


def with_hole(value: float) -> ChainSampler:
    """A chain that comes to x_1 > 3 now and then; what an energy is there shows late."""
    energy = HoleToTheRight(0.0, edge=3.0)
    mdp = SamplingMDP(energy, MDPConfig(num_steps=3))
    energy.hole = value
    return ChainSampler(mdp, lambda x, t: torch.zeros_like(x))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_states_of_unknown_energy_are_never_resampled(value: float) -> None:
    sampler = with_hole(value)
    with pytest.warns(UserWarning, match=r"of 8,000 log-weights are NaN or -inf"):
        samples = sampler.sample(2_000, resample=True)
    assert float(samples.x[:, 0].max()) <= 3.0
    assert len(samples.x.unique(dim=0)) > 200
    assert samples.log_weight is not None and bool(torch.isfinite(samples.log_weight).all())
    plain = sampler.sample(2_000)
    assert plain.log_weight is not None and not bool(plain.log_weight.isnan().any())
    assert bool((torch.isneginf(plain.log_weight) == (plain.x[:, 0] > 3.0)).all())


def test_an_energy_of_minus_infinity_is_an_error_that_counts() -> None:
    sampler = with_hole(-math.inf)
    count = int((sampler.sample(500).x[:, 0] > 3.0).sum())
    assert count > 0
    with pytest.raises(ValueError, match=rf"got {count} of 500: the energy is -inf there"):
        sampler.sample(500, resample=True, oversample=1)
    with pytest.raises(ValueError, match=r"must not be \+inf"):
        evaluate(sampler, sampler.mdp.energy, 500)
