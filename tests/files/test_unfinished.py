"""Long draws in pieces: what was kept is used, and the numbers are those of an undisturbed draw."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from vgs_rl.envs import Phi4
from vgs_rl.experiments.tempered_reference import TemperedRecipe, tempered_reference
from vgs_rl.files import checkpoint
from vgs_rl.files.unfinished import Unfinished
from vgs_rl.mdp import MDPConfig, SamplingMDP
from vgs_rl.registry import find
from vgs_rl.samplers.base import ChainSampler
from vgs_rl.samplers.mcmc.tempering import TemperingKernel, geometric_ladder


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every piece is written."""
    monkeypatch.setattr(Unfinished, "seconds", 0.0)


class Ended(BaseException):
    """What nothing catches."""


def sampler(end_at: int | None = None, *, safe: bool = True) -> ChainSampler:
    """A chain of three steps whose policy ends the draw at its so-and-so-manieth call."""
    calls = 0

    class Policy:
        thread_safe = safe

        def __call__(self, x: torch.Tensor, t: int) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == end_at:
                raise Ended
            return -0.1 * x

    mdp = SamplingMDP(find("GMM9").make_energy(), MDPConfig(num_steps=3))
    made = ChainSampler(mdp, Policy())
    made.chunk_size = 64
    return made


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("resample", [False, True])
@pytest.mark.parametrize("sequential", [False, True], ids=["threads", "one generator"])
def test_a_draw_goes_on_with_the_chunks_that_were_kept(
    resample: bool, sequential: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sequential:  # as on a GPU
        base: Any = ChainSampler.__mro__[1]
        monkeypatch.setattr(ChainSampler, "_draw_chunks", base._draw_chunks)
    whole = sampler().sample(500, 7, resample=resample)
    for end_at in (8, 5, 11):
        ended = sampler(end_at, safe=False)
        ended.unfinished = Unfinished(tmp_path / "kept", "a policy")
        with pytest.raises(Ended):
            ended.sample(500, 7, resample=resample)
    assert len(list((tmp_path / "kept").iterdir())) > 2
    last = sampler()
    drawn: list[int] = []
    episodes = last._episodes
    monkeypatch.setattr(last, "_episodes", lambda n, g: drawn.append(n) or episodes(n, g))
    last.unfinished = Unfinished(tmp_path / "kept", "a policy")
    again = last.sample(500, 7, resample=resample)
    assert torch.equal(again.x, whole.x)
    assert again.log_weight is not None and whole.log_weight is not None
    assert torch.equal(again.log_weight, whole.log_weight)
    assert again.energy_evaluations == whole.energy_evaluations
    assert sum(drawn) < (2000 if resample else 500)
    last.unfinished.remove()
    assert not (tmp_path / "kept").exists()


@pytest.mark.usefixtures("at_once")
def test_pieces_of_other_work_and_damaged_ones_are_not_used(tmp_path: Path) -> None:
    def keep(identity: str) -> None:
        with Unfinished(tmp_path / "kept", identity).work("part") as work:
            for number in range(3):
                work.add({"number": number})

    def kept(identity: str, name: str = "part") -> list[int]:
        with Unfinished(tmp_path / "kept", identity).work(name) as work:
            return [each["number"] for each in work.done]

    keep("one")
    assert kept("one") == [0, 1, 2] and kept("other") == [] and kept("one", "other part") == []
    second = sorted((tmp_path / "kept").iterdir())[1]
    second.write_bytes(second.read_bytes()[:-9])
    assert kept("one") == [0]
    (tmp_path / "kept/notes.txt").write_text("mine")
    Unfinished(tmp_path / "kept", "one").remove()
    assert [file.name for file in (tmp_path / "kept").iterdir()] == ["notes.txt"]


def test_short_work_writes_nothing(tmp_path: Path) -> None:
    quick = sampler()
    quick.unfinished = Unfinished(tmp_path / "kept", "a policy")
    quick.sample(500, 7)
    assert not (tmp_path / "kept").exists()


@pytest.mark.usefixtures("at_once")
def test_a_full_disk_warns_once_and_the_draw_ends_as_it_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sampler().sample(500, 7)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    made = sampler()
    made.unfinished = Unfinished(tmp_path / "kept", "a policy")
    with pytest.warns(UserWarning, match=r"is not kept: .* cannot be written: No space") as said:
        assert torch.equal(made.sample(500, 7).x, whole.x)
    assert len(said) == 1 and not list((tmp_path / "kept").iterdir())


def test_ctrl_c_leaves_a_draw_in_threads_at_once() -> None:
    """The threads leave their chunks between two steps."""
    mdp = SamplingMDP(find("GMM9").make_energy(), MDPConfig(num_steps=400))

    class Slow:
        thread_safe = True

        def __call__(self, x: torch.Tensor, t: int) -> torch.Tensor:
            time.sleep(0.01)
            return 0.0 * x

    slow = ChainSampler(mdp, Slow())
    slow.chunk_size = 8
    main = threading.main_thread().ident or 0
    torch.set_num_threads(2)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored
    try:
        threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            slow.sample(64, 0)
    finally:
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, handler)
    assert time.monotonic() - began < 3.0  # a chunk takes four seconds


def test_a_tempering_kernel_goes_on_from_its_state() -> None:
    energy = find("DW4").make_energy()
    generator = torch.Generator().manual_seed(0)
    x = energy.geometry.project(torch.randn(2, 3, 8, generator=generator))

    def made() -> TemperingKernel:
        return TemperingKernel(energy, x, geometric_ladder(2, 2.0))

    one, other = made(), made()
    for _ in range(3):
        one.sweep(generator, adapt=True)
    state, at = one.state_dict(), generator.get_state()
    for _ in range(3):
        one.sweep(generator, adapt=False)
    other.load_state_dict(state)
    generator.set_state(at)
    for _ in range(3):
        other.sweep(generator, adapt=False)
    for name, value in one.state_dict().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(other.state_dict()[name])), name
    with pytest.raises(ValueError, match=r"kernel\.x must have shape"):
        made().load_state_dict(state | {"x": x[:, :1]})


@pytest.mark.usefixtures("at_once")
def test_a_reference_goes_on_with_the_runs_that_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = TemperedRecipe(
        runs=3, validation_runs=1, particles=16, most_moves=1, validation=8, test=8
    )

    def make(folder: Path) -> Any:
        with Unfinished(folder, "Phi4").work("runs") as work:
            generator = torch.Generator().manual_seed(0)
            return tempered_reference(Phi4(2), recipe, generator, work)

    whole = make(tmp_path / "whole")
    smc = tempered_reference.__globals__["tempered_smc"]
    runs = 0

    def ends(*arguments: Any, **options: Any) -> Any:
        nonlocal runs
        runs += 1
        if runs == 3:
            raise Ended
        return smc(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setitem(tempered_reference.__globals__, "tempered_smc", ends)
        with pytest.raises(Ended):
            make(tmp_path / "parts")
        runs = 10
        again = make(tmp_path / "parts")
    assert runs == 11  # one run was left
    assert torch.equal(again.test, whole.test) and torch.equal(again.validation, whole.validation)
    assert again.diagnostics == whole.diagnostics
