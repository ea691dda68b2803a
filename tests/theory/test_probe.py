"""What is asked of an energy before any work starts, and what is counted of it later."""

from __future__ import annotations

import warnings
from collections.abc import Callable

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
from vgs_rl.agents import GradientMatching, ValueGradientConfig
from vgs_rl.agents.value_gradient.refinement import RefinedBuffer
from vgs_rl.registry import find
from vgs_rl.training.folder import RunFolder

SHORT = MDPConfig(num_steps=3, start=StartConfig(scale=1.0))


def energy_of(function: Callable[[Tensor], Tensor]) -> Energy:
    class Custom(Energy):
        dim = 2

        def energy(self, x: Tensor) -> Tensor:
            return function(x)

    return Custom()


def box(low: float, high: float, outside: float = torch.inf) -> Energy:
    def energy(x: Tensor) -> Tensor:
        inside = ((x > low) & (x < high)).all(-1)
        return torch.where(inside, 0.5 * x.square().sum(-1), outside)

    return energy_of(energy)


def failing(x: Tensor) -> Tensor:
    raise LookupError("no such atom")


@pytest.mark.parametrize(
    ("energy", "message"),
    [
        (energy_of(lambda x: x[:, 0] * 0 + torch.inf),
         r"Custom.energy is finite nowhere: NaN on 0 and infinite on 128 of 128 states drawn from "
         r"the start \(up to 3.41 in a coordinate\) and from where the untrained chain ends .* set "
         r"mdp.start.scale and agent.prior_std to the size of the region where it is finite"),
        (box(1e6, 1e6 + 1), "Custom.energy is finite nowhere: NaN on 0 and infinite on 128 of 128"),
        (energy_of(lambda x: x[:, 0] * torch.nan), "finite nowhere: NaN on 128 and infinite on 0"),
        (box(-0.5, 0.5, -torch.inf), r"Custom.energy returned -inf on \d+ of 192 states"),
        (energy_of(failing), r"Custom.energy failed on states of shape \(64, 2\) in torch.float32: "
         "LookupError: no such atom"),
    ],
)  # fmt: skip
def test_an_energy_that_cannot_be_sampled_is_refused_in_one_line(
    energy: Energy, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}" if message[0] == "C" else message) as error:
        SamplingMDP(energy, SHORT)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("energy", "message"),
    [
        (box(-9.0, 0.0), "NaN on 0 and infinite on 102 of 128 states .* have weight 0"),
        (box(-9.0, 0.0, torch.nan), "NaN on 102 and infinite on 0 of 128 states"),
        (box(9.0, 11.0), r"infinite on 128 of 128 states .*, which are all, and finite on some of "
         r"2048 others: set agent.prior_std \(or mdp.start.scale\)"),
    ],
)  # fmt: skip
def test_an_energy_that_is_finite_on_a_part_is_a_warning_with_the_share(
    energy: Energy, message: str
) -> None:
    with pytest.warns(UserWarning, match=f"Custom.energy is .*{message}"):
        mdp = SamplingMDP(energy, SHORT)
    assert mdp.energy_evaluations == 0


