"""Draws from a trained run or a shipped sampler into a file, with the log-weights.

    vgs-rl sample runs/GMM9/vgs/0 --n 1000 --output samples.npz
    vgs-rl sample LJ13 --n 100 --resample true --output samples.npz

A .npz file holds NumPy's arrays `x` (n, D) and `log_weight` (n,); a .pt file is for
`vgs_rl.Samples.load`.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from vgs_rl.experiments.cli import (
    Mistake,
    Parser,
    command,
    device,
    one_of,
    output_file,
    seed,
    switch,
    whole,
)
from vgs_rl.experiments.pretrained import load_pretrained, shipped_samplers
from vgs_rl.experiments.run import load_run
from vgs_rl.fields import nearest
from vgs_rl.samplers.base import Sampler
from vgs_rl.training.config import TRUST_HELP
from vgs_rl.training.loop import handling, interrupt
from vgs_rl.weights import log_z_estimate

FORMATS = (".npz", ".pt")


def make_parser() -> Parser:
    """The command's options."""
    parser = Parser(__doc__, "sample")
    add = parser.add_argument
    add("source", help="a run folder, a shipped sampler's name, or an exported file")
    add("--n", type=whole(), default=1_000, help="number of samples")
    add("--seed", type=seed, default=0, help="seed of the samples")
    resample = "resample by importance weights: asymptotically exact, with duplicates"
    add("--resample", type=switch, default=False, help=resample)
    add("--output", type=output_file, default=Path("samples.npz"), help="file, .npz or .pt")
    best = "best or last, of a run; by default best, or last if validation chose none"
    add("--checkpoint", type=one_of("best", "last"), default=None, help=best)
    add("--device", type=device, default=None, help="auto, cpu or cuda; the run's by default")
    add("--trust", type=switch, default=False, help=TRUST_HELP)
    return parser


@command
def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status."""
    options = make_parser().read(arguments)
    if options.output.suffix not in FORMATS:
        raise Mistake(f"--output: must end in {' or '.join(FORMATS)}, got {str(options.output)!r}")
    sampler = _load(options)
    if options.resample and not sampler.has_weights:
        raise Mistake(f"--resample needs log-weights, and {options.source} has none")
    sampler.progress_bar = True
    with handling(interrupt):
        samples = sampler.sample(options.n, options.seed, resample=options.resample)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.output.suffix == ".pt":
        samples.save(options.output)
    else:
        samples.to_npz(options.output)
    print(f"samples   {options.output}: x {tuple(samples.x.shape)}, seed {options.seed}")
    if samples.log_weight is not None:
        print(f"log Z     {float(log_z_estimate(samples.log_weight)):.4f}")
    return 0


def _load(options: Namespace) -> Sampler:
    """The sampler of a run folder, a shipped name or a file."""
    source = Path(options.source)
    if options.source not in shipped_samplers() and source.is_dir():
        run = load_run(source, options.checkpoint, options.device, trust=options.trust)
        return run.sampler()
    if options.checkpoint is not None:
        raise Mistake("--checkpoint is for run folders, an exported sampler has but one")
    if options.source not in shipped_samplers() and not source.exists():
        hint = nearest(options.source, shipped_samplers())
        raise Mistake(f"no run folder or sampler is called {options.source!r}; {hint}")
    device = options.device or "auto"
    return load_pretrained(options.source, device, trust=options.trust)[1].sampler()
