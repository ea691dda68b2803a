"""Energies are called from the caller's thread, unless they say that several may call them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

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
    GradientMatching,
    PISConfig,
    ValueGradientConfig,
    oracle_sampler,
)
from vgs_rl.envs import (
    GMM9,
    CheckError,
    LennardJones,
    check_energy,
)
from vgs_rl.samplers.base import Samples
from vgs_rl.threads import in_callers_thread, map_in_threads, measured
from vgs_rl.transitions import Policy

N = 5_000  # three chunks


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Bound(Energy):
    """Belongs to the thread that made it, and keeps its positions between two lines."""

    dim = 2

    def __init__(self) -> None:
        super().__init__()
        self.owner = threading.get_ident()

    def energy(self, x: Tensor) -> Tensor:
        if threading.get_ident() != self.owner:
            raise RuntimeError("made in another thread")
        self.positions = x
        return 0.5 * self.positions.square().sum(-1) + self.positions[:, 0]

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energy = self.energy(x)
        return energy, self.positions + torch.tensor([1.0, 0.0]).to(x)


class Free(Bound):
    """The same density, for any number of threads."""

    thread_safe = True

    def energy(self, x: Tensor) -> Tensor:
        return 0.5 * x.square().sum(-1) + x[:, 0]

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.energy(x), x + torch.tensor([1.0, 0.0]).to(x)


def value_gradient(drift: str) -> Callable[[SamplingMDP], ChainSampler]:
    def make(mdp: SamplingMDP) -> ChainSampler:
        objective = GradientMatching(batch_size=16, first_size=64, refresh_size=64, start_size=64)
        agent = ValueGradientConfig(objective=objective, drift=drift).build(mdp, seed=0)  # type: ignore[arg-type]
        agent.update()
        return agent.sampler()

    return make


def given(policy: Callable[[SamplingMDP], Policy]) -> Callable[[SamplingMDP], ChainSampler]:
    return lambda mdp: ChainSampler(mdp, policy(mdp))


SAMPLERS = {
    "posterior": value_gradient("posterior"),
    "bellman": value_gradient("bellman"),
    "pis": lambda mdp: PISConfig(batch_size=16, width=8).build(mdp, seed=0).sampler(),
    "border": given(lambda mdp: lambda x, t: -0.1 * mdp.evaluate_gradient(x)[1]),
    "raw": given(lambda mdp: lambda x, t: -0.1 * mdp.energy.energy_and_gradient(x)[1]),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_weights_do_not_depend_on_the_threads_nor_on_what_an_energy_says(name: str) -> None:
    drawn: list[Samples] = []
    for kind in (Bound, Free):
        for count in (1, 2, 4):
            torch.set_num_threads(1)
            sampler = SAMPLERS[name](SamplingMDP(kind(), MDPConfig(num_steps=3)))
            torch.set_num_threads(count)
            drawn.append(sampler.sample(N, 0))
            assert torch.get_num_threads() == count
    for samples in drawn[1:]:
        assert torch.equal(samples.x, drawn[0].x)
        assert samples.log_weight is not None and drawn[0].log_weight is not None
        assert torch.equal(samples.log_weight, drawn[0].log_weight)
        assert samples.energy_evaluations == drawn[0].energy_evaluations


def test_exact_values_of_an_energy_are_asked_for_in_its_thread() -> None:
    class Kept(GMM9):
        owner = threading.get_ident()

        def value_gradient(self, x: Tensor, t: int, chain: object) -> Tensor:
            assert threading.get_ident() == self.owner
            return super().value_gradient(x, t, chain)  # type: ignore[arg-type]

    torch.set_num_threads(2)
    samplers = [oracle_sampler(SamplingMDP(kind()), n_fit=100) for kind in (GMM9, Kept)]
    for sampler in samplers:
        sampler.chunk_size = 64
    a, b = (sampler.sample(256, 0) for sampler in samplers)
    assert torch.equal(a.x, b.x)


def test_a_class_that_changes_how_energies_come_about_has_to_say_it_itself() -> None:
    class Moved(GMM9):
        def energy(self, x: Tensor) -> Tensor:
            return super().energy(x - 1)

    class Mixin:
        def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
            raise NotImplementedError

    class Mixed(Mixin, GMM9):
        pass

    class OtherPotential(LennardJones):
        def _potential(self, square: Tensor) -> tuple[Tensor, Tensor]:
            return square, torch.ones_like(square)

    class OtherConstants(LennardJones):
        CORE = 0.8

        def __init__(self) -> None:
            super().__init__(n_particles=4)

    class Vouched(Moved):
        thread_safe = True

        def energy(self, x: Tensor) -> Tensor:
            return super().energy(x)

    replaced = GMM9()
    replaced.energy = lambda x: x.sum(-1)  # type: ignore[method-assign]
    safe = {
        kind.__name__: kind.thread_safe
        for kind in (GMM9, Moved, Mixed, OtherPotential, OtherConstants, Vouched, Bound)
    }
    assert safe == {
        "GMM9": True,
        "Moved": False,
        "Mixed": False,
        "OtherPotential": False,
        "OtherConstants": True,
        "Vouched": True,
        "Bound": False,
    }
    assert GMM9().thread_safe and not replaced.thread_safe


@pytest.mark.parametrize("fails_at", [1, 3])
def test_an_error_of_an_energy_reaches_the_caller(fails_at: int) -> None:
    class Fragile(Bound):
        calls = -1_000

        def energy(self, x: Tensor) -> Tensor:
            Fragile.calls += 1
            if Fragile.calls == fails_at:
                raise ArithmeticError("no forces")
            return super().energy(x)

    mdp = SamplingMDP(Fragile(), MDPConfig(num_steps=2))
    policy = value_gradient("bellman")(SamplingMDP(Free(), MDPConfig(num_steps=2))).policy
    policy.mdp = mdp  # type: ignore[attr-defined]
    torch.set_num_threads(2)
    Fragile.calls = 0
    with pytest.raises(ArithmeticError, match="no forces"):
        ChainSampler(mdp, policy).sample(20_000, 0)
    assert torch.get_num_threads() == 2


def test_what_is_not_waited_for_any_more_ends() -> None:
    torch.set_num_threads(2)
    results = map_in_threads(lambda i: in_callers_thread(lambda: i * i), range(20))
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    results.close()  # type: ignore[attr-defined]
    assert torch.get_num_threads() == 2
    assert list(map_in_threads(lambda i: i + 1, range(5), alone=True)) == [1, 2, 3, 4, 5]


class Keeps(Energy):
    dim = 2

    def energy(self, x: Tensor) -> Tensor:
        self.positions = x
        return 0.5 * self.positions.square().sum(-1)


class Promises(Keeps):
    thread_safe = True


class Locked(Keeps):
    thread_safe = True
    lock = threading.Lock()

    def energy(self, x: Tensor) -> Tensor:
        with self.lock:
            return super().energy(x)


def test_a_check_calls_an_energy_from_two_threads() -> None:
    with pytest.raises(CheckError, match="two threads at once: expected thread_safe to hold, but"):
        check_energy(Promises())
    name = "two threads at once"
    assert "it gave other values" in check_energy(Keeps()).skipped[name]
    assert "made in another thread" in check_energy(Bound()).skipped[name]
    assert name in check_energy(Locked()).passed
    assert name in check_energy(GMM9()).passed


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)


def steps_of(slow: dict[int, float], n: int = 200) -> list[int]:
    """Numbers of threads that a measured loop takes, where a step takes a time by their number."""
    times, used = [0.0], []
    for _ in measured(range(n), torch.device("cpu"), clock=lambda: sum(times)):
        used.append(torch.get_num_threads())
        times.append(slow[used[-1]])
    return used


@pytest.mark.parametrize(("slow", "kept"), [({2: 9.0, 1: 1.0}, 1), ({2: 1.0, 1: 1.7}, 2)])
def test_a_long_loop_takes_the_number_of_threads_that_is_faster(
    two_threads: None, slow: dict[int, float], kept: int
) -> None:
    used = steps_of(slow)
    assert set(used[:6]) == {1, 2}
    assert used.count(kept) > 0.9 * len(used)
    assert torch.get_num_threads() == 2


def test_a_loop_follows_a_machine_that_gets_busy(two_threads: None) -> None:
    times, used = [0.0], []
    for i in measured(range(300), torch.device("cpu"), clock=lambda: sum(times)):
        used.append(torch.get_num_threads())
        times.append({1: 1.7, 2: 1.0 if i < 150 else 50.0}[used[-1]])
    assert used[100] == 2 and used[-1] == 1


def test_a_loop_that_ends_early_leaves_the_threads_as_they_were(two_threads: None) -> None:
    with contextlib.suppress(ZeroDivisionError):
        for i in measured(range(10), torch.device("cpu")):
            1 // (1 - i)
    assert torch.get_num_threads() == 2


def test_a_number_of_threads_that_is_given_stays(
    two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert set(steps_of({2: 9.0, 1: 1.0})) == {2}
