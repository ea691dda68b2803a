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
from matplotlib.patches import Circle, StepPatch
from springs import ShippedSprings, Springs
from torch import Tensor

from vgs_rl import (
    Energy,
    MDPConfig,
    SamplingMDP,
    ScheduleConfig,
)
from vgs_rl.energy import Split
from vgs_rl.envs import GMM9
from vgs_rl.experiments.config import RunConfig
from vgs_rl.experiments.evaluation import final_figures
from vgs_rl.experiments.run import build
from vgs_rl.plots.particles import (
    cluster_summary,
    draw_cluster,
    plot_cluster_chain,
    plot_pair_distances,
    reference_states,
)
from vgs_rl.training.folder import RunFolder

RECORDS = [{"env_steps": 100 * i, "eval/elbo": -3.0 / (1 + i)} for i in range(9)]


class Bare(Springs):
    """Neither exact nor shipped samples."""

    can_sample = False

    def reference(self, split: Split = "test") -> Tensor:
        raise NotImplementedError


def chain(energy: Energy, temperature: float = 1.0) -> SamplingMDP:
    schedule = ScheduleConfig(kind="constant", first=0.2)
    return SamplingMDP(energy, MDPConfig(num_steps=6, schedule=schedule, temperature=temperature))


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


def every_axes(figure: Figure) -> list[Axes]:
    figure.canvas.draw()
    return figure.get_axes()


def histograms(axes: Axes) -> dict[str, np.ndarray[Any, Any]]:
    """Heights by label."""
    stairs = [patch for patch in axes.patches if isinstance(patch, StepPatch)]
    return {str(patch.get_label()): np.asarray(patch.get_data().values) for patch in stairs}


def spheres(centres: list[list[float]], radius: float = 0.5) -> np.ndarray[Any, Any]:
    """The image of spheres in the square ± 1, with opacity."""
    axes = Figure().subplots()
    draw_cluster(axes, np.array(centres), radius, 1.0)
    (image,) = axes.get_images()
    return np.asarray(image.get_array())


class TestCluster:
    def test_particles_in_the_plane_are_discs_at_their_places(self) -> None:
        axes = Figure().subplots()
        particles = np.array([[0.0, 1.0], [-1.0, 0.5]])
        draw_cluster(axes, particles, 0.3, 2.0)
        discs = [patch for patch in axes.patches if isinstance(patch, Circle)]
        assert [disc.get_center() for disc in discs] == [(0.0, 1.0), (-1.0, 0.5)]
        assert {disc.get_radius() for disc in discs} == {0.3}

    def test_a_sphere_covers_its_disc(self) -> None:
        opacity = spheres([[0.0, 0.0, 0.0]])[..., 3]
        assert opacity.mean() * 4.0 == pytest.approx(np.pi * 0.5**2, rel=0.01)
        rows, columns = np.nonzero(spheres([[0.4, -0.3, 0.0]], 0.2)[..., 3] > 0.5)
        side = len(opacity)
        assert 2 * columns.mean() / side - 1 == pytest.approx(0.4, abs=0.01)
        assert 2 * rows.mean() / side - 1 == pytest.approx(-0.3, abs=0.01)

    def test_the_nearer_sphere_hides_the_farther_in_any_order(self) -> None:
        near, far = [0.1, 0.0, 0.6], [-0.1, 0.0, -0.6]
        both = spheres([near, far])
        np.testing.assert_allclose(both, spheres([far, near]))
        alone = spheres([near, [9.0, 9.0, -0.6]])  # the farther one moved out of sight
        inside = alone[..., 3] == 1.0
        np.testing.assert_allclose(both[inside], alone[inside])

    def test_light_comes_from_above_on_the_left(self) -> None:
        image = spheres([[0.0, 0.0, 0.0]])[..., :3].mean(axis=-1)
        side = len(image)
        quarter = side // 3
        assert image[side - quarter, quarter] > image[quarter, side - quarter]

    def test_what_is_not_finite_or_outside_is_left_out(self) -> None:
        image = spheres([[np.nan, 0.0, 0.0], [7.0, 0.0, 0.0]])
        assert float(image[..., 3].max()) == 0.0


