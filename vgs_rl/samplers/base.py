"""Samplers: anything that draws x, with exact log-weights where it knows them."""

from __future__ import annotations

import importlib
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vgs_rl.checks import count_of, generator_of
from vgs_rl.files.checkpoint import load_checkpoint, save_checkpoint
from vgs_rl.mdp import SamplingMDP
from vgs_rl.samplers.formats import as_arviz, write_npz, write_xyz
from vgs_rl.samplers.memory import keep_freed_memory
from vgs_rl.samplers.program import export_program
from vgs_rl.threads import map_in_threads
from vgs_rl.transitions import CoordinateMap, Policy
from vgs_rl.trust import Trust
from vgs_rl.weights import (
    cleaned,
    dead_paths,
    effective_share,
    log_z_estimate,
    systematic_resample,
)


@dataclass(kw_only=True)
class Samples:
    """What a sampler returns.

    Attributes:
        x: states, shape (n, D).
        log_weight: log w with E[w] = Z, shape (n,), or None where the sampler has no weights. NaN
            does not occur: a weight that is not known is 0.
        energy_evaluations: states at which E or ∇E was evaluated to draw them.
        temperature: tau of the density exp(-E/tau)/Z that they are samples of.
        independent: whether each row is a separate path. If not, as after resampling, the mean
            weight is unbiased for Z still, but E[log w] and effective sample sizes mean nothing.
    """

    x: Tensor
    log_weight: Tensor | None
    energy_evaluations: int
    temperature: float = 1.0
    independent: bool = True

    def save(self, path: Path | str) -> None:
        """Writes them to a file for :meth:`load`."""
        save_checkpoint(path, vars(self), kind="samples")

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu") -> Samples:
        """Samples from a file.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, or holds something else.
        """
        state = load_checkpoint(path, device, kind="samples")
        if state.keys() != cls.__dataclass_fields__.keys():
            raise ValueError(f"{path} holds no samples, but {', '.join(state)}")
        return cls(**state)

    @property
    def ess(self) -> float:
        """Effective sample size as a fraction of n; NaN without weights."""
        return math.nan if self.log_weight is None else float(effective_share(self.log_weight))

    def to_npz(self, path: Path | str) -> None:
        """Writes NumPy's archive: `x` (n, D), `log_weight` (n,) if there are weights.

        Raises:
            OSError: if the file cannot be written.
        """
        write_npz(self, Path(path))

    def to_xyz(self, path: Path | str, n_particles: int, element: str = "Ar") -> None:
        """Writes the XYZ format of molecular viewers, a frame a sample.

        Args:
            path: the file.
            n_particles: particles of a state, which has D / n_particles coordinates for each.
            element: the symbol that viewers show for them.

        Raises:
            ValueError: if D is not that of so many particles in at most three dimensions.
            OSError: if the file cannot be written.
        """
        write_xyz(self, Path(path), n_particles, element)

    def to_arviz(self) -> Any:
        """An ArviZ DataTree with `posterior.x` and `sample_stats.log_weight`; one chain.

        Raises:
            ModuleNotFoundError: if ArviZ is not installed, with the extra that has it.
        """
        return as_arviz(self)

    def plot(self) -> Any:
        """A matplotlib figure of the states, the areas by weight."""
        plot_states = importlib.import_module("vgs_rl.plots.results").plot_states
        return plot_states(self.x, self.log_weight)

    def __repr__(self) -> str:
        n, dim = self.x.shape
        shown = "unweighted"
        if self.log_weight is not None:
            shown = f"weighted, ESS {self.ess:.1%}" if self.independent else "resampled"
        return f"Samples({n:,} of {dim} dimensions, {shown})"

    def _repr_html_(self) -> str:
        return f"<code>{self!r}</code>"


