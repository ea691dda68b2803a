"""Error budgets of briefly trained samplers: do the parts add up, and do predictions come true?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vgs_rl.agents import Agent
from vgs_rl.chain import Chain
from vgs_rl.checks import count_of, seed_of
from vgs_rl.energy import Energy
from vgs_rl.evaluation.budget.estimate import STARTS, chain_of, error_budget
from vgs_rl.evaluation.budget.result import ErrorBudget, Estimate, Purchase
from vgs_rl.evaluation.budget.tightness import tightness
from vgs_rl.experiments.config import RunConfig, named_config
from vgs_rl.experiments.tables import (
    Table,
    markdown_table,
    print_table,
    require_outputs,
    write_json,
    write_section,
)
from vgs_rl.mdp import SamplingMDP
from vgs_rl.networks.base import ExactValue
from vgs_rl.networks.policies import ValueGradientPolicy
from vgs_rl.plots.budget import plot_budgets
from vgs_rl.plots.plots import save_figure, try_picture
from vgs_rl.registry import find
from vgs_rl.samplers.base import ChainSampler
from vgs_rl.starts.base import Start
from vgs_rl.transitions import Policy

# S_0 of an `auto` schedule, which T alone changes; others keep their own.
NOISE = {"gmm9": 0.8, "funnel10": 8.0, "manywell32": 1.0}
CHUNK = 16_384  # exact values may share their quadratures within a chunk


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A budget, and what each purchase has gained in fact."""

    budget: ErrorBudget
    gained: dict[Purchase, Estimate]


def budget(
    configs: tuple[str, ...] = ("gmm9", "funnel10", "manywell32"),
    num_steps: tuple[int, ...] = (5, 10, 20),
    updates: int = 400,
    n: int = 4_000,
    paths: int = 50_000,
    exact: int = 10_000,
    seed: int = 0,
    figure: Path = Path("runs/budget.png"),
    json: Path | None = None,
    markdown: Path | None = None,
) -> None:
    """Trains briefly, splits the gap, buys everything, and measures what it gained.

    A longer training is the exact control with its noise scales. More steps are those of the exact
    control, from the same start. A better start is the exact one, on ten times as many paths.

    Args:
        configs: names of files in configs/, or paths of YAML files, of targets with exact values;
            none for the bounds alone.
        num_steps: values of T.
        updates: gradient steps of each training.
        n: bridge paths of each budget.
        paths: on which each gap of a trained sampler is measured.
        exact: paths on which gains are measured, and states that noise scales are fitted to; ten
            times as many for the gain of a better start.
        seed: of training; that of the measurements is one more.
        figure: the picture to write.
        json: also write the budgets to this file.
        markdown: also write the tables into this file's sections `budget`, `gains`, `tightness`.
    """
    for option, count in (("updates", updates), ("paths", paths), ("exact", exact)):
        count_of(option, count, least=2)
    seed_of(seed)
    sections = ("budget", "gains", "tightness")
    require_outputs(json, figure, markdown=markdown, sections=sections)
    tables: dict[str, Table] = {"budget": [], "gains": []}
    tables["tightness"] = tightness(num_steps, n=n, paths=exact, seed=seed + 1)
    _write(markdown, tables)
    found = list[Judged]()
    for name in configs:
        for steps in num_steps:
            each = _judged(name, steps, updates=updates, n=n, paths=paths, exact=exact, seed=seed)
            print(each.budget, end="\n\n", flush=True)
            found.append(each)
            tables["budget"].append(_parts_row(each.budget))
            tables["gains"].append(_gains_row(each))
            _write(markdown, tables)
    titles = {
        "budget": "parts of EUBO - log Z [nats]",
        "gains": "gains [nats], predicted and measured",
        "tightness": "bounds of KL and total variation, exact control",
    }
    for section, rows in tables.items():
        if rows:
            print_table(titles[section], rows)
    if not found:
        return
    budgets = [each.budget for each in found]
    write_json({"budgets": [each.as_dict() for each in budgets], **tables}, json)
    try_picture(str(figure), lambda: save_figure(plot_budgets(budgets), figure))
    if figure.is_file():
        print(f"\n  picture {figure}")


def _write(markdown: Path | None, tables: dict[str, Table]) -> None:
    """Writes what there is into the page, so that an interrupted call leaves it."""
    for section, rows in tables.items():
        if markdown is not None and rows:
            write_section(markdown, section, markdown_table(rows))


