"""Time and memory against what can grow, and what the measurements say of many machines."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vgs_rl.experiments.benchmarks.scaling.scaling import TITLES, scaling
from vgs_rl.experiments.benchmarks.scaling.trainings import extrapolated
from vgs_rl.experiments.cli import Mistake

PARTS = [{"ranks": n, "ms_per_update": 100.0 / n} for n in (1, 4, 64, 1_024)]


@given(kib=st.floats(0, 1e6), meetings=st.floats(0, 1e3))
def test_ranks_that_divide_all_work_lose_what_their_meetings_take(kib: float, meetings: float):
    rows = extrapolated(PARTS, kib, meetings, bandwidth=1.0, latency=10.0)
    assert rows[0]["exchange_ms"] == 0.0 and rows[0]["efficiency_same_batch"] == 1.0
    for row, n in zip(rows, (1, 4, 64, 1_024), strict=True):
        assert row["speedup_same_batch"] == pytest.approx(n * row["efficiency_same_batch"])
        lost = 1.0 / row["efficiency_same_batch"] - 1.0
        assert lost == pytest.approx(n * row["exchange_ms"] / 100.0, abs=1e-9)


def test_the_volume_costs_the_same_for_any_number_of_ranks_and_meetings_a_hop_for_each_doubling():
    volume = extrapolated(PARTS, 1e6 / 2**10, 0, bandwidth=1.0, latency=10.0)
    assert [row["exchange_ms"] for row in volume] == pytest.approx([0.0, 2.0, 2.0, 2.0])
    meetings = extrapolated(PARTS, 0, 5, bandwidth=1.0, latency=10.0)
    assert [row["exchange_ms"] for row in meetings] == pytest.approx([0.0, 0.2, 0.6, 1.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": (2, 4)}, "parts must begin with 1"),
        ({"parts": ()}, "parts must be at least 1, got 0"),
        ({"ranks": (3,)}, "ranks must divide .* of dw4, .*, got 3"),
        ({"bandwidth": 0.0}, "bandwidth must be a positive number, got 0"),
        ({"name": "rl/sb3_ppo"}, "name"),
        ({"name": "nonsense"}, "nonsense"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_work(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{scaling.__module__}.print_machine", lambda _: pytest.fail("it began"))
    with pytest.raises((ValueError, Mistake), match=message):
        scaling(**options)


@pytest.mark.slow  # starts processes
def test_every_table_goes_into_the_page(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(
        "".join(f"<!-- scaling-{t}:begin -->\n<!-- scaling-{t}:end -->\n" for t in TITLES)
    )
    file = tmp_path / "scaling.json"
    scaling(
        num_envs=(10, 20),
        dims=(2,),
        num_steps=(2, 4),
        sampling_threads=(2,),
        draws=512,
        ranks=(2,),
        parts=(1, 2),
        name="gmm9",
        updates=2,
        long_updates=(20, 60),
        launched=2,
        repeats=1,
        json=file,
        markdown=page,
    )
    found = json.loads(file.read_text())
    (ranks,) = found["ranks"]
    assert ranks["meetings_per_update"] >= 1 and ranks["kib_per_update"] > 1
    assert [row["updates"] for row in found["updates"]] == [20, 60]
    (local,) = found["launchers"]
    assert local["launcher"] == "local" and local["efficiency"] > 0
    assert found["updates"][0]["log_mib"] < found["updates"][1]["log_mib"]
    assert all(f"**{title}**" in page.read_text() for title in TITLES.values())
