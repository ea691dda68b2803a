"""Makes the reference samples of a target, and says whether they can be believed.

Of a particle system by parallel tempering, of others by tempered SMC, which estimates log Z, too.

vgs-rl make-reference --target LJ13 --out envs/reference/lj13.npz [--seed 0]
vgs-rl make-reference --target Phi4L8 --out envs/reference/phi4_8_disordered.npz

After Ctrl-C or a kill the same command goes on, and the numbers are those of an undisturbed call.
"""

from __future__ import annotations

import functools
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vgs_rl
from vgs_rl.envs import ParticleEnergy, ReferencedEnergy
from vgs_rl.evaluation.diagnostics import effective_draws, split_r_hat
from vgs_rl.experiments.cli import Mistake, Parser, command, one_of, output_file, seed, whole
from vgs_rl.experiments.tempered_reference import METHOD as TEMPERED_METHOD
from vgs_rl.experiments.tempered_reference import TemperedRecipe, tempered_reference
from vgs_rl.files.checkpoint import write_atomically
from vgs_rl.files.unfinished import NAME as UNFINISHED
from vgs_rl.files.unfinished import Unfinished, Work
from vgs_rl.registry import find
from vgs_rl.samplers.mcmc.tempering import TemperingKernel, geometric_ladder


@dataclass(kw_only=True, frozen=True)
class Recipe:
    """Settings of one run; every count is per chain unless said otherwise.

    Args:
        validation_chains: chains whose draws are the validation set; no other uses them.
        test_chains: the same of the test set.
        draws: states kept of each chain.
        thin: sweeps from one kept state to the next.
        burn_in: sweeps thrown away; step sizes adapt in the first half of them.
        replicas: number of temperatures.
        hottest: the highest temperature; the lowest is 1.
        leapfrog_steps: steps of a trajectory.
        scale: standard deviation of random initial positions.
    """

    validation_chains: int = 50
    test_chains: int = 100
    draws: int = 200
    thin: int = 30
    burn_in: int = 1500
    replicas: int = 6
    hottest: float = 2.0
    leapfrog_steps: int = 10
    scale: float = 1.0


RECIPES: dict[str, Recipe | TemperedRecipe] = {
    "DW4": Recipe(thin=60, replicas=4, hottest=6.0, leapfrog_steps=8, scale=2.0, burn_in=2000),
    "LJ13": Recipe(),
    "LJ55": Recipe(
        validation_chains=10, test_chains=40, draws=100, thin=50, replicas=8, hottest=1.8, scale=1.2
    ),
    "BreastCancer": TemperedRecipe(laplace=True),
    "Cox10": TemperedRecipe(laplace=True),
    "Cox40": TemperedRecipe(
        laplace=True, std=1.05, runs=4, particles=256, most_moves=10, validation=250, test=500
    ),
    "Phi4L8": TemperedRecipe(),
    "Phi4L8Broken": TemperedRecipe(std=2.0),
    "Phi4L16": TemperedRecipe(runs=4, most_moves=10),
    "Phi4L16Broken": TemperedRecipe(std=2.0, runs=4, most_moves=10),
}
# Options of the one kind of recipe and of the other.
CHAINS = ("validation_chains", "test_chains", "draws", "thin", "burn_in")
RUNS = ("runs", "validation_runs", "particles", "validation", "test")
METHOD = (
    "Parallel tempering of Hamiltonian trajectories (vgs_rl.samplers.mcmc.tempering), in "
    "float64; step sizes adapt in the first half of the burn-in, then are frozen. Chains start "
    "from Gaussian positions, every other one of a Lennard-Jones target from the icosahedral "
    "cluster. Validation and test set come from disjoint chains. Each kept state was centred, "
    "given a random orthogonal transformation (rotations and reflections) and a random "
    "permutation of its particles, which the density is invariant to, and the rows of each set "
    "were shuffled."
)


def icosahedron(n_particles: int) -> Tensor | None:
    """The closed-shell cluster of 13 or 55 particles, edge length 1, shape (n, 3), or None."""
    golden = (1 + math.sqrt(5)) / 2
    signs = [(a, b) for a in (-1.0, 1.0) for b in (-golden, golden)]
    faces = [(0.0, a, b) for a, b in signs]
    corners = torch.tensor([f[-k:] + f[:-k] for k in range(3) for f in faces], dtype=torch.float64)
    corners = corners / 2  # neighbours are now at distance 1
    i, j = torch.triu_indices(12, 12, 1)
    edges = (corners[i] - corners[j]).norm(dim=-1) < 1.1
    middles = (corners[i] + corners[j])[edges]
    shells = [corners.new_zeros(1, 3), corners, 2 * corners, middles]
    return {13: torch.cat(shells[:2]), 55: torch.cat(shells)}.get(n_particles)


