import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vgs_rl import (
    Energy,
    MDPConfig,
    SamplingMDP,
    ScheduleConfig,
    StartConfig,
)
from vgs_rl.envs import FourGauss, Gaussian
from vgs_rl.geometry import Sphere
from vgs_rl.plots.curves import plot_steps
from vgs_rl.plots.plots import (
    plot_chain,
    plot_energy_histogram,
    plot_learning_curves,
    plot_summary,
    plot_value,
    save_figure,
    try_picture,
)

RECORDS: list[dict[str, Any]] = [
    {
        "updates": i,
        "env_steps": 100 * i,
        "seconds": 0.1 * i,
        "energy_evaluations": 10 * i,
        "train/loss": 5.0 / (1 + i),
        "eval/elbo": None if i == 3 else -3.0 / (1 + i),
        "eval/path_ess": i / (1 + i),
    }
    for i in range(20)
]


class Ring(Energy):
    """Two dimensions, and nothing exact."""

    dim = 2

    def energy(self, x: Tensor) -> Tensor:
        return 5.0 * (x.norm(dim=-1) - 3.0) ** 2


def chain(energy: Energy, num_steps: int = 6, temperature: float = 1.0) -> SamplingMDP:
    schedule = ScheduleConfig(kind="constant", first=0.2)
    config = MDPConfig(num_steps=num_steps, schedule=schedule, temperature=temperature)
    return SamplingMDP(energy, config)


def rest(x: Tensor, t: int) -> Tensor:
    """The control of an untrained chain."""
    return torch.zeros_like(x)