class Sampler(ABC):
    """Draws samples of one target.

    A subclass writes :meth:`_draw`; chunking (bounded memory) and resampling are done here.
    Drawing moves no counter of an MDP, which is training's: what it costs is in the samples.

    Attributes:
        device: where the samples live and the generator must be.
        temperature: tau of the density exp(-E/tau)/Z that is sampled. Exact samples, log Z and mode
            weights of an energy are those at 1.
        has_weights: whether samples have log-weights.
        has_reverse_weights: whether :meth:`reverse_log_weight` works.
        chunk_size: most samples drawn at once.
        progress_bar: whether to show one over the chunks.
    """

    device: torch.device = torch.device("cpu")
    temperature: float = 1.0
    has_weights: bool = True
    has_reverse_weights: bool = False
    chunk_size: int = 16_384
    progress_bar: bool = False

    @abstractmethod
    def _draw(self, n: int, generator: torch.Generator) -> Samples:
        """N samples at once."""

    def __repr__(self) -> str:
        energy = getattr(getattr(self, "mdp", self), "energy", None)
        of = "" if energy is None else f"{type(energy).__name__}, "
        weights = "weights" if self.has_weights else "no weights"
        return f"{type(self).__name__}({of}{weights}, on {self.device})"

    def _draw_chunks(self, sizes: list[int], generator: torch.Generator) -> Iterator[Samples]:
        for size in sizes:
            yield self._draw(size, generator)

    def reverse_log_weight(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Log w of paths drawn backwards from exact samples x (B, D); shape (B,)."""
        raise NotImplementedError(f"{type(self).__name__} has no reverse weights")

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: torch.Generator | int = 0,
        *,
        resample: bool = False,
        oversample: int = 4,
    ) -> Samples:
        """Draws n samples, in chunks of at most ``chunk_size``.

        Args:
            n: number of samples.
            generator: a generator on this sampler's device, or a seed.
            resample: draw `oversample` times as many and keep n by systematic importance
                resampling: asymptotically exact samples, with duplicates. Each kept sample then
                carries the same log-weight, the estimate of log Z, which is still unbiased for Z.
                States of weight 0 are never kept, and a warning says how many there were.
            oversample: see `resample`.

        Raises:
            ValueError: if n or oversample is below 1, the generator is on another device, or
                `resample` is asked of a sampler without weights, or of weights of which one is
                infinite or all are 0.
        """
        n, oversample = count_of("n", n), count_of("oversample", oversample)
        generator = generator_of(generator, self.device)
        if resample and not self.has_weights:
            raise ValueError(f"resample needs log-weights, and {type(self).__name__} has none")
        total = n * oversample if resample else n
        sizes = [min(self.chunk_size, total - i) for i in range(0, total, self.chunk_size)]
        chunks = []
        with tqdm(
            total=total, unit="sample", leave=False, disable=not self.progress_bar
        ) as progress:
            for chunk in self._draw_chunks(sizes, generator):
                chunks.append(chunk)
                progress.update(len(chunk.x))
        samples = Samples(
            x=torch.cat([chunk.x for chunk in chunks]),
            log_weight=_concatenate([chunk.log_weight for chunk in chunks]),
            energy_evaluations=sum(chunk.energy_evaluations for chunk in chunks),
            temperature=self.temperature,
            independent=all(chunk.independent for chunk in chunks),
        )
        return self._resampled(samples, n, generator) if resample else samples

    def _resampled(self, samples: Samples, n: int, generator: torch.Generator) -> Samples:
        if samples.log_weight is None:  # a sampler that does not say so
            raise ValueError(f"resample needs log-weights, and {type(self).__name__} has none")
        chosen = systematic_resample(samples.log_weight, n, generator)
        if dead := dead_paths(samples.log_weight):
            warnings.warn(
                f"{dead:,} of {len(samples.x):,} log-weights are NaN or -inf: these states have "
                "weight 0 and are not kept",
                stacklevel=4,  # what called sample
            )
        return replace(
            samples,
            x=samples.x[chosen],
            log_weight=log_z_estimate(samples.log_weight).expand(n),
            independent=False,
        )


class DrawnSampler(Sampler):
    """Hands out samples that were drawn before, in their order and each of them once.

    Args:
        samples: what was drawn.
    """

    def __init__(self, samples: Samples) -> None:
        self.samples, self.device = samples, samples.x.device
        self.temperature = samples.temperature
        self.has_weights = samples.log_weight is not None
        self.given = 0

    def _draw(self, n: int, generator: torch.Generator) -> Samples:
        rows = slice(self.given, self.given + n)
        x, log_weight = self.samples.x[rows], self.samples.log_weight
        if len(x) < n:
            raise ValueError(f"n must be at most {len(x)}, as many samples are left, got {n}")
        self.given += n
        return replace(
            self.samples,
            x=x,
            log_weight=None if log_weight is None else log_weight[rows],
            energy_evaluations=round(self.samples.energy_evaluations * n / len(self.samples.x)),
        )


def _concatenate(parts: list[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return cleaned(torch.cat(present)) if present else None


def chunk_seeds(n: int, generator: torch.Generator) -> list[int]:
    """The seeds of n chunks that a CPU draws one by one, in any order."""
    return [int(seed) for seed in torch.randint(2**62, (n,), generator=generator)]


def pilot_generator(device: torch.device, seed: int = 0) -> torch.Generator:
    """A generator for a pilot run: no draw from `seed`, or from any other, shares its numbers."""
    (stream,) = np.random.SeedSequence(seed).spawn(1)
    state = int(stream.generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator(device).manual_seed(state)


class ChainSampler(Sampler):
    """Runs a policy through an MDP: every RL agent's sampler.

    Its samples have weights unless the MDP's start has no density, or a step has no noise.

    Args:
        mdp: the chain.
        policy: the control.
        noise_scale: factor on every rho_t, or one for each, shape (T,). Less noise than the policy
            is meant for gives states of too little energy, which some published tables report.
        coordinates: of the target that is sampled, where the MDP has others.
    """

    def __init__(
        self,
        mdp: SamplingMDP,
        policy: Policy,
        *,
        noise_scale: float | Tensor = 1.0,
        coordinates: CoordinateMap | None = None,
    ) -> None:
        self.mdp, self.policy, self.noise_scale = mdp, policy, noise_scale
        self.coordinates = coordinates
        as_configured = isinstance(noise_scale, float) and noise_scale == 1.0
        noisy = bool((torch.as_tensor(noise_scale) > 0).all())
        self.has_weights = mdp.start.has_density and noisy
        self.has_reverse_weights = mdp.start.has_density and as_configured
        self.device, self.temperature = mdp.device, mdp.temperature
        # A CPU's caches hold the activations of about this many rows; a GPU wants many.
        few = min(2048, max(64, 80_000 // mdp.dim))
        self.chunk_size = few if mdp.device.type == "cpu" else 65_536

    def _draw(self, n: int, generator: torch.Generator) -> Samples:
        with self.mdp.uncounted() as used:
            return replace(self._episodes(n, generator), energy_evaluations=used())

    def _episodes(self, n: int, generator: torch.Generator) -> Samples:
        """N episodes at once; what they cost is not known to it."""
        rollout = self.mdp.rollout(self.policy, n, generator, noise_scale=self.noise_scale)
        log_weight = rollout.log_weight if self.has_weights else None
        x = rollout.x if self.coordinates is None else self.coordinates.to_x(rollout.x)
        return Samples(x=x, log_weight=log_weight, energy_evaluations=0)

    def _draw_chunks(self, sizes: list[int], generator: torch.Generator) -> Iterator[Samples]:
        """On a CPU, each of torch's threads draws whole chunks: one is too small to be shared.

        Every chunk has a separate generator, so the samples do not depend on the threads. The
        threads have the calling one evaluate an energy that is not `thread_safe`; a policy that
        may evaluate it in another way, since it does not say that it is `thread_safe`, runs in the
        calling thread altogether.
        """
        if len(sizes) == 1 or self.device.type != "cpu":
            yield from super()._draw_chunks(sizes, generator)
            return
        keep_freed_memory()
        draws = list(zip(sizes, chunk_seeds(len(sizes), generator), strict=True))
        safe = self.mdp.energy.thread_safe or getattr(self.policy, "thread_safe", False)
        with self.mdp.uncounted() as used:
            chunks = map_in_threads(self.draw_chunk, draws, alone=not safe)
            for i, chunk in enumerate(chunks, 1):
                # Threads share the MDP's counter, so only the sum is known, at the end.
                yield replace(chunk, energy_evaluations=used() if i == len(sizes) else 0)

    def draw_chunk(self, chunk: tuple[int, int]) -> Samples:
        """A chunk of a CPU by its size and seed, anywhere the same; what it costs is not known."""
        size, seed = chunk
        with torch.no_grad():  # which is a thread's own
            return self._episodes(size, torch.Generator().manual_seed(seed))

    def export(self, path: Path | str, *, weights: bool = True) -> None:
        """Writes the chain as a program of `torch.export`, which runs without this package.

        `torch.export.load(path).module()(uniform, normal)` returns x (B, D) and log w (B,) from
        uniform numbers (B, D) and standard normal ones (T + 1, B, D), in the chain's own type and
        on its device.

        Args:
            path: the file; `.pt2` is the ending that PyTorch uses.
            weights: whether log-weights are part of the result; they need E in PyTorch.

        Raises:
            ValueError: if the chain has a part that cannot be traced, such as an energy that
                computes outside of PyTorch or a policy that takes whole numbers alone as steps.
            OSError: if the file cannot be written.
        """
        if not (isinstance(self.noise_scale, float) and self.noise_scale == 1.0):
            raise ValueError(f"noise_scale must be 1 in an export, got {self.noise_scale}")
        if self.coordinates is not None:
            raise ValueError("a chain in the coordinates of an exploration cannot be a program")
        export_program(self.mdp, self.policy, path, weights=weights)

    @torch.no_grad()
    def reverse_log_weight(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """See :meth:`Sampler.reverse_log_weight`."""
        if self.coordinates is not None:
            x = self.coordinates.to_z(x)
        parts = x.to(self.mdp.dtype).split(self.chunk_size)
        with self.mdp.uncounted():
            weights = [self.mdp.reverse_log_weight(self.policy, part, generator) for part in parts]
        return torch.cat(weights)


def load_sampler(
    name: str | Path, device: str = "auto", *, compiled: bool = False, trust: Trust = False
) -> Sampler:
    """A trained sampler that the package ships, or one from an exported file.

    Args:
        name: the path of a file that ``scripts/evaluate.py RUN --export FILE`` wrote, or the name
            of a shipped one (``vgs_rl.experiments.pretrained.shipped_samplers()`` lists them).
        device: `auto`, `cpu` or `cuda`.
        compiled: of a particle system: compile the drift at the first call, which takes about a
            minute and halves what many samples take
            (:class:`vgs_rl.networks.compiled.CompiledValue`).
        trust: True imports what the file names, though it is not this package's, such as the
            module of an energy of your own (:mod:`vgs_rl.trust`); False refuses it.

    Raises:
        FileNotFoundError: if there is none of that name.
        ValueError: if the file is damaged, its drift cannot be compiled, or it names foreign code
            without `trust`.
    """
    pretrained = importlib.import_module("vgs_rl.experiments.pretrained")
    agent = pretrained.load_pretrained(name, device, trust=trust)[1]
    sampler: Sampler = agent.sampler(compiled=compiled)
    return sampler
