"""Processes that share a batch: the same values, one error, and an end with their owner."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import foreign_functions as functions
import pytest
import torch

from vgs_rl import Energy
from vgs_rl.foreign import processes as pools
from vgs_rl.foreign.rows import FunctionError


def shared(function: Callable[[Any], Any], processes: int, **options: Any) -> Energy:
    options = {"framework": "numpy", **options}
    return Energy.from_function(function, 3, batched=False, processes=processes, **options)


def states(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def sleepers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where processes that sleep leave their numbers."""
    folder = tmp_path_factory.mktemp("sleepers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLEEPERS", str(folder))
        yield folder


@pytest.fixture(scope="module")
def pool(sleepers: Path) -> Iterator[Energy]:
    energy = shared(functions.failing, 2, gradient=functions.gradient)
    yield energy
    energy.function.__self__.pool.close()


def ids_of(energy: Energy) -> list[int]:
    return [worker.process.pid for worker in energy.function.__self__.pool._workers]


def gone(process: int) -> bool:
    """Whether a process ends within some seconds; one that is not waited for counts as ended."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("n", [0, 1, 2, 37])
def test_values_are_the_same_for_any_number_of_processes(pool: Energy, n: int) -> None:
    alone = shared(functions.failing, 0, gradient=functions.gradient)
    x = states(n)
    assert torch.equal(pool(x), alone(x))
    for got, right in zip(pool.with_gradient(x), alone.with_gradient(x), strict=True):
        assert torch.equal(got, right)


def test_the_first_state_that_fails_is_named_whoever_evaluates_it(pool: Energy) -> None:
    x = states(30)
    x[11, 0], x[12, 0], x[29, 0] = 7.0, 8.0, 7.0
    messages = []
    before = None
    for energy in (shared(functions.failing, 0), pool, pool):
        with pytest.raises(FunctionError, match="^failing failed on state 11 of 30") as caught:
            energy(x)
        messages.append(str(caught.value))
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        if energy is pool:
            assert before in (None, ids_of(pool))
            before = ids_of(pool)  # they stay
    assert len(set(messages)) == 1 and messages[0].endswith("ZeroDivisionError: no inverse")
    assert "in failing" in caught.value.__cause__.__notes__[0]  # where it was raised
    assert torch.equal(pool(x[:11]), shared(functions.failing, 0)(x[:11]))


def test_an_error_that_cannot_be_sent_is_told(pool: Energy) -> None:
    x = states(9)
    x[4, 0] = 8.0
    with pytest.raises(FunctionError, match=r"state 4 of 9.*OwnError: the solver gave up \(3\)$"):
        pool(x)


def test_what_must_not_be_returned_is_named(pool: Energy) -> None:
    x = states(9)
    x[4, 0] = 10.0
    with pytest.raises(ValueError, match=r"failing must return one real number .* shape \(3,\)"):
        pool(x)


def test_a_copy_has_the_same_processes_and_a_pickle_its_own(pool: Energy) -> None:
    pool(states(2))
    assert ids_of(copy.deepcopy(pool)) == ids_of(pool)
    other = pickle.loads(pickle.dumps(pool.function.__self__)).pool
    assert other.processes == 2 and not other._workers


def test_a_process_that_is_killed_is_one_error_and_others_start(pool: Energy) -> None:
    x = states(16)
    x[5, 0] = 9.0
    with pytest.raises(FunctionError, match=r"ended \(by SIGKILL\) while it called failing on sta"):
        pool(x)
    assert not ids_of(pool)
    assert torch.equal(pool(x[:5]), shared(functions.failing, 0)(x[:5]))


def test_each_process_has_one_thread(pool: Energy) -> None:
    before = dict(os.environ)
    values = pool(torch.full((40, 3), 11.0, dtype=torch.float64))
    assert {int(value) % 1000 for value in values} == {101}
    assert {int(value) // 1000 for value in values} <= set(ids_of(pool))
    assert dict(os.environ) == before and len(ids_of(pool)) == 2


def test_a_process_that_died_while_nobody_used_it_is_one_error(pool: Energy) -> None:
    pool(states(2))
    workers = pool.function.__self__.pool._workers
    process = next(worker.process.pid for worker in workers if worker.ready)  # others may start yet
    os.kill(process, signal.SIGKILL)
    assert gone(process)
    with pytest.raises(FunctionError, match=r"ended \(by SIGKILL\) while it called failing on sta"):
        pool(states(40))


def test_ctrl_c_ends_the_processes_whatever_they_do(pool: Energy, sleepers: Path) -> None:
    def interrupt() -> None:
        while len([*sleepers.iterdir()]) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        pool(torch.full((2, 3), 12.0))
    assert all(gone(int(path.name)) for path in sleepers.iterdir())


@pytest.mark.parametrize("framework", ["torch", "numpy"])
def test_what_cannot_be_sent_is_refused_at_once(framework: str) -> None:
    def inner(x: Any) -> Any:
        return x.sum()

    for function in (inner, lambda x: x.sum()):
        with pytest.raises(
            ValueError, match="cannot be sent to another process .*: with processes="
        ):
            shared(function, 2, framework=framework)


def test_what_others_cannot_load_is_said_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("only_here")
    exec("def energy(x):\n    return x.sum()", vars(module))
    monkeypatch.setitem(sys.modules, "only_here", module)
    energy = shared(module.energy, 1)
    with pytest.raises(ValueError, match="energy cannot be loaded in another process .*only_here"):
        energy(states(3))


def test_torch_functions_are_shared_with_their_autograd_and_end_with_the_energy() -> None:
    energy = shared(functions.torch_energy, 1, framework="torch")
    for dtype in (torch.float32, torch.float64):
        x = states(5).to(dtype)
        value, gradient = energy.with_gradient(x)
        torch.testing.assert_close(value, functions.torch_energy(x))
        torch.testing.assert_close(gradient, functions.torch_gradient(x))
        assert gradient.dtype == dtype and energy.gradient_evaluations == 1
    (process,) = ids_of(energy)
    del energy
    assert gone(process)


def test_where_no_process_may_start_the_work_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = types.SimpleNamespace(daemon=True, name="a job")
    monkeypatch.setattr(pools, "current_process", lambda: daemon)
    energy, x = shared(functions.energy, 3), states(5)
    with pytest.warns(UserWarning, match="energy runs in this process alone"):
        values = energy(x)
    assert torch.equal(values, shared(functions.energy, 0)(x)) and not ids_of(energy)


SCRIPT = """
import torch
from vgs_rl import Energy
import foreign_functions as functions