@pytest.fixture(autouse=True)
def _no_global_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No picture uses pyplot, changes settings or draws from the global generators."""
    before = dict(matplotlib.rcParams)
    state = torch.get_rng_state()
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it raises
    yield
    assert dict(matplotlib.rcParams) == before
    assert torch.equal(torch.get_rng_state(), state)


def dots(axes: Axes) -> np.ndarray[Any, Any]:
    """The points of a panel, shape (n, 2)."""
    (line,) = axes.get_lines()
    return np.asarray(line.get_xydata())


def every_axes(figure: Figure) -> list[Axes]:
    figure.canvas.draw()
    return figure.get_axes()


class TestChain:
    def test_every_panel_holds_the_states_of_its_time(self) -> None:
        mdp = chain(FourGauss())
        figure = plot_chain(mdp, rest, 50, mdp.generator(0), panels=4)
        states = mdp.rollout(rest, 50, mdp.generator(0), keep_states=True).states
        assert states is not None
        axes = every_axes(figure)
        assert [a.get_title() for a in axes] == ["$t = 0$", "$t = 2$", "$t = 4$", "$t = 6 = T$"]
        for panel, t in zip(axes, (0, 2, 4, 6), strict=True):
            np.testing.assert_allclose(dots(panel), states[t].numpy(), rtol=1e-6)

    def test_the_background_is_the_exact_density(self) -> None:
        energy = Gaussian(mean=[1.0, -1.0], covariance=[0.5, 0.5])
        mdp = chain(energy)
        axes = every_axes(plot_chain(mdp, rest, 50, mdp.generator(0)))
        (image,) = axes[-1].get_images()
        density = np.asarray(image.get_array())
        row, column = np.unravel_index(density.argmax(), density.shape)
        left, right, bottom, top = image.get_extent()
        assert left + (right - left) * (column + 0.5) / 160 == pytest.approx(1.0, abs=0.05)
        assert bottom + (top - bottom) * (row + 0.5) / 160 == pytest.approx(-1.0, abs=0.05)
        assert density.max() == pytest.approx(1.0)

    def test_more_dimensions_show_the_first_two_over_noised_exact_samples(self) -> None:
        mdp = chain(Gaussian(mean=[0.0] * 4, covariance=[1.0, 4.0, 1.0, 1.0]))
        axes = every_axes(plot_chain(mdp, rest, 30, mdp.generator(0), panels=2))
        for panel in axes:
            image = np.asarray(panel.get_images()[0].get_array())
            assert np.isfinite(image).all()
            assert image.max() > 0
            assert dots(panel).shape == (30, 2)

    def test_without_exact_values_only_the_target_itself_is_drawn(self) -> None:
        mdp = chain(Ring())
        axes = every_axes(plot_chain(mdp, rest, 30, mdp.generator(0), panels=3))
        assert [len(panel.get_images()) for panel in axes] == [0, 0, 1]

    def test_another_temperature_is_drawn_without_exact_samples(self) -> None:
        mdp = chain(FourGauss(), temperature=2.0)
        axes = every_axes(plot_chain(mdp, rest, 30, mdp.generator(0), panels=3))
        assert [len(panel.get_images()) for panel in axes] == [0, 0, 1]

    def test_diverged_states_do_not_break_the_picture(self) -> None:
        mdp = chain(Ring())
        figure = plot_chain(mdp, lambda x, t: x * float("nan"), 30, mdp.generator(0))
        assert all(np.isfinite(a.get_xlim()).all() for a in every_axes(figure))

    def test_it_costs_nothing_of_the_budget(self) -> None:
        mdp = chain(FourGauss())
        plot_chain(mdp, rest, 30, mdp.generator(0))
        assert mdp.energy_evaluations == 0

    def test_one_panel_is_refused(self) -> None:
        mdp = chain(FourGauss())
        with pytest.raises(ValueError, match="panels must be at least 2, got 1"):
            plot_chain(mdp, rest, 30, mdp.generator(0), panels=1)


class TestEnergies:
    def test_both_histograms_are_densities(self) -> None:
        generator = torch.Generator().manual_seed(0)
        energies = torch.rand(5_000, generator=generator)
        exact = torch.rand(8_000, generator=generator)
        (axes,) = every_axes(plot_energy_histogram(energies, exact))
        assert len(axes.patches) == 2
        for patch in axes.patches:
            heights, edges, _ = patch.get_data()  # type: ignore[attr-defined]
            assert (heights * np.diff(edges)).sum() == pytest.approx(1.0, abs=2e-3)

    def test_samples_beyond_the_range_are_told(self) -> None:
        exact = torch.linspace(0, 1, 1_000)
        energies = torch.cat([exact[:750], torch.full((200,), 1e9), torch.full((50,), torch.nan)])
        (axes,) = every_axes(plot_energy_histogram(energies, exact))
        assert [text.get_text().split("\n")[0] for text in axes.texts] == ["25.0 % of the sampler"]


class TestValue:
    def test_landscape_and_arrows_follow_the_functions(self) -> None:
        figure = plot_value(lambda x: x.square().sum(-1), lambda x: -x, 3, ((-2.0, 2.0), (-1, 1.0)))
        axes = every_axes(figure)[0]
        assert (axes.get_xlim(), axes.get_ylim()) == ((-2.0, 2.0), (-1.0, 1.0))
        assert "t = 3" in axes.get_title()
        arrows = next(c for c in axes.collections if type(c).__name__ == "Quiver")
        places, drift = arrows.XY, np.stack([arrows.U, arrows.V], -1)  # type: ignore[attr-defined]
        assert np.isfinite(drift).all()
        assert ((places * drift).sum(-1) < 0).all()
        cosine = (places * drift).sum(-1) / np.linalg.norm(places, axis=1)
        np.testing.assert_allclose(cosine, -np.linalg.norm(drift, axis=1), rtol=1e-5)


class TestLearningCurves:
    def test_each_recorded_tag_has_its_panel_with_finite_points(self) -> None:
        axes = every_axes(plot_learning_curves(RECORDS, log_z=0.0))
        assert [a.get_ylabel().split("  ")[0] for a in axes] == [
            "loss",
            "$\\log Z$ and its bounds",
            "path-ESS",
        ]
        points = np.asarray(axes[1].get_lines()[0].get_xydata())
        assert points.shape == (19, 2)  # the record without a value is left out
        assert np.isfinite(points).all()
        assert points[1].tolist() == [100.0, -1.5]

    def test_the_counter_can_be_chosen_and_must_exist(self) -> None:
        axes = every_axes(plot_learning_curves(RECORDS, "seconds"))
        assert axes[0].get_xlabel() == "training time  [s]"
        assert np.asarray(axes[0].get_lines()[0].get_xdata())[-1] == pytest.approx(1.9)
        with pytest.raises(ValueError, match="x must be one of env_steps, .* got 'epochs'"):
            plot_learning_curves(RECORDS, "epochs")

    def test_the_ideal_of_a_figure_is_a_line(self) -> None:
        records = [{**r, "eval/tvd_energy": 0.5, "eval/tvd_energy_ideal": 0.04} for r in RECORDS]
        lines = every_axes(plot_learning_curves(records))[-1].get_lines()
        assert np.asarray(lines[1].get_ydata()).tolist() == [0.04, 0.04]

    def test_no_records_give_an_empty_picture(self) -> None:
        (axes,) = every_axes(plot_learning_curves([]))
        assert axes.get_title() == "nothing recorded yet"


class TestHero:
    def test_all_parts_stand_together_where_the_target_admits_them(self) -> None:
        mdp = chain(FourGauss())
        figure = plot_summary(
            mdp, rest, mdp.generator(0), records=RECORDS, n=40, n_energy=300, title="Four"
        )
        labels = [axes.get_xlabel() for axes in every_axes(figure)]
        assert labels.count("$x_1$") == 6  # five panels and the landscape
        assert "energy $E(x)$  [nats]" in labels
        assert "environment steps" in labels
        assert figure.get_suptitle() == "Four"
        assert mdp.energy_evaluations == 0

    def test_what_a_target_does_not_admit_is_left_out(self) -> None:
        mdp = chain(Ring())
        assert len(every_axes(plot_summary(mdp, rest, mdp.generator(0), n=40))) == 5
        learned = plot_summary(
            mdp, rest, mdp.generator(0), value=lambda x, t: x.square().sum(-1), n=40
        )
        assert "drift, $t = 4$" in " ".join(a.get_title() for a in every_axes(learned))

    def test_the_same_generator_gives_the_same_picture(self, tmp_path: Path) -> None:
        for name in ("a.png", "b.png"):
            mdp = chain(FourGauss())
            save_figure(
                plot_summary(mdp, rest, mdp.generator(0), n=40, n_energy=300), tmp_path / name
            )
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


class TestSaving:
    def test_the_suffix_gives_the_format(self, tmp_path: Path) -> None:
        figure = plot_learning_curves(RECORDS)
        for suffix, magic in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")):
            save_figure(figure, tmp_path / f"curves{suffix}")
            assert (tmp_path / f"curves{suffix}").read_bytes().startswith(magic)
        assert len(os.listdir(tmp_path)) == 3

    def test_a_failed_save_leaves_the_old_picture_and_nothing_else(self, tmp_path: Path) -> None:
        class Broken(Figure):
            def savefig(self, fname: Any, **options: Any) -> None:
                fname.write(b"half")
                raise OSError("disk full")

        path = tmp_path / "picture.png"
        path.write_bytes(b"old")
        with pytest.raises(OSError, match="disk full"):
            save_figure(Broken(), path)
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["picture.png"]

    def test_a_path_without_suffix_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="must have a suffix"):
            save_figure(Figure(), tmp_path / "picture")


def test_steps_are_drawn_one_panel_a_figure_one_line_a_curve() -> None:
    points = {"elbo": [(5, -2.0), (10, -1.0)], "path_ess": [(5, 0.1), (10, 0.4)]}
    figure = plot_steps({"learned, posterior": points, "exact, posterior": points})
    assert [len(axes.lines) for axes in figure.axes] == [2, 2]
    learned, exact = figure.axes[0].lines
    assert learned.get_linestyle() == "-" and exact.get_linestyle() == "--"
    assert learned.get_color() == exact.get_color()
    assert list(learned.get_ydata()) == [-2.0, -1.0]


class Double(Energy):
    """One dimension, two wells at -2 and 2."""

    dim = 1

    def energy(self, x: Tensor) -> Tensor:
        return 0.25 * (x[:, 0] ** 2 - 4) ** 2


class Cut(Energy):
    """A normal density whose energy has a given value on one side."""

    def __init__(self, dim: int, value: float) -> None:
        super().__init__()
        self.dim, self.value_there = dim, value

    def energy(self, x: Tensor) -> Tensor:
        inside = 0.5 * x.square().sum(-1)
        return torch.where(x[:, 0] > 0.3, torch.full_like(inside, self.value_there), inside)


class TestEveryTarget:
    """Pictures are right for every D and T, and none of them ends anything."""

    def test_one_dimension_has_the_density_over_x_and_the_states_of_each_time(self) -> None:
        mdp = chain(Double(), num_steps=1)
        axes = every_axes(plot_chain(mdp, rest, 4000, mdp.generator(0)))
        assert [panel.get_title() for panel in axes] == ["$t = 0$", "$t = 1 = T$"]
        (states,) = (patch.get_data() for patch in axes[0].patches)  # no density is known there
        density, final = (patch.get_data() for patch in axes[1].patches)
        centres = 0.5 * (density.edges[1:] + density.edges[:-1])
        widths = np.diff(density.edges)
        assert (density.values * widths).sum() == pytest.approx(1.0)
        assert (density.values * widths * np.abs(centres)).sum() == pytest.approx(1.866, abs=0.002)
        assert (states.values * np.diff(states.edges)).sum() == pytest.approx(1.0, abs=0.05)
        x = mdp.rollout(rest, 4000, mdp.generator(0)).x
        counts = np.histogram(x[:, 0], final.edges)[0] / (4000 * np.diff(final.edges))
        np.testing.assert_allclose(final.values, counts)

    def test_one_dimension_has_its_exact_density_at_every_time(self) -> None:
        mdp = chain(Gaussian(mean=[1.0], covariance=[0.5]))
        figure = plot_summary(mdp, rest, mdp.generator(0), records=RECORDS, n=300, n_energy=500)
        axes = every_axes(figure)
        assert [len(panel.patches) for panel in axes[:5]] == [2] * 5
        for panel, t in zip(axes[:5], (0, 2, 3, 4, 6), strict=True):
            heights, edges, _ = panel.patches[0].get_data()
            peak = 0.5 * (edges[1:] + edges[:-1])[heights.argmax()]
            assert peak == pytest.approx(1.0 / float(mdp.chain.A[t]), abs=0.02)
        assert "value and drift, $t = 4$" in [panel.get_title() for panel in axes]

    @pytest.mark.parametrize("num_steps", [1, 2])
    @pytest.mark.parametrize("dim", [1, 2, 3])
    @pytest.mark.parametrize("value", [0.0, np.inf, 1e30, 3e38])
    def test_short_chains_and_bad_energies_are_drawn(
        self, value: float, dim: int, num_steps: int
    ) -> None:
        mdp = chain(Cut(dim, 0.0), num_steps)
        mdp.energy.value_there = value  # which was not so when it was probed
        generator = mdp.generator(0)
        energy = mdp.energy.energy
        plot_summary(mdp, rest, generator, value=lambda x, t: energy(x), records=RECORDS, n=40)
        x = torch.randn(30, dim, generator=generator)
        (axes,) = plot_energy_histogram(energy(x), energy(x[:1])).get_axes()
        assert len(axes.patches) == 2

    def test_the_landscape_stands_before_the_last_step(self) -> None:
        """A value at t = T is the energy; a policy has no drift there."""
        asked: list[int] = []

        def drift(x: Tensor, t: int) -> Tensor:
            asked.append(t)
            return torch.zeros_like(x)

        plot_summary(chain(Ring(), 1), drift, torch.Generator(), value=lambda x, t: x.norm(dim=-1))
        assert set(asked) == {0}

    def test_a_circle_has_no_density_in_the_plane(self) -> None:
        mdp = SamplingMDP(
            OnCircle(),
            MDPConfig(
                chain="ve",
                num_steps=2,
                schedule=ScheduleConfig(kind="constant", first=0.2),
                start=StartConfig(kind="uniform"),
            ),
        )
        axes = every_axes(plot_chain(mdp, rest, 30, mdp.generator(0)))
        assert [len(panel.get_images()) for panel in axes] == [0, 0, 0]

    def test_what_fails_is_one_warning_with_name_and_reason(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail() -> Figure:
            raise ZeroDivisionError("division\nby zero")

        assert try_picture("summary", fail) is None
        (record,) = caplog.records
        assert record.getMessage() == (
            "warning: no picture summary: ZeroDivisionError: division by zero"
        )
        assert try_picture("chain", lambda: 3) == 3

        def press() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            try_picture("chain", press)


class OnCircle(Energy):
    """Uniform but for a slope, on the unit circle."""

    dim = 2

    @property
    def geometry(self) -> Sphere:
        return Sphere(2)

    def energy(self, x: Tensor) -> Tensor:
        return 3.0 * x[:, 0]