@pytest.mark.parametrize("dims", [2, 3])
class TestChain:
    def test_clusters_stand_above_distances_with_their_noised_reference(self, dims: int) -> None:
        mdp = chain(ShippedSprings(4, dims))
        figure = plot_cluster_chain(mdp, rest, mdp.generator(0), 40, 3)
        axes = every_axes(figure)
        titles = [panel.get_title() for panel in axes[:3]]
        assert titles == ["$t = 0$", "$t = 3$", "$t = 6 = T$"]
        assert [panel.get_xlabel() for panel in axes[3:]] == ["$r_{ij}$"] * 3
        for panel in axes[3:]:
            assert list(histograms(panel)) == ["reference samples, noised to step $t$", "sampler"]
        assert mdp.energy_evaluations == 0

    def test_without_any_samples_only_the_sampler_is_drawn(self, dims: int) -> None:
        for mdp in (chain(Bare(3, dims)), chain(Springs(3, dims), temperature=2.0)):
            axes = every_axes(plot_cluster_chain(mdp, rest, mdp.generator(0), 20, 2))
            assert [list(histograms(panel)) for panel in axes[2:]] == [["sampler"]] * 2

    def test_diverged_states_do_not_break_the_picture(self, dims: int) -> None:
        def diverge(x: Tensor, t: int) -> Tensor:
            return x * float("nan")

        for mdp in (chain(Springs(3, dims)), chain(Bare(3, dims))):
            figure = plot_cluster_chain(mdp, diverge, mdp.generator(0), 20)
            assert all(np.isfinite(panel.get_xlim()).all() for panel in every_axes(figure))


class TestSummary:
    def test_it_holds_the_chain_energies_distances_and_learning(self) -> None:
        mdp = chain(ShippedSprings(4, 3))
        x = mdp.rollout(rest, 50, mdp.generator(1)).x
        before = mdp.energy_evaluations
        figure = cluster_summary(
            mdp, rest, x, mdp.generator(0), records=RECORDS, n=30, panels=3, title="Springs"
        )
        labels = [panel.get_xlabel() for panel in every_axes(figure)]
        assert labels[6:] == [
            "energy $E(x)$  [nats]",
            "pair distance $r_{ij}$",
            "environment steps",
        ]
        assert figure.get_suptitle() == "Springs"
        assert mdp.energy_evaluations == before

    def test_what_a_target_does_not_admit_is_left_out(self) -> None:
        mdp = chain(Bare(4, 2))
        figure = cluster_summary(mdp, rest, torch.ones(9, 8), mdp.generator(0), n=20, panels=2)
        assert [panel.get_xlabel() for panel in every_axes(figure)][4:] == [
            "pair distance $r_{ij}$"
        ]

    def test_a_target_without_particles_is_refused(self) -> None:
        mdp = chain(GMM9())
        with pytest.raises(ValueError, match="GMM9 has no particle symmetry"):
            plot_cluster_chain(mdp, rest, mdp.generator(0), 20)


def test_pair_distances_are_compared_as_densities() -> None:
    energy = Springs()
    x, y = (energy.sample(n, torch.Generator().manual_seed(n)) for n in (400, 900))
    (axes,) = every_axes(plot_pair_distances(x, y, energy.symmetry))
    width = np.diff(axes.get_xlim())[0] / 100
    for heights in histograms(axes).values():
        assert float(heights.sum() * width) == pytest.approx(1.0, abs=0.02)


def test_pictures_in_training_do_not_see_the_test_split() -> None:
    class Guarded(ShippedSprings):
        def reference(self, split: Split = "test") -> Tensor:
            assert split == "validation"
            return super().reference(split)

    mdp = chain(Guarded())
    assert reference_states(mdp, mdp.generator(0)) is not None
    plot_cluster_chain(mdp, rest, mdp.generator(0), 20, 2)


def test_a_finished_run_on_particles_has_pictures_of_clusters(tmp_path: Path) -> None:
    config = RunConfig(env="DW4", mdp=MDPConfig(num_steps=3), device="cpu", output=tmp_path)
    config.evaluation.n_samples = 60
    target, agent = build(config)
    folder = RunFolder(config.folder, "env: DW4\n")
    try:
        pictures = final_figures(config, target, agent, folder, agent.sampler().sample(60, 0).x)
    finally:
        folder.close()
    assert list(pictures) == ["chain", "learning_curves", "distances", "energy", "summary"]
    assert pictures["summary"]().get_suptitle() == "DW4"
