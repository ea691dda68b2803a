"""Speed of environments and of sampling, and how time and memory grow with what they depend on."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from vgs_rl import ChainSampler, SamplingMDP, registered
from vgs_rl.checks import count_of
from vgs_rl.envs import SamplingVectorEnv
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


def one_env(id: str, steps: int) -> dict[str, Any]:
    """Steps a second of one environment, as `gymnasium.make` makes it, with its resets."""
    single = gymnasium.make(id)
    single.action_space.seed(0)
    actions = [single.action_space.sample() for _ in range(256)]
    single.reset(seed=0)
    rates = []
    for _ in range(5):
        begin = time.perf_counter()
        for i in range(steps):
            ended = single.step(actions[i % len(actions)])[2:4]
            if any(ended):
                single.reset()
        rates.append(steps / (time.perf_counter() - begin))
    return {"environment": id, "steps_per_s": float(np.median(rates))}


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
    single = [one_env(id, 100 * repeats) for id in ("vgs_rl/GMM9-v0", "CartPole-v1")]
    print_table("One environment, as gymnasium.make makes it", single)
    result = {"machine": size, "comparison": comparison, "targets": targets, "scaling": scaling}
    result["single"] = single
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


COPIES = ("aten::copy_", "aten::_to_copy", "Memcpy", "Memset")


def device(
    name: str = "gmm9",
    updates: int = 100,
    n: int = 20_000,
    device: str = "auto",
    json: Path | None = None,
    trust: bool = False,
) -> None:
    """Where the time of training and sampling goes: kernels, transfers, Python.

    The wall-clock is measured without the profiler, and the kernels with it. What neither kernels
    nor transfers explain is Python, dispatch and waiting. `reads` are numbers that the host has
    asked the device for, each of which makes it wait.

    Args:
        name: name of a file in configs/, or path of a YAML file.
        updates: gradient steps that are measured, after as many that are not.
        n: samples that are drawn.
        device: auto, cpu or cuda.
        json: also write the table to this file.
        trust: whether the YAML file may name code that is not this package's.
    """
    count_of("updates", updates)
    count_of("n", n)
    require_outputs(json)
    size = machine(torch.get_num_threads())
    print_machine(size)
    _, agent = build(named_config(name, {"device": device}, trust=trust))

    def learn() -> None:
        for _ in range(updates):
            agent.update()

    def draw() -> None:
        agent.sampler().sample(n, 0)

    rows = [
        {"work": work, **time_shares(do, agent.mdp.device)}
        for work, do in ((f"{updates} updates", learn), (f"{n:,} samples", draw))
    ]
    print_table(f"{name} on {agent.mdp.device}", rows)
    write_json({"machine": size, "device": str(agent.mdp.device), "rows": rows}, json)


def time_shares(work: Callable[[], None], where: torch.device) -> dict[str, float]:
    """Seconds, shares of them and numbers that were read, of work that has been done before."""
    from torch.profiler import ProfilerActivity, profile

    synchronise = _synchroniser(where)
    work()
    synchronise()
    begin = time.perf_counter()
    work()
    synchronise()
    seconds = time.perf_counter() - begin
    on_gpu = where.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=kinds) as profiled:
        work()
        synchronise()
    spent = {"kernels": 0.0, "transfers": 0.0}
    reads = 0
    for event in profiled.key_averages():
        reads += event.count * (event.key == "aten::_local_scalar_dense")
        used = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if on_gpu or event.key.startswith("aten::"):
            spent["transfers" if event.key.startswith(COPIES) else "kernels"] += 1e-6 * used
    shares = {name: min(1.0, used / seconds) for name, used in spent.items()}
    rest = max(0.0, 1.0 - sum(shares.values()))
    return {"seconds": seconds, **shares, "Python and waiting": rest, "reads": reads}
