"""Makes a sampler of few network calls, or one, from a trained one; its log-weights stay exact.

    vgs-rl distill runs/GMM9/vgs/0 --steps 1
    vgs-rl distill runs/GMM9/vgs/0 --steps 4 --export gmm9-4.pt
    vgs-rl train --resume runs/GMM9/distilled-4/0            goes on after Ctrl-C

One step is a normalising flow, more are a chain of mixture kernels. The student's run folder holds
the teacher's states that it learns from.

Without training, and without log-weights, the trained network itself draws in few calls: --calls of
the commands sample and evaluate. LJ-13 is drawn in 16 calls that way.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from vgs_rl.agents import Agent, DistilledAgent, DistilledConfig
from vgs_rl.agents.distilled.agent import require_distillable
from vgs_rl.agents.distilled.distill import STATES, UPDATES, Plan, plan
from vgs_rl.evaluation.evaluate import Report, format_comparison
from vgs_rl.experiments.cli import (
    Mistake,
    Parser,
    called,
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
from vgs_rl.experiments.config import RunConfig
from vgs_rl.experiments.evaluation import evaluate_agent
from vgs_rl.experiments.pretrained import (
    export_sampler,
    load_pretrained,
    sampler_file,
    shipped_samplers,
)
from vgs_rl.experiments.run import load_run, open_run, train
from vgs_rl.fields import nearest
from vgs_rl.files.unfinished import NAME as UNFINISHED
from vgs_rl.files.unfinished import Unfinished, digest_of
from vgs_rl.mdp import MDPConfig
from vgs_rl.training.config import TRUST_HELP, BudgetConfig
from vgs_rl.training.folder import occupied
from vgs_rl.training.resume import last_checkpoint, run_digest


def make_parser() -> Parser:
    """The command's options."""
    parser = Parser(__doc__, "distill")
    add = parser.add_argument
    add("teacher", help="a run folder, a shipped sampler's name or an exported file")
    add("--steps", type=whole(), default=1, help="network calls of a sample")
    add("--updates", type=whole(), default=UPDATES, help="gradient steps")
    add("--seconds", type=positive, default=None, help="wall-clock time, in place of --updates")
    add("--states", type=whole(100), default=STATES, help="states of the teacher to learn from")
    add("--seed", type=seed, default=0, help="of everything random")
    best = "best or last, of a run; by default best, or last if validation chose none"
    add("--checkpoint", type=one_of("best", "last"), default=None, help=best)
    add("--output", type=output_folder, default=Path("runs"), help="where the run folder goes")
    add("--export", type=output_file, default=None, help="also write the sampler to this file")
    add("--overwrite", type=switch, default=False, help="replace an existing run folder")
    add("--progress", type=switch, default=True, help="show a progress bar")
    add("--device", type=device, default=None, help="auto, cpu or cuda; the teacher's by default")
    add("--trust", type=switch, default=False, help=TRUST_HELP)
    return parser


@command
def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status."""
    options = make_parser().read(arguments)
    config, teacher, identity = _teacher(options)
    energy = teacher.mdp.energy
    require_distillable(energy, options.steps)
    folder = _folder(options, config)
    drawn = teacher.sampler()
    drawn.progress_bar = options.progress
    drawn.unfinished = Unfinished(folder / UNFINISHED, identity)  # until the student is done
    try:
        planned = plan(drawn, energy, options.steps, seed=options.seed, states=options.states)
        student = student_config(config, planned, options)
        print(f"distilling {options.teacher} into {folder}")
        report = train(
            student,
            overwrite=options.overwrite or _holds_nothing(folder),
            progress_bar=options.progress,
            trust=options.trust,
            begin=lambda agent: begin(planned, agent),
        )
        if report is None:
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        begun = last_checkpoint(folder) is not None
        again = f"go on with: {called('train')} --resume {folder}"
        print(f"stopped; {again if begun else 'the same command goes on'}", file=sys.stderr)
        return 130
    calls = "1 call" if options.steps == 1 else f"{options.steps} calls"
    columns = {calls: report}
    columns |= {"teacher": _teacher_report(options, config, teacher, report)}
    print(format_comparison(columns))
    print(f"report    {student.folder / 'report.json'}")
    if options.export is not None:
        options.export.parent.mkdir(parents=True, exist_ok=True)
        agent = load_run(student.folder, trust=options.trust)
        assert isinstance(agent, DistilledAgent)
        export_sampler(student.to_yaml(), agent, report, options.export)
        print(f"sampler   {options.export}")
    return 0


def begin(planned: Plan, agent: Agent) -> None:
    """Hands the teacher's states to the agent of a run that was made by :func:`student_config`."""
    assert isinstance(agent, DistilledAgent)
    planned.begin(agent)


def student_config(teacher: RunConfig, planned: Plan, options: Any) -> RunConfig:
    """The run of a student, on its teacher's target.

    Args:
        teacher: the teacher's run.
        planned: the student's chain and settings.
        options: with `seconds`, `updates`, `seed`, `device` and `output`.
    """
    limit = {"seconds": options.seconds} if options.seconds else {"updates": options.updates}
    return RunConfig(
        env=teacher.env,
        env_args=teacher.env_args,
        mdp=planned.mdp,
        agent=planned.agent,
        budget=BudgetConfig(**limit),
        evaluation=teacher.evaluation,
        seed=options.seed,
        device=options.device or teacher.device,
        output=options.output,
    )


def _folder(options: Namespace, teacher: RunConfig) -> Path:
    """The student's run folder, known before anything is drawn.

    Raises:
        FileExistsError: if it holds a student that is not to be replaced.
    """
    student = RunConfig(
        env=teacher.env,
        mdp=MDPConfig(num_steps=options.steps),
        agent=DistilledConfig(),
        seed=options.seed,
        output=options.output,
    )
    folder = student.folder
    if options.overwrite or not occupied(folder) or _holds_nothing(folder):
        return folder
    raise FileExistsError(
        f"run folder {folder} is not empty: go on with {called('train')} --resume {folder}, "
        "replace it with --overwrite true, or choose another --output or --seed"
    )


def _holds_nothing(folder: Path) -> bool:
    """Whether it is that of a run which was ended before its first checkpoint."""
    return (folder / "config.yaml").is_file() and last_checkpoint(folder) is None


def _teacher(options: Namespace) -> tuple[RunConfig, Agent, str]:
    """The run or exported sampler to learn from, and a digest of it."""
    source = Path(options.teacher)
    if options.teacher not in shipped_samplers() and source.is_dir():
        config, agent = open_run(source, options.checkpoint, options.device, trust=options.trust)
        return config, agent, run_digest(source, agent.checkpoint)
    if options.checkpoint is not None:
        raise Mistake("--checkpoint is for run folders, an exported sampler has but one")
    if options.teacher not in shipped_samplers() and not source.exists():
        hint = nearest(options.teacher, shipped_samplers())
        raise Mistake(f"no run folder or sampler is called {options.teacher!r}; {hint}")
    config, exported, _ = load_pretrained(
        options.teacher, options.device or "auto", trust=options.trust
    )
    return config, exported, digest_of(sampler_file(options.teacher))


def _teacher_report(
    options: Namespace, config: RunConfig, teacher: Agent, student: Report
) -> Report:
    """The teacher's report on the same number of samples, read where its run has it."""
    file = Path(options.teacher) / "report.json"
    if file.is_file():
        report = Report.load(file)
        if report.n_samples == student.n_samples:
            return report
    return evaluate_agent(config, teacher, n=student.n_samples)
