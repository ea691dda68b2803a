"""Speed of environments and of sampling, and how time and memory grow with what they depend on."""

from __future__ import annotations

import os
import resource
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.spawn import spawn

from vgs_rl import ChainSampler, MDPConfig, SamplingMDP, registered
from vgs_rl.agents import ValueGradientConfig
from vgs_rl.envs import SamplingVectorEnv
from vgs_rl.envs.targets.gaussian import Gaussian
from vgs_rl.evaluation.evaluate import evaluate
from vgs_rl.experiments.config import named_config
from vgs_rl.experiments.run import build
from vgs_rl.experiments.tables import (
    machine,
    print_machine,
    print_table,
    require_outputs,
    write_json,
)
from vgs_rl.networks.paper import PublishedMLP
from vgs_rl.networks.policies import ValueGradientPolicy
from vgs_rl.training import parallel
from vgs_rl.training.config import EvaluationConfig


def compare_steps(target: str, num_envs: int, repeats: int, device: str) -> dict[str, Any]:
    """Cost of one step: `SamplingVectorEnv.step` against `SamplingMDP.step`.

    Both play the same whole episodes at the same batch size: T steps and one reset, the last step
    with its energies. The MDP is given its control as a tensor on its device; the environment
    takes and returns NumPy arrays, resets in SAME_STEP mode, keeps log-weights and fills infos.
    The two take turns step by step, so that both meet the same machine; the cost of an episode is
    the sum over t of the median over repetitions, the cost of a step that divided by T.
    """
    env = SamplingVectorEnv(target, num_envs=num_envs, device=device, autoreset_mode="SAME_STEP")
    other = SamplingVectorEnv(target, num_envs=num_envs, device=device)
    mdp: SamplingMDP = other.mdp
    generator = mdp.generator(0)
    control = torch.randn(num_envs, mdp.dim, generator=mdp.generator(1), device=mdp.device)
    actions = control.cpu().numpy().copy()
    synchronise = _synchroniser(mdp.device)
    state = mdp.reset(num_envs, generator)
    env.reset(seed=0)

    def bare_step(t: int) -> None:
        nonlocal state
        with torch.no_grad():
            state = mdp.step(state, control, generator).state
            if t == mdp.num_steps - 1:
                state = mdp.reset(num_envs, generator)

    bare = np.empty((repeats, mdp.num_steps))
    full = np.empty((repeats, mdp.num_steps))
    for i in range(repeats):
        for t in range(mdp.num_steps):
            begin = time.perf_counter()
            bare_step(t)
            synchronise()
            middle = time.perf_counter()
            env.step(actions)
            bare[i, t], full[i, t] = middle - begin, time.perf_counter() - middle
    bare_cost = float(np.median(bare, axis=0).mean())
    full_cost = float(np.median(full, axis=0).mean())
    return {
        "target": target,
        "num_envs": num_envs,
        "episodes": repeats,
        "mdp_step_us": 1e6 * bare_cost,
        "env_step_us": 1e6 * full_cost,
        "ratio": full_cost / bare_cost,
    }


def env_cost(target: str, num_envs: int, repeats: int, device: str) -> dict[str, Any]:
    """Cost of `SamplingVectorEnv.step`, whole episodes with their resets."""
    env = SamplingVectorEnv(target, num_envs=num_envs, device=device, autoreset_mode="SAME_STEP")
    rng = np.random.default_rng(0)
    actions = 0.1 * rng.standard_normal((num_envs, env.mdp.dim)).astype(np.float32)
    env.reset(seed=0)
    num_steps = env.mdp.num_steps
    seconds = np.empty((repeats, num_steps))
    for i in range(repeats):
        for t in range(num_steps):
            begin = time.perf_counter()
            env.step(actions)
            seconds[i, t] = time.perf_counter() - begin
    cost = float(np.median(seconds, axis=0).mean())
    return {
        "target": target,
        "dim": env.mdp.dim,
        "num_steps": num_steps,
        "num_envs": num_envs,
        "step_us": 1e6 * cost,
        "ns_per_transition": 1e9 * cost / num_envs,
        "transitions_per_s": num_envs / cost,
    }