def test_the_probe_looks_where_the_chain_will_be() -> None:
    seen: list[Tensor] = []

    def energy(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.square().sum(-1) / 1e6

    SamplingMDP(energy_of(energy), MDPConfig(num_steps=3, start=StartConfig(scale=50.0)))
    stds = [float(x.std()) for x in seen if len(x) == 64]
    assert stds[0] == pytest.approx(50.0, rel=0.15)  # the start
    end = 50.0 * (1 - 0.95) ** -0.5  # of the shipped schedule: S_0 = 0.95 is A_0² = 20
    assert stds[1] == pytest.approx(end, rel=0.2)
    assert max(float(x.abs().max()) for x in seen) > 10 * end


@pytest.mark.parametrize("name", ["GMM9", "Funnel10", "ManyWell32", "DW4", "LJ13"])
def test_shipped_targets_are_probed_without_a_word(name: str) -> None:
    target = find(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SamplingMDP(target.make_energy(), target.mdp)


MATCHING = {"batch_size": 32, "first_size": 200, "refresh_size": 100, "start_size": 50}


@pytest.mark.filterwarnings("ignore:Custom.energy is")
@pytest.mark.parametrize("outside", [torch.inf, torch.nan])
def test_rows_that_are_left_out_of_a_buffer_are_counted_and_reported(outside: float) -> None:
    objective = GradientMatching(**MATCHING, refresh_every=1)  # type: ignore[arg-type]
    mdp = SamplingMDP(box(-9.0, 0.3, outside), SHORT)
    agent = ValueGradientConfig(objective=objective).build(mdp, seed=0)
    scalars = [agent.update() for _ in range(2)][-1]
    buffer = agent.objective.source.rows  # type: ignore[attr-defined]
    dropped = 200 + 100 - len(buffer.x)
    assert dropped > 50
    assert float(scalars["train/dropped_rows"]) == dropped
    assert agent.report_details()["dropped_rows"] == dropped
    again = ValueGradientConfig(objective=objective).build(
        SamplingMDP(box(-9.0, 0.3), SHORT), seed=0
    )
    again.load_state_dict(agent.state_dict())
    assert again.report_details()["dropped_rows"] == dropped


@pytest.mark.filterwarnings("ignore:Custom.energy is")
def test_states_without_an_energy_are_no_rows_of_a_refined_buffer() -> None:
    mdp = SamplingMDP(box(-9.0, 9.0), SHORT)
    buffer = RefinedBuffer(mdp, 6, max_drift=5.0)
    x = torch.tensor([[0.0, 0.0], [50.0, 0.0], [torch.nan, 1.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3]])
    buffer.add(x, 0, mdp.generator(0))
    assert torch.equal(buffer.x, x[[0, 3, 4, 5]]) and buffer.dropped == 2
    torch.testing.assert_close(buffer.gradient, buffer.x)
    # What comes next fills the room, then replaces: all six are there, and four old ones at most.
    new = torch.tensor([[-1.0, 0.0], [-2.0, 0.0], [-3.0, 0.0]])
    buffer.add(new, 0, mdp.generator(0))
    assert len(buffer) == 6 and buffer.dropped == 2
    assert sorted(buffer.x[:, 0].tolist())[:3] == [-3.0, -2.0, -1.0]


@pytest.mark.filterwarnings("ignore:Custom.energy is")
@pytest.mark.parametrize("refine_steps", [0, 1])
def test_training_without_any_usable_state_ends_in_one_line(refine_steps: int) -> None:
    objective = GradientMatching(**MATCHING, capacity=200, refine_steps=refine_steps)  # type: ignore[arg-type]
    agent = ValueGradientConfig(objective=objective).build(
        SamplingMDP(box(9.0, 11.0), SHORT), seed=0
    )
    message = (
        r"^Custom.energy and its gradient are finite at none of 200 states with coordinates up to "
        r"[\d.]+: set agent.prior_std, 1 now, to the size of the region where they are$"
    )
    with pytest.raises(ValueError, match=message):
        agent.update()


def test_energies_of_any_size_are_drawn_and_recorded(tmp_path) -> None:  # type: ignore[no-untyped-def]
    huge = energy_of(lambda x: 1e25 * x.square().sum(-1))
    mdp = SamplingMDP(huge, SHORT)
    samples = ChainSampler(mdp, lambda x, t: 0 * x).sample(100)
    assert samples.log_weight is not None and float(samples.log_weight.max()) < -1e20
    folder = RunFolder(tmp_path / "run", "seed: 0\n")
    folder.histogram("eval/energy", mdp.energy(samples.x), 0)
    folder.close()


class Wide(Energy):
    """A normal density of many dimensions."""

    dim = 3000

    def energy(self, x: Tensor) -> Tensor:
        return 0.5 * x.square().sum(-1)


def test_states_far_out_are_drawn_only_where_they_are_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A target of many dimensions costs no more than a look."""
    drawn, randn = [], torch.randn

    def counted(*size: int, **options: object) -> torch.Tensor:
        drawn.append(size[0])
        return randn(*size, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch, "randn", counted)
    SamplingMDP(Wide(), SHORT)
    assert sum(drawn) <= 3 * 64
