"""Samplers: anything that draws x, with exact log-weights where it knows them."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vgs_rl.checks import count_of, generator_of
from vgs_rl.conditional.conditions import ConditionLike
from vgs_rl.conditional.start import WithoutParameters
from vgs_rl.files.unfinished import Unfinished
from vgs_rl.mdp import SamplingMDP
from vgs_rl.samplers.memory import keep_freed_memory
from vgs_rl.samplers.program import export_program
from vgs_rl.samplers.samples import Samples
from vgs_rl.threads import counted_here, map_in_threads
from vgs_rl.transitions import CoordinateMap, Policy
from vgs_rl.weights import (
    cleaned,
    dead_paths,
    log_z_estimate,
    systematic_resample,
)

__all__ = ["ChainSampler", "DrawnSampler", "Sampler", "Samples", "pilot_generator"]


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
        keeps_chunks: whether a chunk depends on nothing but the generator, so that a draw that was
            ended can go on.
        unfinished: where such chunks are kept while more are drawn. A draw of equal arguments then
            goes on with them and gives the same numbers; whoever has written these removes them.
    """

    device: torch.device = torch.device("cpu")
    temperature: float = 1.0
    has_weights: bool = True
    has_reverse_weights: bool = False
    chunk_size: int = 16_384
    progress_bar: bool = False
    keeps_chunks: bool = False
    unfinished: Unfinished | None = None

    @abstractmethod
    def _draw(self, n: int, generator: torch.Generator) -> Samples:
        """N samples at once."""

    def __repr__(self) -> str:
        energy = getattr(getattr(self, "mdp", self), "energy", None)
        of = "" if energy is None else f"{type(energy).__name__}, "
        weights = "weights" if self.has_weights else "no weights"
        return f"{type(self).__name__}({of}{weights}, on {self.device})"

    def _draw_chunks(
        self, sizes: list[int], generator: torch.Generator, first: int, state: Tensor | None
    ) -> Generator[Samples, None, None]:
        """Chunks from `first` on, where `state` is the generator's after the one before."""
        if state is not None:
            generator.set_state(state)
        for size in sizes[first:]:
            yield self._draw(size, generator)

    def _all_chunks(
        self, sizes: list[int], generator: torch.Generator
    ) -> Generator[Samples, None, None]:
        """Chunks that an earlier call has kept, then the others, which are kept as well."""
        if self.unfinished is None or not self.keeps_chunks or len(sizes) == 1:
            with closing(self._draw_chunks(sizes, generator, 0, None)) as chunks:
                yield from chunks
            return
        start = bytes(generator.get_state().tolist()).hex()
        with self.unfinished.work(f"{type(self).__name__} {sizes} {start}") as work:
            state = None
            for piece in work.done:
                state = piece.pop("generator")
                yield Samples(**{name: _placed(each, self.device) for name, each in piece.items()})
            with closing(self._draw_chunks(sizes, generator, len(work.done), state)) as chunks:
                for chunk in chunks:
                    work.add(vars(chunk) | {"generator": generator.get_state()})
                    yield chunk

    def at(self, condition: ConditionLike) -> Sampler:
        """The sampler of a conditional energy at one value of its parameters.

        Raises:
            ValueError: if there are no parameters, or the value is out of range.
        """
        raise ValueError(f"condition must be left out: {type(self).__name__} has no parameters")

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
        condition: ConditionLike | None = None,
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
            condition: a value of the parameters of a conditional energy: samples of x there, with
                weights whose mean is Z there. Without it, rows (x, c) of random c.

        Raises:
            ValueError: if n or oversample is below 1, the condition is out of range or there are no
                parameters, the generator is on another device, or `resample` is asked of a sampler
                without weights, or of weights of which one is infinite or all are 0.
        """
        if condition is not None:
            at = self.at(condition)
            return at.sample(n, generator, resample=resample, oversample=oversample)
        n, oversample = count_of("n", n), count_of("oversample", oversample)
        generator = generator_of(generator, self.device)
        if resample and not self.has_weights:
            raise ValueError(f"resample needs log-weights, and {type(self).__name__} has none")
        total = n * oversample if resample else n
        sizes = [min(self.chunk_size, total - i) for i in range(0, total, self.chunk_size)]
        chunks = []
        with (
            tqdm(total=total, unit="sample", leave=False, disable=not self.progress_bar) as bar,
            closing(self._all_chunks(sizes, generator)) as drawn,  # its threads end here, too
        ):
            for chunk in drawn:
                chunks.append(chunk)
                bar.update(len(chunk.x))
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


def _placed(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


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

    keeps_chunks = True

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

    def at(self, condition: ConditionLike) -> ChainSampler:
        """See :meth:`Sampler.at`; it follows later training, too."""
        mdp = self.mdp.at(condition)
        x = WithoutParameters(mdp.geometry, mdp.condition_of(condition))
        return ChainSampler(mdp, self.policy, noise_scale=self.noise_scale, coordinates=x)

    def _draw(self, n: int, generator: torch.Generator) -> Samples:
        with self.mdp.uncounted() as used:
            return replace(self._episodes(n, generator), energy_evaluations=used())

    def _episodes(self, n: int, generator: torch.Generator) -> Samples:
        """N episodes at once; what they cost is not known to it."""
        rollout = self.mdp.rollout(self.policy, n, generator, noise_scale=self.noise_scale)
        log_weight = rollout.log_weight if self.has_weights else None
        x = rollout.x if self.coordinates is None else self.coordinates.to_x(rollout.x)
        return Samples(x=x, log_weight=log_weight, energy_evaluations=0)

    def _draw_chunks(
        self, sizes: list[int], generator: torch.Generator, first: int, state: Tensor | None
    ) -> Generator[Samples, None, None]:
        """On a CPU, each of torch's threads draws whole chunks: one is too small to be shared.

        Every chunk has a separate generator, so the samples do not depend on the threads. The
        threads have the calling one evaluate an energy that is not `thread_safe`; a policy that
        may evaluate it in another way, since it does not say that it is `thread_safe`, runs in the
        calling thread altogether.
        """
        if len(sizes) == 1 or self.device.type != "cpu":
            yield from super()._draw_chunks(sizes, generator, first, state)
            return
        keep_freed_memory()
        draws = list(zip(sizes, chunk_seeds(len(sizes), generator), strict=True))[first:]
        safe = self.mdp.energy.thread_safe or getattr(self.policy, "thread_safe", False)
        with (
            self.mdp.uncounted(),
            closing(map_in_threads(self.draw_chunk, draws, alone=not safe)) as drawn,
        ):
            yield from drawn

    def draw_chunk(self, chunk: tuple[int, int]) -> Samples:
        """A chunk of a CPU by its size and seed, anywhere the same."""
        size, seed = chunk
        used = counted_here()  # the MDP's counter is of all threads
        with torch.no_grad():  # which is a thread's own
            drawn = self._episodes(size, torch.Generator().manual_seed(seed))
        return replace(drawn, energy_evaluations=counted_here() - used)

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
            raise ValueError("a chain in other coordinates than its samples cannot be a program")
        export_program(self.mdp, self.policy, path, weights=weights)

    @torch.no_grad()
    def reverse_log_weight(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """See :meth:`Sampler.reverse_log_weight`."""
        if self.coordinates is not None:
            x = self.coordinates.to_z(x, generator)
        parts = x.to(self.mdp.dtype).split(self.chunk_size)
        with self.mdp.uncounted():
            weights = [self.mdp.reverse_log_weight(self.policy, part, generator) for part in parts]
        return torch.cat(weights)
