"""Draws from a run, a shipped sampler or an energy into a file, with the log-weights.

    vgs-rl sample runs/GMM9/vgs/0 --n 1000 --output samples.npz
    vgs-rl sample LJ13 --n 100 --resample true --output samples.npz
    vgs-rl sample LJ13 --n 100 --calls 16 --output samples.npz
    vgs-rl sample my_module:MyEnergy --seconds 120 --output samples.npz --logdir runs/sample
    vgs-rl sample my_module:MyEnergy --repeat samples.json --output again.npz

An energy is explored and learned first, without any setting, and a verdict says what to believe. A
.json file of the same name holds the verdict, the evidence and every choice made; --repeat does the
same again, as often as it was done there, and the same machine gives the same numbers.

After Ctrl-C or a kill the same command goes on, and loses a minute of drawing at most. The numbers
are those of an undisturbed call. Until then a folder .OUTPUT.unfinished holds what was drawn.

--launcher ray draws the chunks of a trained sampler over a Ray cluster: the same numbers.

A .npz file holds NumPy's arrays `x` (n, D) and `log_weight` (n,); a .pt file is for
`vgs_rl.Samples.load`.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from vgs_rl.experiments.automatic import sample
from vgs_rl.experiments.cli import (
    Mistake,
    Parser,
    command,
    device,
    one_of,
    output_file,
    output_folder,
    positive,
    seed,
    switch,
    whole,
)
from vgs_rl.experiments.launchers import SpreadSampler, add_launcher_options, launcher_of
from vgs_rl.experiments.pretrained import load_pretrained, sampler_file, shipped_samplers
from vgs_rl.experiments.run import load_run
from vgs_rl.fields import nearest
from vgs_rl.files.unfinished import NAME as UNFINISHED
from vgs_rl.files.unfinished import Unfinished, digest_of
from vgs_rl.registry import find, registered
from vgs_rl.samplers.base import Sampler, Samples
from vgs_rl.samplers.dpm_solver import DPMSolver, note_on
from vgs_rl.training.config import TRUST_HELP, resolve_device
from vgs_rl.training.resume import run_digest
from vgs_rl.weights import log_z_estimate

FORMATS = (".npz", ".pt")
OF_ENERGIES = ("seconds", "repeat", "logdir")


def make_parser() -> Parser:
    """The command's options."""
    parser = Parser(__doc__, "sample")
    add = parser.add_argument
    add("source", help="a run folder, a shipped sampler's name, an exported file, or a target")
    add("--n", type=whole(), default=1_000, help="number of samples")
    add("--seed", type=seed, default=0, help="seed of the samples")
    resample = "resample by importance weights: asymptotically exact, with duplicates"
    add("--resample", type=switch, default=False, help=resample)
    calls = "network calls of a sample of a trained chain, then without log-weights"
    add("--calls", type=whole(2), default=None, help=calls)
    add("--output", type=output_file, default=Path("samples.npz"), help="file, .npz or .pt")
    best = "best or last, of a run; by default best, or last if validation chose none"
    add("--checkpoint", type=one_of("best", "last"), default=None, help=best)
    limit = "about how long an energy is explored and learned; 240 by default"
    add("--seconds", type=positive, default=None, help=limit)
    add("--repeat", type=Path, default=None, help="the .json file of an energy's samples")
    add("--logdir", type=output_folder, default=None, help="empty folder for TensorBoard")
    add("--device", type=device, default=None, help="auto, cpu or cuda; the run's by default")
    add_launcher_options(parser)
    add("--trust", type=switch, default=False, help=TRUST_HELP)
    return parser