def _judged(
    name: str, steps: int, *, updates: int, n: int, paths: int, exact: int, seed: int
) -> Judged:
    settings: dict[str, Any] = {"num_steps": steps}
    if name in NOISE:
        settings["schedule"] = {"kind": "auto", "first": None, "last": None}
        settings["schedule"]["total_noise"] = NOISE[name]
    config = named_config(name, {"mdp": settings})
    agent = _trained(config, updates, seed)
    return Judged(
        budget=error_budget(agent, n=n, paths=paths, seed=seed + 1),
        gained=_gained(agent, exact, seed + 1),
    )


def _trained(config: RunConfig, updates: int, seed: int) -> Agent:
    energy = find(config.env).make_energy(**config.env_args)
    agent: Agent = config.agent.build(SamplingMDP(energy, config.mdp), seed=seed)
    return agent.learn(updates=updates, progress_bar=False)


@torch.no_grad()
def _gained(agent: Agent, paths: int, seed: int) -> dict[Purchase, Estimate]:
    """What each purchase lowers EUBO - log Z by, on paths from the same states for each."""
    mdp = agent.mdp
    generator = mdp.generator(seed + 1)
    x = mdp.energy.sample(paths, generator)
    fit = mdp.energy.sample(paths, generator)
    many = mdp.energy.sample(STARTS * paths, generator)

    def measured(sampler: ChainSampler, x: Tensor = x) -> Tensor:
        """Log w of backward paths, by the same noise each time."""
        return sampler.reverse_log_weight(x, mdp.generator(seed + 2)).double()

    def perfect(steps: int) -> Tensor:
        chain = SamplingMDP(mdp.energy, replace(mdp.config, num_steps=steps))
        value = ExactValue(mdp.energy, chain.chain)
        return measured(
            _sampler(chain, mdp.start, ValueGradientPolicy(chain, value, "posterior"), fit)
        )

    sampler = chain_of(agent.sampler())
    same = SamplingMDP(mdp.energy, mdp.config)
    ideal = SamplingMDP(mdp.energy, mdp.config)
    ideal.rho.copy_(mdp.rho)
    ideal.start = ExactStart(mdp.energy, mdp.chain)
    now, best, twice = measured(sampler), perfect(mdp.num_steps), perfect(2 * mdp.num_steps)
    started = ChainSampler(ideal, sampler.policy)
    return {
        "more steps": _paired(best, twice),
        "longer training": _paired(now, best),
        "a better start": _paired(measured(sampler, many), measured(started, many)),
        "a fitted noise scale": _paired(
            now, measured(_sampler(same, mdp.start, sampler.policy, fit))
        ),
    }


def _sampler(mdp: SamplingMDP, start: Start, policy: Policy, fit: Tensor) -> ChainSampler:
    """A sampler from this start, its noise scales fitted to samples of the target."""
    mdp.start = start
    mdp.fit_noise_scale(policy, fit, mdp.generator(0))
    sampler = ChainSampler(mdp, policy)
    sampler.chunk_size = CHUNK
    return sampler


class ExactStart(Start):
    """The target noised all the way, from its exact samples and values.

    Args:
        energy: the target.
        chain: noises it.
    """

    def __init__(self, energy: Energy, chain: Chain) -> None:
        super().__init__(energy.geometry)
        self.energy, self.chain = energy, chain

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :meth:`Start.sample`."""
        x = self.energy.sample(n, generator).to(self.chain.S)
        z = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return x / self.chain.A[0] + self.chain.S[0].sqrt() * self.geometry.project(z)

    def log_prob(self, x: Tensor) -> Tensor:
        """See :meth:`Start.log_prob`."""
        assert self.energy.log_z is not None
        return -self.energy.value(x, 0, self.chain) - self.energy.log_z

    def widen(self, factor: float) -> None:
        """Refuses: it is the exact one."""
        raise ValueError("the exact start has no width")

    def fit(self, x: Tensor, generator: torch.Generator, *, rate: float = 1.0) -> None:
        """Does nothing: it fits."""


def _paired(before: Tensor, after: Tensor) -> Estimate:
    gain = before - after
    return Estimate(value=float(gain.mean()), error=float(gain.std()) / math.sqrt(len(gain)))


def _parts_row(budget: ErrorBudget) -> dict[str, Any]:
    return {
        "target": budget.target,
        "T": budget.num_steps,
        **{name: _shown(part) for name, part in budget.parts.items()},
        "sum": _shown(budget.total),
        "measured": _shown(budget.gap),
        "sum / measured": f"{budget.total.value / budget.gap.value:.3f}",
        "log Z - ELBO": _shown(budget.elbo_gap),
    }


def _gains_row(judged: Judged) -> dict[str, Any]:
    row: dict[str, Any] = {"target": judged.budget.target, "T": judged.budget.num_steps}
    for name, predicted in judged.budget.predictions.items():
        row[name] = f"{predicted.value:.3g}, {_shown(judged.gained[name])}"
    return row


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ± {estimate.error:.3f}"