def initial_states(energy: ParticleEnergy, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Random positions; every other chain starts from the icosahedron where there is one."""
    chains = recipe.validation_chains + recipe.test_chains
    shape = (recipe.replicas, chains, energy.dim)
    x = recipe.scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    solid = icosahedron(energy.geometry.n_particles)
    if solid is not None:
        noise = 0.02 / recipe.scale * x[:, ::2]
        x[:, ::2] = solid.flatten() + noise
    return energy.geometry.project(x)


def symmetrised(x: Tensor, energy: ParticleEnergy, generator: torch.Generator) -> Tensor:
    """States (B, D) under random orthogonal transformations and permutations."""
    n, d = energy.geometry.n_particles, energy.geometry.n_dims
    normal = torch.randn(len(x), d, d, generator=generator, dtype=x.dtype)
    q, r = torch.linalg.qr(normal)
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # uniform on O(d)
    order = torch.rand(len(x), n, generator=generator).argsort(1).unsqueeze(-1).expand(-1, -1, d)
    moved: Tensor = x.unflatten(-1, (n, d)).gather(1, order) @ q
    return moved.flatten(-2)


def observables(x: Tensor, energies: Tensor, energy: ParticleEnergy) -> dict[str, Tensor]:
    """Invariant functions of states (..., D), each of shape (...)."""
    n, d = energy.geometry.n_particles, energy.geometry.n_dims
    i, j = torch.triu_indices(n, n, 1)
    positions = x.unflatten(-1, (n, d))
    r = (positions[..., i, :] - positions[..., j, :]).norm(dim=-1)
    return {
        "energy": energies,
        "radius_of_gyration": (x.square().sum(-1) / n).sqrt(),
        "mean_distance": r.mean(-1),
        "least_distance": r.amin(-1),
        "largest_distance": r.amax(-1),
    }


def summary(draws: Tensor) -> dict[str, float]:
    """Mean, spread and convergence of one observable, shape (chains, draws)."""
    effective = effective_draws(draws)
    std = float(draws.std())
    return {
        "mean": float(draws.mean()),
        "std": std,
        "standard_error": std / math.sqrt(effective),
        "split_r_hat": split_r_hat(draws),
        "effective_samples": effective,
    }


def run_chains(
    energy: ParticleEnergy, recipe: Recipe, generator: torch.Generator, work: Work
) -> tuple[TemperingKernel, Tensor, Tensor]:
    """Runs all chains; returns the kernel, kept states (C, S, D) and their energies (C, S)."""
    kernel = TemperingKernel(
        energy,
        initial_states(energy, recipe, generator),
        geometric_ladder(recipe.replicas, recipe.hottest),
        leapfrog_steps=recipe.leapfrog_steps,
        step_size=0.02,
    )
    start, burned = time.perf_counter(), 0
    kept: list[tuple[Tensor, Tensor]] = []  # states and energies of a draw
    new = list(kept)
    for piece in work.done:
        burned = piece["burned"]
        kept += zip(piece["x"], piece["energies"], strict=True)
    if work.done:
        kernel.load_state_dict(work.done[-1]["kernel"])
        generator.set_state(work.done[-1]["generator"])
        print(f"going on after {burned} sweeps of burn-in and {len(kept)} draws", flush=True)

    def keep() -> None:
        if work.due:
            state = {"burned": burned, "kernel": kernel.state_dict()}
            drawn = {"x": [x for x, _ in new], "energies": [energy for _, energy in new]}
            work.add(state | drawn | {"generator": generator.get_state()})
            new.clear()

    while burned < recipe.burn_in:
        kernel.sweep(generator, adapt=burned < recipe.burn_in // 2)
        burned += 1
        if burned == recipe.burn_in:
            print(f"burn-in done after {time.perf_counter() - start:.0f} s", flush=True)
            kernel.reset_counts()
        keep()
    while len(kept) < recipe.draws:
        for _ in range(recipe.thin):
            kernel.sweep(generator, adapt=False)
        new.append((kernel.x[0].clone(), kernel.value[0].clone()))
        kept.append(new[-1])
        if len(kept) % 10 == 0:
            seconds = time.perf_counter() - start
            print(f"draw {len(kept)} of {recipe.draws} after {seconds:.0f} s", flush=True)
        keep()
    states, energies = zip(*kept, strict=True)
    return kernel, torch.stack(states, 1), torch.stack(energies, 1)


def diagnose(
    energy: ParticleEnergy, kernel: TemperingKernel, x: Tensor, energies: Tensor, recipe: Recipe
) -> dict[str, Any]:
    """Everything that says whether the draws (C, S, D) can be believed."""
    gradient = energy.with_gradient(x.flatten(0, 1))[1].view_as(x)
    virial = (x * gradient).sum(-1)
    values = {**observables(x, energies, energy), "virial": virial}
    parts = {
        "all": slice(None),
        "validation": slice(None, recipe.validation_chains),
        "test": slice(recipe.validation_chains, None),
    }
    if icosahedron(energy.geometry.n_particles) is not None:
        parts |= {"icosahedral_starts": slice(0, None, 2), "random_starts": slice(1, None, 2)}
    result: dict[str, Any] = {
        part: {name: summary(value[rows]) for name, value in values.items()}
        for part, rows in parts.items()
    }
    return result | {
        "virial_expected": energy.geometry.effective_dim,
        "temperatures": kernel.temperatures.tolist(),
        "step_sizes": kernel.step_size.tolist(),
        "acceptance_rates": kernel.acceptance_rates().tolist(),
        "swap_rates": kernel.swap_rates().tolist(),
        "round_trips": int(kernel.round_trips),
        "energy_evaluations": kernel.energy_evaluations,
    }


def packed(x: Tensor, energy: ParticleEnergy, generator: torch.Generator) -> np.ndarray[Any, Any]:
    """Draws (C, S, D) as shuffled, symmetrised, centred float32 rows."""
    rows = symmetrised(x.flatten(0, 1), energy, generator)
    rows = rows[torch.randperm(len(rows), generator=generator)]
    return np.asarray(energy.geometry.project(rows).float())


def make(target: str, recipe: Recipe | TemperedRecipe, seed: int, out: Path) -> dict[str, Any]:
    """Makes one file; returns its diagnostics."""
    energy = find(target).make_energy()
    generator = torch.Generator().manual_seed(seed)
    unfinished = Unfinished(out.with_name(f".{out.name}{UNFINISHED}"), f"{target} {recipe} {seed}")
    if isinstance(recipe, Recipe):
        assert isinstance(energy, ParticleEnergy)
        with unfinished.work("chains") as work:
            kernel, x, energies = run_chains(energy, recipe, generator, work)
        diagnostics = diagnose(energy, kernel, x, energies, recipe)
        split = recipe.validation_chains
        validation, test = (packed(part, energy, generator) for part in (x[:split], x[split:]))
    else:
        assert isinstance(energy, ReferencedEnergy)
        with unfinished.work("runs") as work:
            found = tempered_reference(energy, recipe, generator, work)
        diagnostics = found.diagnostics
        validation, test = (np.asarray(part.float()) for part in (found.validation, found.test))
    definition = type(energy).__mro__[1] if isinstance(energy, ParticleEnergy) else type(energy)
    provenance = {
        "target": target,
        "definition": (definition.__doc__ or "").splitlines()[0],
        "method": METHOD if isinstance(recipe, Recipe) else TEMPERED_METHOD,
        "recipe": asdict(recipe),
        "seed": seed,
        "command": f"vgs-rl make-reference --target {target} --out {out.name} --seed {seed}",
        "versions": {"vgs_rl": vgs_rl.__version__, "torch": torch.__version__},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    save = functools.partial(
        np.savez_compressed,
        validation=validation,
        test=test,
        provenance=np.array(json.dumps(provenance)),
        diagnostics=np.array(json.dumps(diagnostics)),
    )
    write_atomically(out, save)
    unfinished.remove()
    return diagnostics


def make_parser() -> Parser:
    """The command's options."""
    parser = Parser(__doc__, "make-reference")
    add = parser.add_argument
    add("--target", type=one_of(*RECIPES), required=True, help=f"one of {', '.join(RECIPES)}")
    add("--out", type=output_file, required=True, help="the file to write, .npz")
    add("--seed", type=seed, default=0, help="of everything")
    for name in (*CHAINS, *RUNS):
        add(f"--{name}", type=whole(), default=None, help="the recipe's by default")
    return parser


@command
def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status."""
    options = vars(make_parser().read(arguments))
    target, out, number = (options.pop(name) for name in ("target", "out", "seed"))
    if out.suffix != ".npz":
        raise Mistake(f"--out: must end in .npz, got {str(out)!r}")
    given = {name: value for name, value in options.items() if value is not None}
    recipe = RECIPES[target]
    own = CHAINS if isinstance(recipe, Recipe) else RUNS
    for name in given:
        if name not in own:
            raise Mistake(f"--{name}: {target} takes {', '.join(f'--{each}' for each in own)}")
    torch.set_num_threads(1)  # the same sums in the same order everywhere
    diagnostics = make(target, replace(recipe, **given), number, out)
    print(json.dumps(diagnostics, indent=2))
    return 0