@command
def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status."""
    options = make_parser().read(arguments)
    if options.output.suffix not in FORMATS:
        raise Mistake(f"--output: must end in {' or '.join(FORMATS)}, got {str(options.output)!r}")
    if options.repeat is not None:
        _refuse_what_is_repeated(arguments)
    if _is_target(options):
        return _sample_energy(options)
    for name in OF_ENERGIES:
        if getattr(options, name) is not None:
            if not Path(options.source).exists():
                find(options.source)  # which refuses, with the nearest names
            raise Mistake(f"--{name} is for an energy's name, got {options.source!r}")
    launcher = launcher_of(options)
    sampler, identity = _load(options)
    if options.calls is not None:
        sampler, identity = DPMSolver(sampler, options.calls), f"{identity} {options.calls}"
    if options.launcher != "local":
        sampler = SpreadSampler(sampler, launcher)
    if options.resample and not sampler.has_weights:
        has = "has none" if options.calls is None else "has none in few calls"
        raise Mistake(f"--resample needs log-weights, and {options.source} {has}")
    sampler.progress_bar = True
    place = options.output.with_name(f".{options.output.name}{UNFINISHED}")
    unfinished = sampler.unfinished = Unfinished(place, identity)
    samples = sampler.sample(options.n, options.seed, resample=options.resample)
    _write(options, samples, options.seed)
    unfinished.remove()
    if samples.log_weight is not None:
        print(f"log Z     {float(log_z_estimate(samples.log_weight)):.4f}")
    if options.calls is not None:
        print(f"note: {note_on(options.calls)}", file=sys.stderr)
    return 0


def _write(options: Namespace, samples: Samples, seed: int) -> None:
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.output.suffix == ".pt":
        samples.save(options.output)
    else:
        samples.to_npz(options.output)
    print(f"samples   {options.output}: x {tuple(samples.x.shape)}, seed {seed}")


def _is_target(options: Namespace) -> bool:
    """Whether the source names an energy, and nothing that has learned it already."""
    source = options.source
    learns = any(getattr(options, name) is not None for name in OF_ENERGIES)
    if Path(source).exists() or (source in shipped_samplers() and not learns):
        return False
    named = {name for id in registered() for name in (id, find(id).name)}
    return ":" in source or source in named


def _sample_energy(options: Namespace) -> int:
    """Explores and learns an energy, writes its samples and prints the verdict."""
    for name in ("resample", "calls", "checkpoint", "address", "retries"):
        if getattr(options, name):
            raise Mistake(f"--{name} is for what has been trained, got the energy {options.source}")
    if options.launcher != "local":
        raise Mistake(
            f"--launcher {options.launcher} is for what has been trained, got the energy "
            f"{options.source}"
        )
    result = sample(
        options.source,
        options.n,
        seed=options.seed,
        seconds=options.seconds or 240.0,
        device=str(resolve_device(options.device or "auto")),
        repeat=_settings(options.repeat),
        log_dir=options.logdir,
    )
    print(result)
    _write(options, result.samples, result.settings["seed"])
    report = options.output.with_suffix(".json")
    result.save_report(report)
    print(f"report    {report}: verdict, evidence, and every choice made")
    if options.logdir is not None:
        print(f"curves    tensorboard --logdir {options.logdir}")
    return 0


def _refuse_what_is_repeated(arguments: list[str]) -> None:
    """Refuses options whose values --repeat has."""
    for argument in arguments:
        name = argument.partition("=")[0]
        if name in ("--n", "--seed", "--seconds"):
            raise Mistake(f"{name} is that of --repeat: leave it out")


def _settings(file: Path | None) -> dict[str, Any] | None:
    """The settings in a report of :meth:`vgs_rl.experiments.automatic.Result.save_report`."""
    if file is None:
        return None
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))["settings"]
    except (ValueError, KeyError, TypeError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise Mistake(f"--repeat: {file} is no report of samples of an energy")
    return settings


def _load(options: Namespace) -> tuple[Sampler, str]:
    """The sampler of a run folder, a shipped name or a file, and a digest of it."""
    source = Path(options.source)
    if options.source not in shipped_samplers() and source.is_dir():
        run = load_run(source, options.checkpoint, options.device, trust=options.trust)
        return run.sampler(), run_digest(source, run.checkpoint)
    if options.checkpoint is not None:
        raise Mistake("--checkpoint is for run folders, an exported sampler has but one")
    if options.source not in shipped_samplers() and not source.exists():
        hint = nearest(options.source, shipped_samplers())
        raise Mistake(f"no run folder or sampler is called {options.source!r}; {hint}")
    device = options.device or "auto"
    agent = load_pretrained(options.source, device, trust=options.trust)[1]
    return agent.sampler(), digest_of(sampler_file(options.source))