def _synchroniser(device: torch.device) -> Callable[[], None]:
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def env(
    num_envs: int = 4096,
    repeats: int = 50,
    threads: int = 1,
    device: str = "cpu",
    json: Path | None = None,
) -> None:
    """Step costs of the environments.

    Args:
        num_envs: batch size of the comparison and of the table over targets.
        repeats: episodes per measurement; medians are over these.
        threads: torch's threads; small batches are fastest and steadiest with one.
        device: where the MDPs live.
        json: also write everything to this file.
    """
    require_outputs(json)
    torch.set_num_threads(threads)
    size = machine(threads)
    print_machine(size)
    comparison = compare_steps("vgs_rl/GMM9-v0", num_envs, repeats, device)
    print_table("One step through NumPy against the bare MDP, medians", [comparison])
    few = max(repeats // 10, 3)
    targets = [env_cost(name, num_envs, few, device) for name in registered()]
    print_table("Transitions per second", targets)
    scaling = [env_cost("vgs_rl/GMM9-v0", n, few, device) for n in (64, 1024, 16_384)]
    print_table("Time per transition against the number of environments", scaling)
    result = {"machine": size, "comparison": comparison, "targets": targets, "scaling": scaling}
    write_json(result, json)


def sampling(
    name: str = "gmm9",
    n: int = 100_000,
    repeats: int = 3,
    published_width: int = 1024,
    json: Path | None = None,
    trust: bool = False,
) -> None:
    """Throughput of sampling: the shipped network against one of the published size, equal T.

    Both draw with weights through the same chain, in chunks, in turns; medians. Speed does not
    depend on what the networks have learned, so both are untrained. The evaluation of as many
    samples, Sinkhorn included, is timed as well, and the process's peak memory is printed.

    Args:
        name: name of a file in configs/, or path of a YAML file.
        n: samples of the shipped network; the other draws a fiftieth.
        repeats: measurements of each.
        published_width: units per layer of the published network.
        json: also write everything to this file.
        trust: whether the YAML file may name code that is not this package's.
    """
    require_outputs(json)
    size = machine(torch.get_num_threads())
    print_machine(size)
    _, agent = build(named_config(name, trust=trust))
    ours = agent.sampler()
    assert isinstance(ours, ChainSampler) and isinstance(ours.policy, ValueGradientPolicy)
    mdp = agent.mdp
    generator = torch.Generator().manual_seed(0)
    network = PublishedMLP(mdp.chain, mdp.dim, width=published_width, generator=generator)
    theirs = ChainSampler(mdp, ValueGradientPolicy(mdp, network, ours.policy.drift))
    rates: dict[str, list[float]] = {"shipped": [], "published size": []}
    for _ in range(repeats):
        for network_size, sampler, count in (
            ("shipped", ours, n),
            ("published size", theirs, n // 50),
        ):
            begin = time.perf_counter()
            sampler.sample(count, 0)
            rates[network_size].append(count / (time.perf_counter() - begin))
    medians = {key: float(np.median(values)) for key, values in rates.items()}
    rows = [{"network": key, "samples_per_s": rate} for key, rate in medians.items()]
    print_table(f"{name}, T = {mdp.num_steps}", rows)
    ratio = medians["shipped"] / medians["published size"]
    begin = time.perf_counter()
    evaluate(ours, mdp.energy, n)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    print(f"  ratio {ratio:.1f}")
    print(f"  evaluation of {n:,} samples: {seconds:.1f} s; peak memory {peak:.2f} GiB")
    result = {"machine": size, "rates": medians, "ratio": ratio}
    write_json({**result, "evaluation_s": seconds, "peak_memory_gib": peak}, json)


UNWATCHED = EvaluationConfig(validation_samples=2, validate_every=10**9)


def chain_cost(n: int, dim: int, num_steps: int, repeats: int) -> dict[str, Any]:
    """Time and memory of drawing n samples of a Gaussian with an untrained network, all at once."""
    energy = Gaussian(torch.zeros(dim), torch.ones(dim))
    agent = ValueGradientConfig().build(SamplingMDP(energy, MDPConfig(num_steps=num_steps)))
    sampler, seconds = agent.sampler(), []
    sampler.chunk_size = n
    for _ in range(repeats):
        begin = time.perf_counter()
        sampler.sample(n, 0)
        seconds.append(time.perf_counter() - begin)
    cost = float(np.median(seconds))
    row = {"n": n, "D": dim, "T": num_steps, "seconds": cost}
    return {**row, "ns_per_coordinate": 1e9 * cost / (n * dim * num_steps), "peak_gib": _peak()}


def _peak() -> float:
    """Largest memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux


def train_part(
    rank: int, ranks: int, together: bool, name: str, updates: int, port: int, folder: Path
) -> None:
    """What one of several processes does: trains a rank's part, with the others or by itself."""
    torch.set_num_threads(1)
    if together:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
        os.environ.update({k: str(v) for k, v in place.items()}, MASTER_ADDR="127.0.0.1")
    config = replace(named_config(name), device="cpu")
    assert isinstance(config.agent, ValueGradientConfig)
    if not together:
        objective = config.agent.objective
        parts = {each: max(1, getattr(objective, each) // ranks) for each in objective.divided}
        if "start_size" in parts:  # particles show every step to their network
            parts["start_size"] = max(parts["start_size"], config.mdp.num_steps)
        config.agent.objective = replace(objective, **parts)
    with parallel.joined("cpu"):
        agent = build(config)[1]
        agent.learn(updates=1, evaluation=UNWATCHED, progress_bar=False)
        begin, before = time.perf_counter(), parallel.sent()
        agent.learn(updates=1 + updates, evaluation=UNWATCHED, progress_bar=False)
        seconds = time.perf_counter() - begin
        found = {"seconds": seconds, "bytes": parallel.sent() - before, "peak_gib": _peak()}
    torch.save(found, folder / f"{rank}.pt")


def _parts(ranks: int, together: bool, name: str, updates: int, count: int) -> list[dict[str, Any]]:
    """What `count` processes of :func:`train_part` measured, side by side."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        spawn(train_part, (ranks, together, name, updates, port, Path(folder)), nprocs=count)
        return [torch.load(Path(folder) / f"{i}.pt") for i in range(count)]


def rank_cost(name: str, ranks: int, updates: int) -> dict[str, Any]:
    """Ranks that train together against as many processes that do a rank's work by themselves."""
    apart = _parts(ranks, False, name, updates, ranks)
    joined = _parts(ranks, True, name, updates, ranks)
    free = sum(updates / each["seconds"] for each in apart) / ranks
    speed = updates / max(each["seconds"] for each in joined)
    return {
        "ranks": ranks,
        "updates_per_s": speed,
        "apart_per_s": free,
        "efficiency": speed / free,
        "kib_per_update": joined[0]["bytes"] / updates / 2**10,
        "peak_gib": max(each["peak_gib"] for each in joined),
    }


def scaling(
    num_envs: tuple[int, ...] = (100, 1_000, 10_000, 100_000, 1_000_000),
    dims: tuple[int, ...] = (2, 20, 200, 1_000, 5_000),
    num_steps: tuple[int, ...] = (5, 20, 100, 1_000),
    ranks: tuple[int, ...] = (1, 2),
    parts: tuple[int, ...] = (1, 4, 16, 64, 256, 1_024),
    name: str = "dw4",
    updates: int = 100,
    repeats: int = 3,
    threads: int = 1,
    json: Path | None = None,
) -> None:
    """Time and memory against environments, D, T and ranks.

    Ranks are compared with as many processes that do a rank's work side by side and do not talk:
    what the machine allows. `parts` are ranks whose work one process does alone: the time of an
    update that no number of further ranks makes shorter. The volume is what a rank brings to an
    update's meetings, refreshes included.

    Args:
        num_envs: batch sizes of the environment.
        dims: D of a Gaussian, 256 samples of T = 20.
        num_steps: T, 256 samples of D = 20.
        ranks: processes that train together, one thread each.
        parts: numbers of ranks whose part one process trains.
        name: name of a file in configs/, which the ranks train.
        updates: of each measurement.
        repeats: measurements of each other time; medians.
        threads: torch's threads in what is no training.
        json: also write everything to this file.
    """
    require_outputs(json)
    torch.set_num_threads(threads)
    size = machine(threads)
    print_machine(size)
    tables: dict[str, list[dict[str, Any]]] = {
        "T": [chain_cost(256, 20, steps, repeats) for steps in num_steps],
        "D": [chain_cost(256, dim, 20, repeats) for dim in dims],
        "environments": [
            {**env_cost("vgs_rl/GMM9-v0", n, repeats, "cpu"), "peak_gib": _peak()} for n in num_envs
        ],
        "ranks": [rank_cost(name, count, updates) for count in ranks],
        "parts": [
            {"ranks": n, "ms_per_update": 1e3 * part["seconds"] / updates}
            for n in parts
            for part in _parts(n, False, name, updates, 1)
        ],
    }
    for title, rows in tables.items():
        print_table(f"Against {title}", rows)
    write_json({"machine": size, **tables}, json)