def work():
    energy = Energy.from_function(
        functions.failing, 1, framework="numpy", batched=False, processes=2
    )
    energy(torch.full((2, 1), 12.0))

{guard}work()
"""


def started(folder: Path, guard: str) -> subprocess.Popen[str]:
    script = folder / "script.py"
    script.write_text(SCRIPT.format(guard=guard))
    shared = {"PYTHONPATH": str(Path(functions.__file__).parent), "SLEEPERS": str(folder)}
    environment = {**os.environ, **shared}
    return subprocess.Popen(
        [sys.executable, str(script)], env=environment, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_processes_end_where_their_owner_is_killed(tmp_path: Path) -> None:
    owner = started(tmp_path, 'if __name__ == "__main__":\n    ')
    while len(sleeping := [path for path in tmp_path.iterdir() if path.name.isdigit()]) < 2:
        assert owner.poll() is None
        time.sleep(0.1)
    owner.kill()
    owner.communicate()
    assert all(gone(int(path.name)) for path in sleeping)


@pytest.mark.slow
def test_a_script_without_its_guard_is_told_of_it(tmp_path: Path) -> None:
    _, printed = started(tmp_path, "").communicate()
    last = printed.strip().splitlines()[-1]
    assert "RuntimeError: a process for failing ended (exit status 1) while it started" in last
    assert "under 'if __name__ == \"__main__\":'" in last
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]
