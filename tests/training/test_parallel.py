"""Ranks that train together: one gradient, one buffer in parts, one run folder, one end."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import ROOT, call, without_pictures
from tiny import TINY
from torch import nn
from torch.multiprocessing import spawn

from vgs_rl.agents import TD0, GradientMatching, PISConfig, TrajectoryBalanceConfig
from vgs_rl.agents.base import Agent
from vgs_rl.agents.ranks import ranks_of, state_of_all
from vgs_rl.agents.value_gradient.buffer import WeightedBuffer
from vgs_rl.agents.value_gradient.sources import WeightedSource
from vgs_rl.experiments.config import RunConfig
from vgs_rl.experiments.run import build, train
from vgs_rl.files.checkpoint import load_checkpoint
from vgs_rl.mdp import SamplingMDP
from vgs_rl.registry import find
from vgs_rl.training import parallel
from vgs_rl.training.config import BudgetConfig, ConfigError, EvaluationConfig
from vgs_rl.training.optim import Tally, guarded_step

RANKS = 2
UPDATES = 20
QUIET: dict[str, Any] = {"progress_bar": False}


class Lonely(Agent):
    """An agent that does not say that several processes can train it."""

    def _setup(self) -> None: ...

    def _train_step(self) -> Any: ...

    def sampler(self) -> Any: ...


def config_of(output: Path) -> RunConfig:
    config = RunConfig.from_yaml(TINY)
    config.budget = BudgetConfig(updates=UPDATES)
    config.evaluation = EvaluationConfig(n_samples=100, validation_samples=100, log_every=5)
    config.output = output
    return config


def line_batch() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.arange(24.0).view(8, 3).sin()
    return x, x @ torch.tensor([[1.0], [-2.0], [0.5]])


def gradient_of(x: torch.Tensor, y: torch.Tensor, broken: bool = False) -> dict[str, Any]:
    """One guarded step of a linear model, down the mean loss of a batch."""
    line = nn.Linear(3, 1)
    with torch.no_grad():
        for parameter in line.parameters():
            parameter.fill_(0.1)
    before = line.weight.detach().clone()
    optimizer, tally = torch.optim.Adam(line.parameters(), fused=True), Tally(torch.device("cpu"))
    loss = (line(x) - y).square().mean() * (torch.nan if broken else 1.0)
    guarded_step(optimizer, loss, tally)
    moved = not torch.equal(before, line.weight)
    return {"gradient": line.weight.grad, "skipped": int(tally.skipped), "moved": moved}


def buffer_rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(400, 2, generator=generator)
    return x, 4.0 * torch.randn(400, generator=generator)


def numbers_of(agent: Agent) -> torch.Tensor:
    """Whatever all ranks have alike, as one vector."""
    parts = [agent.network, agent.mdp, getattr(agent, "averaged", agent.network)]
    tensors = [t for part in parts for t in (*part.parameters(), *part.buffers())]
    return torch.cat([tensor.detach().flatten().double() for tensor in tensors])


def work(rank: int, folder: Path, port: int) -> None:
    """What each of the ranks does."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_PORT": port}
    os.environ.update({k: str(v) for k, v in place.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    with parallel.joined("cpu"):
        found = {name: do(folder) for name, do in SCENES.items()}
    torch.save(found, folder / f"{rank}.pt")


def halves(folder: Path) -> Any:
    x, y = (part.chunk(RANKS)[parallel.rank()] for part in line_batch())
    return gradient_of(x, y)


def broken(folder: Path) -> Any:
    return gradient_of(*line_batch(), broken=parallel.rank() == 1)


def buffers(folder: Path) -> Any:
    x, log_weight = buffer_rows()
    mine = slice(0, 100) if parallel.is_first() else slice(100, None)
    source = WeightedSource(GradientMatching(), vgs(folder))
    source.rows.add(x[mine], x[mine], log_weight[mine])
    return {
        "mean_square": float(source.mean_square(x.shape[1])),
        "share": source.share,
        "drawn": len(source.draw_part(1000, torch.Generator().manual_seed(0))),
    }


def training(folder: Path) -> Any:
    agents = list[Agent]()
    with without_pictures():
        report = train(config_of(folder), begin=agents.append, **QUIET)
    assert report is not None
    return {"counters": vars(agents[0].counters), "elbo": report.metrics["elbo"].value}


def vgs(folder: Path) -> Agent:
    return build(config_of(folder))[1]


def whole(folder: Path) -> Any:
    agent = vgs(folder).learn(updates=UPDATES, **QUIET)
    state = agent.generator.get_state()
    return {"numbers": numbers_of(agent), "rows": len(agent.objective.source.rows), "state": state}


def interrupted(folder: Path) -> Any:
    """Stopped by one rank, after 8 updates; then another agent goes on from that state."""
    agent = vgs(folder)

    def goes_on(agent: Agent) -> bool:
        return parallel.is_first() or agent.counters.updates < 8

    agent.learn(updates=UPDATES, callback=goes_on, **QUIET)
    stopped = agent.counters.updates
    state = parallel.from_first(state_of_all(agent))
    again = vgs(folder)
    again.load_state_dict(state)
    again.learn(updates=UPDATES, **QUIET)
    return {"stopped": stopped, "numbers": numbers_of(again)}


def others(folder: Path) -> Any:
    config = config_of(folder)
    found = []
    for kind in (
        PISConfig(batch_size=64),
        TrajectoryBalanceConfig(batch_size=64),
        type(config.agent)(objective=TD0(batch_size=64), network=config.agent.network),
    ):
        agent = kind.build(SamplingMDP(find("FourGauss").make_energy(), config.mdp))
        found.append(numbers_of(agent.learn(updates=3, **QUIET)))
    return found


def refusals(folder: Path) -> Any:
    found = []
    config = config_of(folder)
    config.agent.objective.batch_size = 127
    for refused in (
        lambda: build(config),
        lambda: Lonely(SamplingMDP(find("FourGauss").make_energy())),
    ):
        try:
            refused()
        except (ValueError, ConfigError) as error:
            found.append(str(error))
    return found


SCENES = {
    each.__name__: each
    for each in (halves, broken, buffers, training, whole, interrupted, others, refusals)
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What the ranks have found, by scene; two processes for all tests of this file."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(work, (folder, port), nprocs=RANKS)
    found = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]
    return {name: [each[name] for each in found] for name in SCENES} | {"folder": [folder]}


def test_the_halves_of_a_batch_have_the_gradient_of_the_batch(ranks: dict[str, list[Any]]) -> None:
    alone = gradient_of(*line_batch())["gradient"]
    first, second = (each["gradient"] for each in ranks["halves"])
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone, rtol=1e-6, atol=1e-7)


def test_a_loss_that_is_not_finite_on_one_rank_is_a_step_of_none(
    ranks: dict[str, list[Any]],
) -> None:
    assert [(each["skipped"], each["moved"]) for each in ranks["broken"]] == [(1, False)] * 2
    assert all(each["moved"] for each in ranks["halves"])


def test_weights_are_normalised_over_the_rows_of_all_ranks(ranks: dict[str, list[Any]]) -> None:
    x, log_weight = buffer_rows()
    alone = WeightedBuffer(40_000, GradientMatching().least_ess)
    alone.add(x, x, log_weight)
    for each in ranks["buffers"]:
        assert each["mean_square"] == pytest.approx(float(alone.mean_square(x.shape[1])), rel=1e-9)
    shares, drawn = ([each[name] for each in ranks["buffers"]] for name in ("share", "drawn"))
    assert sum(shares) == pytest.approx(RANKS)
    assert sum(drawn) == 1000 * RANKS
    assert drawn[0] == pytest.approx(1000 * shares[0], abs=1)


def test_ranks_stay_equal_and_their_random_numbers_apart(ranks: dict[str, list[Any]]) -> None:
    first, second = ranks["whole"]
    assert torch.equal(first["numbers"], second["numbers"])
    assert first["numbers"].isfinite().all()
    assert not torch.equal(first["state"], second["state"])
    assert first["rows"] == second["rows"] == 256  # of first_size 512


def test_other_agents_stay_equal_too(ranks: dict[str, list[Any]]) -> None:
    for first, second in zip(*ranks["others"], strict=True):
        assert torch.equal(first, second)


def test_a_stop_of_one_rank_is_a_stop_of_all_and_going_on_changes_no_bit(
    ranks: dict[str, list[Any]],
) -> None:
    for whole, again in zip(ranks["whole"], ranks["interrupted"], strict=True):
        assert again["stopped"] == 8
        assert torch.equal(again["numbers"], whole["numbers"])


def test_a_run_is_written_once_with_the_counts_of_all_ranks(
    ranks: dict[str, list[Any]], tmp_path: Path
) -> None:
    first, second = ranks["training"]
    assert first == second
    (folder,) = (file.parent for file in ranks["folder"][0].rglob("report.json"))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert sum('"train/loss"' in line for line in lines) == UPDATES // 5
    with without_pictures():
        agents = list[Agent]()
        train(config_of(tmp_path), begin=agents.append, **QUIET)
    one, two = vars(agents[0].counters), first["counters"]
    for name in ("updates", "env_steps", "energy_evaluations"):
        assert one[name] == two[name]


def test_a_run_goes_on_with_as_many_ranks_as_it_had(ranks: dict[str, list[Any]]) -> None:
    (folder,) = (file.parent for file in ranks["folder"][0].rglob("report.json"))
    config = config_of(folder.parents[2])
    config.budget = BudgetConfig(updates=2 * UPDATES)
    with pytest.raises(ConfigError, match="trained by 2 ranks, got 1.*nproc-per-node 2"):
        train(config, resume=folder, **QUIET)


def test_what_cannot_be_divided_or_trained_together_is_refused_by_name(
    ranks: dict[str, list[Any]],
) -> None:
    for found in ranks["refusals"]:
        size, agent = found
        assert "GradientMatching.batch_size must be divisible by the 2 ranks, got 127" in size
        assert "Lonely trains in one process, got 2 ranks" in agent


def test_a_process_by_itself_is_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, parameter = torch.randn(3), nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with parallel.joined():
        assert (parallel.rank(), parallel.world_size(), parallel.own_seed(7)) == (0, 1, 7)
        assert parallel.gather(x) is x and parallel.mean(x, 0.3) is x
        assert parallel.average_gradients([parameter], x[0]) == (x[0],)
        assert parameter.grad.tolist() == [1.0, 2.0]
        assert parallel.from_first(x) is x and parallel.to_first(x) == [x]


def test_only_training_runs_under_torchrun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vgs_rl_main import main

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["sample", "LJ13"]) == 2
    assert capsys.readouterr().err == (
        "error: sample runs in one process, got 2: leave torchrun out\n"
    )


@pytest.mark.slow
def test_torchrun_trains_stops_in_order_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    begin = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "vgs_rl"]
    options = ["train", "tiny.yaml", "--output", str(tmp_path), "--budget.updates", "100000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    quiet = {"cwd": tmp_path, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen([*begin, *options], env=environment, **quiet)
    folder = tmp_path / "FourGauss" / "vgs" / "0"
    metrics, deadline = folder / "metrics.jsonl", time.time() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert f"stopped; go on with: python -m vgs_rl train --resume {folder}" in out
    assert ranks_of(load_checkpoint(folder / "checkpoints" / "last.pt")) == 2
    longer = ["train", "--resume", str(folder), "--budget.updates", "100000"]
    _, error = call("train", *longer[1:], folder=tmp_path, status=2)
    assert "trained by 2 ranks, got 1" in error
