"""docs/vgs_in_one_file.py: the algorithm alone, held to the laws and bounds of the package."""

import ast
import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from vgs_rl.chain import Chain, ScheduleConfig
from vgs_rl.envs.targets.gaussian import GMM9
from vgs_rl.files.yaml_text import parse_mapping

ROOT = Path(__file__).parent.parent
FILE = ROOT / "docs" / "vgs_in_one_file.py"


@pytest.fixture(scope="module")
def one() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vgs_in_one_file", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_it_needs_torch_alone() -> None:
    roots = set()
    for node in ast.walk(ast.parse(FILE.read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add(str(node.module).split(".")[0])
    assert roots - set(sys.stdlib_module_names) == {"torch", "tqdm"}


def test_target_chain_and_bounds_are_those_of_the_package(one: ModuleType) -> None:
    x = 4 * torch.randn(50, 2)
    torch.testing.assert_close(one.energy(x), GMM9().energy(x), rtol=1e-4, atol=1e-4)
    for kind, total in (("vp", 0.8), ("ve", 4.0)):
        theirs = Chain.build(ScheduleConfig(total_noise=total), kind, 20)
        ours = one.Chain(kind, 20, total)
        for name in ("a", "s", "sigma", "A", "S"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name).float())
    bounds = parse_mapping((ROOT / "configs/bounds.yaml").read_text(), "bounds")["gmm9"]
    del bounds["train_seconds"]
    assert {name: list(bound) for name, bound in one.BOUNDS.items()} == bounds


@pytest.mark.parametrize(("kind", "total"), [("vp", 0.8), ("ve", 4.0)])
def test_weights_of_an_untrained_chain_are_unbiased_for_z(
    one: ModuleType, kind: str, total: float
) -> None:
    torch.manual_seed(0)
    sampler = one.Sampler(one.Args(chain=kind, total_noise=total, start_scale=2.5, num_steps=8))
    with torch.no_grad():  # a wrong drift, which the weights have to undo
        sampler.value.readout.add_(0.02 * torch.randn(96))
    w = torch.cat([sampler.paths(10_000)[1].double() for _ in range(4)]).exp()
    error = float(w.std()) / math.sqrt(len(w))
    assert error < 0.05
    assert abs(float(w.mean()) - 1) < 4 * error


def test_a_short_training_lowers_the_loss_and_keeps_the_order_of_the_bounds(
    one: ModuleType,
) -> None:
    losses = []
    for updates in (0, 60):
        small = {"width": 48, "batch_size": 1024, "refresh_every": 20, "num_steps": 8, "ema": 0.9}
        sampler = one.train(one.Args(updates=updates, **small), progress=False)
        metrics = one.evaluate(sampler, 1_000)
        slack = 4 * metrics["log_z_standard_error"]
        assert metrics["elbo"] - slack <= metrics["log_z"] <= metrics["eubo"] + slack
        assert metrics["elbo"] < 0 < metrics["eubo"]
        assert abs(metrics["log_z"]) < slack
        torch.manual_seed(1)
        x_T = one.exact_samples(8_000)
        losses.append(float(one.gradient_matching_loss(sampler.value, sampler.chain, x_T).detach()))
    assert losses[1] < losses[0]


def test_the_loss_is_least_at_the_exact_gradient(one: ModuleType) -> None:
    torch.manual_seed(0)
    chain, target = one.Chain("vp", 10, 0.8), GMM9()
    exact = Chain.build(ScheduleConfig(total_noise=0.8), "vp", 10)

    class Shifted:
        def __init__(self, shift: float) -> None:
            self.shift = shift

        def gradient(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            slope = torch.stack(
                [target.value_gradient(x[i : i + 1], int(t[i]), exact)[0] for i in range(len(x))]
            )
            return slope + self.shift, torch.full_like(slope, 0.3)

    x_T = one.exact_samples(4_000)
    losses = []
    for shift in (-0.5, 0.0, 0.5):
        torch.manual_seed(1)
        losses.append(float(one.gradient_matching_loss(Shifted(shift), chain, x_T)))
    assert losses[1] < min(losses[0], losses[2])


def test_a_buffer_draws_by_weight_and_flattens_only_what_it_has_to(one: ModuleType) -> None:
    torch.manual_seed(0)
    x, buffer = torch.randn(20_000, 2), one.Buffer(20_000)
    buffer.add(x, x[:, 0])  # weights e^x of N(0, 1): drawn rows follow N(1, 1)
    assert abs(float(buffer.draw(50_000)[:, 0].mean()) - 1) < 0.05
    buffer.add(x, 40 * x[:, 0])
    assert float(one.effective_share(buffer.p.log())) == pytest.approx(0.1, abs=0.01)


def test_wrong_settings_are_one_line(one: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--chain", "vq"], "chain must be vp or ve, got vq"),
        (["--total-noise", "4"], "total_noise must be below 1 with vp, got 4.0"),
        (["--num-steps", "0"], "num_steps must be a positive number, got 0"),
    ):
        with pytest.raises(SystemExit) as caught:
            one.main(arguments)
        assert caught.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_run_keeps_the_bounds_of_gmm9(one: ModuleType) -> None:
    metrics = one.main(["--seed", "0"])
    assert {name: metrics[name] for name in one.BOUNDS if not one.within(name, metrics)} == {}
    assert metrics["elbo"] <= 0 <= metrics["eubo"]
