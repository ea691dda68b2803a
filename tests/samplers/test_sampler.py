"""Samples as files, and samplers that hand out what was drawn before."""

from pathlib import Path

import pytest
import torch

from vgs_rl import VGS, MDPConfig
from vgs_rl.files.checkpoint import save_checkpoint
from vgs_rl.samplers.base import DrawnSampler, Samples


def make(log_weight: torch.Tensor | None = None) -> Samples:
    return Samples(x=torch.arange(20.0).view(10, 2), log_weight=log_weight, energy_evaluations=30)


@pytest.mark.parametrize("log_weight", [None, torch.linspace(-1, 1, 10)])
def test_samples_come_back_from_their_file(tmp_path: Path, log_weight: torch.Tensor | None) -> None:
    file = tmp_path / "samples.pt"
    make(log_weight).save(file)
    again = Samples.load(file)
    assert torch.equal(again.x, make().x) and again.energy_evaluations == 30
    if log_weight is None:
        assert again.log_weight is None
    else:
        assert torch.equal(again.log_weight, log_weight)


def test_another_file_is_no_samples(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "other.pt", {"x": torch.zeros(2), "config": "a"})
    with pytest.raises(ValueError, match="holds no samples, but a checkpoint of a training"):
        Samples.load(tmp_path / "other.pt")


def test_drawn_samples_are_handed_out_once_each() -> None:
    sampler = DrawnSampler(make(torch.linspace(-1, 1, 10)))
    parts = [sampler.sample(4), sampler.sample(6)]
    assert torch.equal(torch.cat([part.x for part in parts]), make().x)
    assert [part.energy_evaluations for part in parts] == [12, 18]
    with pytest.raises(ValueError, match="n must be at most 0, as many samples are left, got 1"):
        sampler.sample(1)


def test_drawn_samples_are_resampled_by_their_weights() -> None:
    log_weight = torch.full((10,), -torch.inf)
    log_weight[5] = 0.0
    sampler = DrawnSampler(make(log_weight))
    drawn = sampler.sample(2, 0, resample=True)  # from the first eight
    assert torch.equal(drawn.x, make().x[[5, 5]])
    torch.testing.assert_close(drawn.log_weight, torch.full((2,), 0.125).log())
    assert torch.equal(sampler.sample(2).x, make().x[8:])
    with pytest.raises(ValueError, match="resample needs log-weights"):
        DrawnSampler(make()).sample(2, resample=True)


def test_a_pytorch_too_old_to_trace_a_loop_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.export.ExportedProgram, "module", lambda self: None)
    sampler = VGS("FourGauss", mdp=MDPConfig(num_steps=2)).sampler()
    with pytest.raises(ValueError, match="a program needs a newer PyTorch than"):
        sampler.export(tmp_path / "sampler.pt2")
    assert list(tmp_path.iterdir()) == []
