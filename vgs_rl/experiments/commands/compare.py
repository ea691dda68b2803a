"""Trains agents and runs baselines on the same MDP, and lays them over each other.

    vgs-rl compare GMM9 --agents vgs,sb3-ppo,pis,tb,mala --seeds 3 --budget steps=2e6
    vgs-rl compare GMM9,Funnel10 --agents vgs,pis,hmc --budget seconds=60

Agents: vgs, pis, tb, logvar, sb3-ALGORITHM, tianshou-ALGORITHM (and those with -kernel behind).
Without training, on the same account of energy evaluations: ula, mala, hmc, pt (parallel
tempering), ais, smc. Settings are those of configs/<env>.yaml (its `mdp` for all, its `agent` for
vgs) and configs/rl/<agent>.yaml, with configs/compare/*.yaml over them. Finished runs are not
repeated; call again after Ctrl-C or a failure. --launcher ray runs on a Ray cluster.
"""

from __future__ import annotations

import os
import shutil
import sys
from argparse import Namespace
from pathlib import Path

from vgs_rl.evaluation.report import Report
from vgs_rl.experiments.cli import (
    Mistake,
    Parser,
    command,
    device,
    output_file,
    output_folder,
    positive,
    switch,
    whole,
)
from vgs_rl.experiments.comparison.board import write_board, write_layout
from vgs_rl.experiments.comparison.jobs import (
    Job,
    budget_name,
    check_jobs,
    make_jobs,
    parse_budget,
)
from vgs_rl.experiments.comparison.pictures import draw_comparison
from vgs_rl.experiments.comparison.report import (
    as_json,
    as_markdown,
    collect,
    read_reports,
)
from vgs_rl.experiments.comparison.worker import run_job
from vgs_rl.experiments.launchers import Launcher, add_launcher_options, launcher_of
from vgs_rl.experiments.tables import (
    machine,
    print_machine,
    require_section,
    write_json,
    write_section,
)
from vgs_rl.files.checkpoint import write_text
from vgs_rl.files.lock import FolderLock
from vgs_rl.training.config import TRUST_HELP


@command
def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status."""
    options = _parse(arguments)
    try:
        return _compare(options)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130


def _compare(options: Namespace) -> int:
    launcher = launcher_of(options, default=max(1, (os.cpu_count() or 1) // options.threads))
    budget = parse_budget(options.budget)
    root = options.output / budget_name(budget)
    if options.launcher == "ray":  # workers start in other folders
        root = root.absolute()
    jobs = make_jobs(
        options.env.split(","),
        options.agents.split(","),
        range(options.seeds),
        budget,
        root,
        device=options.device,
        threads=options.threads,
        trust=options.trust,
    )
    others = read_reports(options.reports, jobs)
    check_jobs(jobs)
    root.mkdir(parents=True, exist_ok=True)
    with FolderLock(root):
        return _run(options, launcher, jobs, budget, root, others)


def _run(
    options: Namespace,
    launcher: Launcher,
    jobs: list[Job],
    budget: dict[str, float | int],
    root: Path,
    others: list[Report],
) -> int:
    """Runs what is not finished, and writes what is shown of all."""
    size = machine(options.threads)
    print_machine(size)
    ready = sum(job.finished for job in jobs)
    print(f"{len(jobs)} runs into {root}, {ready} finished before, {launcher.describe()}")
    write_layout(root)
    failed = launcher.run(jobs, run_job)
    results = collect(jobs, others)
    if not results:
        print("error: no run finished", file=sys.stderr)
        return 1
    title = f"{budget_name(budget)}, seeds 0 to {options.seeds - 1}"
    text = as_markdown(results, title, failed)
    print(f"\n{text}\n")
    write_text(root / "table.md", text + "\n")
    write_board(root, jobs, text)
    contents = {"machine": size, "budget": budget, **as_json(results, failed)}
    for file in (root / "table.json", options.json):
        write_json(contents, file)
    pictures = {env: draw_comparison(env, jobs, root) for env in results}
    if options.markdown is not None:
        page = options.markdown
        shown = _published(pictures, options.figures, page.parent) if options.figures else ""
        write_section(page, options.section, text + shown)
    print(f"table     {root / 'table.md'}, {root / 'table.json'}")
    for path in (path for paths in pictures.values() for path in paths):
        print(f"picture   {path}")
    print(f"curves    tensorboard --logdir {root}")
    return 1 if failed else 0


def make_parser() -> Parser:
    """The command's options."""
    parser = Parser(__doc__, "compare")
    add = parser.add_argument
    targets = "targets, configurations or their files, with commas between"
    add("targets", nargs="?", default=None, help=targets)
    add("--env", default=None, help="the same as an option; GMM9 by default")
    add("--agents", default="vgs,pis,tb,logvar,mala,hmc,ais,pt", help="short names")
    add("--reports", default="", help="report.json files of other samplers, for more rows")
    add("--seeds", type=whole(), default=1, help="number of seeds, from 0")
    limits = "of each run: steps=, energies=, seconds=, updates=; several stand together"
    add("--budget", default="steps=2e6", help=limits)
    add("--jobs", type=whole(), default=None, help="runs at a time; by default as many as cores")
    add("--threads", type=whole(), default=1, help="threads of each run")
    add_launcher_options(parser)
    add("--gpus", type=positive, default=None, help="GPUs of each run on Ray; 0.5 shares one")
    add("--device", type=device, default="auto", help="auto, cpu or cuda")
    add("--trust", type=switch, default=False, help=TRUST_HELP)
    folder = Path("runs/compare")
    add("--output", type=output_folder, default=folder, help="folder of comparisons")
    add("--json", type=output_file, default=None, help="also write the JSON table here")
    add("--markdown", type=output_file, default=None, help="also write the tables into this file")
    figures = "copy pictures here, linked in --markdown"
    add("--figures", type=output_folder, default=None, help=figures)
    add("--section", default="compare", help="its marks: <!-- SECTION:begin -->, …:end -->")
    return parser


def _parse(arguments: list[str]) -> Namespace:
    options = make_parser().read(arguments)
    if options.targets and options.env:
        raise Mistake(f"--env {options.env}: {options.targets} is given already, give one")
    options.env = options.targets or options.env or "GMM9"
    if options.figures and not options.markdown:
        raise Mistake("--figures needs --markdown, which shows them")
    if options.markdown is not None:
        require_section(options.markdown, options.section)
    return options


def _published(pictures: dict[str, list[Path]], folder: Path, page: Path) -> str:
    """Copies pictures into a folder of the page's; the lines that show them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for env, paths in pictures.items():
        for path in paths:
            copy = folder / f"compare-{path.name.lower()}"
            shutil.copyfile(path, copy)
            what = path.stem.partition("-")[2]
            lines.append(f"\n\n![{env}: {what}]({os.path.relpath(copy, page)})")
    return "".join(lines)
