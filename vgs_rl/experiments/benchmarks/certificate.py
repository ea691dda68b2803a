"""Coverage of the bounds of log Z against the tail of the weights, beside the usual interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from vgs_rl.checks import count_of, seed_of
from vgs_rl.evaluation.confidence import log_mean_low
from vgs_rl.experiments.cli import Mistake
from vgs_rl.experiments.run import open_run
from vgs_rl.experiments.tables import (
    Table,
    markdown_table,
    print_table,
    require_outputs,
    write_json,
    write_section,
)
from vgs_rl.plots.plots import save_figure, try_picture
from vgs_rl.plots.results import CoveragePoint, plot_coverage
from vgs_rl.registry import find
from vgs_rl.weights import effective_share, log_mean_weight, pareto_k

CONFIDENCE = 0.95
Draw = Callable[[int, torch.Generator], Tensor]


@dataclass(frozen=True, kw_only=True)
class Law:
    """Log-weights whose Z is 1, under the paths of the sampler and under those of the target."""

    forward: Draw
    backward: Draw


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64)


def _pareto(shape: float) -> Law:
    """Moments of w below order `shape` exist. Under the target the shape is one less."""
    least = math.log((shape - 1) / shape)
    return Law(
        forward=lambda n, generator: least - _uniform(n, generator).log() / shape,
        backward=lambda n, generator: least - _uniform(n, generator).log() / (shape - 1),
    )


def _lognormal(std: float) -> Law:
    def shifted(sign: float) -> Draw:
        def draw(n: int, generator: torch.Generator) -> Tensor:
            z = torch.randn(n, generator=generator, dtype=torch.float64)
            return std * z + sign * 0.5 * std**2

        return draw

    return Law(forward=shifted(-1.0), backward=shifted(1.0))


def _two_values(share: float, chance: float) -> Law:
    """A mode with `share` of Z, which a path visits with probability `chance`."""
    inside, outside = math.log(share / chance), math.log((1 - share) / (1 - chance))

    def drawn(probability: float) -> Draw:
        return lambda n, generator: torch.where(
            _uniform(n, generator) < probability, inside, outside
        ).double()

    return Law(forward=drawn(chance), backward=drawn(share))


LAWS = {
    "uniform": Law(
        forward=lambda n, generator: (2 * _uniform(n, generator)).log(),
        backward=lambda n, generator: (2 * _uniform(n, generator).sqrt()).log(),
    ),
    **{f"lognormal {std:g}": _lognormal(std) for std in (0.5, 1.0, 2.0, 3.0)},
    **{f"Pareto {shape:g}": _pareto(shape) for shape in (4.0, 3.0, 2.0, 1.7, 1.5, 1.3, 1.2, 1.1)},
    "hidden mode": _two_values(share=0.1, chance=2e-5),
}


def certificate(
    n: int = 20_000,
    repeats: int = 200,
    seed: int = 0,
    runs: tuple[Path, ...] = (),
    paths: int = 5_000,
    figure: Path = Path("runs/coverage.png"),
    json: Path | None = None,
    markdown: Path | None = None,
    trust: bool = False,
) -> None:
    """How often intervals of log Z at level 0.95 hold the truth: weights of known law, and runs.

    The usual interval is log(mean ± 1.96 standard errors) of the forward weights. The proven one
    has its lower end from n forward weights and its upper end from n backward ones.

    Args:
        n: forward log-weights, and backward ones, of each repeat.
        repeats: intervals of each law.
        seed: of the draws.
        runs: folders of trained samplers whose targets have exact samples and a known log Z.
        paths: of such a sampler, forward and backward, in each repeat.
        figure: the picture to write.
        json: also write the rows to this file.
        markdown: also write the table into the section `certificate` of this file.
        trust: whether the runs may name code that is not this package's.
    """
    n, repeats = count_of("n", n, least=100), count_of("repeats", repeats)
    paths = count_of("paths", paths, least=100)
    generator = torch.Generator().manual_seed(seed_of(seed))
    require_outputs(json, figure, markdown=markdown, sections=["certificate"])
    samplers = [trained(run, trust) for run in runs]
    points = [
        coverage(name, law, n=n, repeats=repeats, generator=generator) for name, law in LAWS.items()
    ]
    points += [
        coverage(name, law, n=paths, repeats=repeats, generator=generator) for name, law in samplers
    ]
    points.sort(key=lambda point: point.k_hat)
    rows: Table = [
        {
            "weights": point.name,
            "k-hat": f"{point.k_hat:.2f}",
            "ESS": f"{point.ess:.3f}",
            "usual interval holds": f"{point.usual:.3f}",
            "its width": f"{point.usual_width:.3f}",
            "proven interval holds": f"{point.proven:.3f}",
            "log Z - low": f"{point.below:.3f}",
            "high - log Z": f"{point.above:.3f}",
        }
        for point in points
    ]
    of_runs = f", of runs {paths:,}" if runs else ""
    print_table(f"{repeats:,} intervals from {n:,} weights each{of_runs}; medians", rows)
    write_json({"rows": [asdict(point) for point in points]}, json)
    if markdown is not None:
        write_section(markdown, "certificate", markdown_table(rows))
    try_picture(
        str(figure), lambda: save_figure(plot_coverage(points, confidence=CONFIDENCE), figure)
    )
    if figure.is_file():
        print(f"\n  picture {figure}")


def trained(run: Path, trust: bool = False) -> tuple[str, Law]:
    """The target of a run folder, and the log-weights of its sampler less the exact log Z.

    Args:
        run: the run folder.
        trust: whether its configuration may name code that is not this package's.

    Raises:
        Mistake: if there are no backward paths, no exact samples or no known log Z, or the run has
            parameters or a temperature other than 1.
    """
    config, agent = open_run(run, trust=trust)
    sampler, energy = agent.sampler(), find(config.env).make_energy(**config.env_args)
    exact = energy.log_z
    if agent.mdp.conditions is not None or agent.mdp.temperature != 1.0:
        raise Mistake(f"--runs must have temperature 1 and no parameters, got {run}")
    if exact is None or not energy.can_sample or not sampler.has_reverse_weights:
        raise Mistake(
            f"--runs must have exact samples, a known log Z and backward paths, got {run}"
        )

    def forward(n: int, generator: torch.Generator) -> Tensor:
        log_weight = sampler.sample(n, generator).log_weight
        assert log_weight is not None
        return log_weight.double() - exact

    def backward(n: int, generator: torch.Generator) -> Tensor:
        x = energy.sample(n, generator)
        return sampler.reverse_log_weight(x, generator).double() - exact

    return f"trained {config.env}", Law(forward=forward, backward=backward)


def coverage(
    name: str, law: Law, *, n: int, repeats: int, generator: torch.Generator
) -> CoveragePoint:
    """Shares of intervals that hold log Z = 0, with medians of what they look like.

    Args:
        name: of the law.
        law: of the log-weights.
        n: weights of either kind.
        repeats: intervals.
        generator: source of the draws.
    """
    each = 0.5 * (1 + CONFIDENCE)
    found = []
    for _ in range(repeats):
        log_weight = law.forward(n, generator)
        low = log_mean_low(log_weight, each)
        high = -log_mean_low(-law.backward(n, generator), each)
        share = float(effective_share(log_weight))
        error = 1.96 * math.sqrt(max(1 / share - 1, 0.0) / n)  # of Z, relative to the estimate
        estimate = float(log_mean_weight(log_weight))
        ends = (estimate + math.log(max(1 - error, 1e-300)), estimate + math.log1p(error))
        usual = ends[0] <= 0.0 <= ends[1]
        proven = low <= 0.0 <= high
        found.append([pareto_k(log_weight), share, usual, ends[1] - ends[0], proven, -low, high])
    table = torch.tensor(found, dtype=torch.float64)
    k_hat, ess, _, usual_width, _, below, above = table.median(0).values.tolist()
    return CoveragePoint(
        name=name,
        k_hat=k_hat,
        ess=ess,
        usual=float(table[:, 2].mean()),
        usual_width=usual_width,
        proven=float(table[:, 4].mean()),
        below=below,
        above=above,
    )
