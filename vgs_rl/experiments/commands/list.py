"""Shows what can be named: targets, agents, configurations and shipped samplers.

vgs-rl list
vgs-rl list samplers --json -
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

from vgs_rl.envs.configured import tuned_config
from vgs_rl.experiments.baselines import BASELINES
from vgs_rl.experiments.cli import STANDARD, Parser, command, one_of, output
from vgs_rl.experiments.comparison.jobs import LIBRARIES, PATH_AGENTS, tuned_agents
from vgs_rl.experiments.pretrained import shipped_report, shipped_samplers
from vgs_rl.experiments.tables import Table, print_table, write_json
from vgs_rl.files.shipped import CONFIGS, kind_of, shipped_configs
from vgs_rl.registry import find, registered

METRICS = ("elbo", "log_z", "ess", "path_ess", "tvd_energy", "tvd_distance", "w2_energy")


def targets() -> Table:
    """The registered targets, each with its chain and the configuration that was found for it."""
    rows: Table = []
    for name in registered():
        target = find(name)
        rows.append(
            {
                "target": target.name,
                "id": name,
                "dimension": target.make_energy().dim,
                "chain": target.mdp.chain,
                "steps": target.mdp.num_steps,
                "configuration": tuned_config(name) or "",
            }
        )
    return rows


def agents() -> Table:
    """What `vgs-rl compare --agents` takes."""
    rows: Table = [{"agent": "vgs", "kind": "value gradient", "needs": ""}]
    rows += [{"agent": name, "kind": "path gradient", "needs": ""} for name in PATH_AGENTS]
    for name in tuned_agents():
        _, module, extra = LIBRARIES[name.partition("-")[0]]
        here = importlib.util.find_spec(module) is not None
        needs = "" if here else f"pip install 'vgs-rl[{extra}]'"
        rows.append({"agent": name, "kind": f"algorithm of {module}", "needs": needs})
    return rows + [{"agent": name, "kind": "learns nothing", "needs": ""} for name in BASELINES]


def configs() -> Table:
    """The shipped configurations, with the command that takes each."""
    commands = {"run": "train", "detector": "train-ebm"}
    rows: Table = []
    for name in shipped_configs():
        file = CONFIGS / f"{name}.yaml"
        kind = kind_of(file)
        if kind is not None:
            first = file.read_text(encoding="utf-8").splitlines()[0]
            about = first.removeprefix("# ") if first.startswith("#") else ""
            rows.append({"configuration": name, "command": commands[kind], "about": about})
    return rows


def samplers() -> Table:
    """The shipped samplers, with the metrics of their reports."""
    rows: Table = []
    for name in shipped_samplers():
        report = shipped_report(name)
        found = {each: report.metrics[each].text() for each in METRICS if each in report.metrics}
        rows.append({"sampler": name, "samples": report.n_samples, **found})
    return rows


SECTIONS: dict[str, Callable[[], Table]] = {
    "targets": targets,
    "agents": agents,
    "configs": configs,
    "samplers": samplers,
}


def make_parser() -> Parser:
    """The command's options."""
    parser = Parser(__doc__, "list")
    sections = ", ".join(SECTIONS)
    parser.add_argument(
        "section", type=one_of(*SECTIONS), nargs="?", default=None, help=f"{sections}; or all"
    )
    json_help = "write the tables as JSON instead; - is stdout"
    parser.add_argument("--json", type=output, default=None, help=json_help)
    return parser


@command
def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status."""
    options = make_parser().read(arguments)
    names = SECTIONS if options.section is None else (options.section,)
    tables = {name: SECTIONS[name]() for name in names}
    if options.json == STANDARD:
        print(json.dumps(tables, indent=2))
    elif options.json is not None:
        write_json(tables, Path(options.json))
    else:
        for name, rows in tables.items():
            print_table(name, rows)
    return 0
