"""What the time decided is decided again without it."""

import json
import math
import time

import pytest
import torch

from vgs_rl import FunctionEnergy
from vgs_rl.exploration import Clock, affordable_effort
from vgs_rl.samplers.mcmc.kernels import FiniteEnergy


def test_decisions_repeat_whatever_the_time_says() -> None:
    first = Clock(60.0)
    answers = [first.decide("updates", lambda k=k: k) for k in (7, 3)]  # type: ignore[misc]
    answers += [first.late(1e9), first.late(-1.0)]
    again = Clock(1.0, json.loads(json.dumps(first.decisions)))
    assert [again.decide("updates", lambda: 0) for _ in range(2)] == answers[:2] == [7, 3]
    assert [again.late(-1.0), again.late(1e9)] == answers[2:] == [False, True]
    assert again.decisions == first.decisions


def test_a_loop_ends_at_the_same_turn() -> None:
    def turns(clock: Clock, until: float) -> int:
        deadline, done = clock.deadline("turns", until), 0
        while done < 200 and not deadline():
            done += 1
            time.sleep(0.001)
        return done

    first = Clock()
    ran = [turns(first, 0.02), turns(first, 1e9)]
    assert ran[0] < 200 == ran[1] and first.decisions["turns"] == [ran[0] + 1, None]
    again = Clock(decisions=first.decisions)
    assert [turns(again, 1e9), turns(again, -1.0)] == ran
    assert again.decisions == first.decisions


def test_a_loop_that_was_ended_from_outside_ends_there_again() -> None:
    first = Clock()
    deadline = first.deadline("turns", 1e9)
    assert not deadline() and not deadline()
    deadline.end()
    again = Clock(decisions=first.decisions).deadline("turns", 1e9)
    assert [again() for _ in range(3)] == [False, True, True]


def test_a_run_that_goes_another_way_is_told() -> None:
    clock = Clock(decisions={"late": [True]})
    assert clock.late(1e9)
    for ask in (lambda: clock.late(1e9), lambda: clock.deadline("updates", 1.0)):
        with pytest.raises(ValueError, match=r"effort\.\w+ has too few entries"):
            ask()


def test_what_measures_the_time_is_not_counted() -> None:
    """A run that is repeated has the same count, however fast the machine is."""
    energy = FiniteEnergy(FunctionEnergy(lambda x: x.square().sum(-1), 3), dtype=torch.float64)
    assert affordable_effort(energy, 3, 60.0, "cpu") > 0
    assert energy.evaluations == 0
    assert affordable_effort(energy, 3, math.inf, "cpu") == math.inf
