"""The picture of verdicts shows every result that has a number."""

import math

import pytest
from matplotlib.colors import to_hex

from vgs_rl.plots.verdicts import COLOURS, ERRORS, plot_verdicts


def row(target: str, verdict: str, right: bool | None, gap: float, ess: float) -> dict[str, object]:
    return {
        "target": target,
        "verdict": verdict,
        "right": right,
        "log Z - truth": gap,
        "ESS of all": ess,
    }


def test_results_have_the_colour_of_their_verdict_and_wrong_ones_are_hollow() -> None:
    figure = plot_verdicts(
        [
            row("near", "trust", True, -0.01, 0.9),
            row("far", "do not use", False, -4e11, 1e-6),
            row("none", "failed", False, math.nan, math.nan),
        ]
    )
    errors, shares = figure.axes
    assert [label.get_text() for label in errors.get_yticklabels()] == ["near", "far", "none"]
    dots = [line for line in errors.lines if line.get_marker() in ("o", "<", ">")]
    assert [(float(dot.get_xdata()[0]), dot.get_marker()) for dot in dots] == [
        (0.01, "o"),
        (ERRORS[1], ">"),
    ]
    assert [to_hex(dot.get_markeredgecolor()).upper() for dot in dots] == [
        COLOURS["trust"],
        COLOURS["do not use"],
    ]
    assert dots[0].get_markerfacecolor() == COLOURS["trust"]
    assert dots[1].get_markerfacecolor() == "white"
    assert errors.get_xscale() == shares.get_xscale() == "log"
    assert len(shares.lines) == 2


def test_no_results_are_no_picture() -> None:
    with pytest.raises(ValueError, match="rows must have at least one result, got none"):
        plot_verdicts([])
