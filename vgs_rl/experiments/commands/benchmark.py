"""Benchmarks: what the machine was, what was compared, what it cost.

vgs-rl benchmark env                              a step through NumPy, transitions/s
vgs-rl benchmark libraries                        where SB3's and tianshou's time goes
vgs-rl benchmark sampling                         samples/s, memory, evaluation time
vgs-rl benchmark device                           time in kernels, transfers and Python
vgs-rl benchmark scaling                          time and memory against size, D, T and ranks
vgs-rl benchmark oracle --configs '[gmm9]'        ceilings of schedule, drift and start
vgs-rl benchmark quality --configs '[gmm9]'       trains over seeds; metrics and bounds
vgs-rl benchmark steps                            T against quality, with a picture
vgs-rl benchmark distill                          few network calls, and one, by the teacher
vgs-rl benchmark untuned                          targets without settings, and the verdict
vgs-rl benchmark certificate                      how often intervals of log Z hold, with a picture
vgs-rl benchmark budget                           what the gap is made of, and predictions
vgs-rl benchmark conditional                      one sampler of a range of temperatures
vgs-rl benchmark ebm                              an update of an energy-based model
vgs-rl benchmark stability                        10,000 of them at three rates
"""

from __future__ import annotations

from argparse import ArgumentError
from typing import Any

from jsonargparse import auto_cli

from vgs_rl.experiments.benchmarks.budget import budget
from vgs_rl.experiments.benchmarks.certificate import certificate
from vgs_rl.experiments.benchmarks.conditional.temperatures import conditional
from vgs_rl.experiments.benchmarks.ebm import ebm, stability
from vgs_rl.experiments.benchmarks.libraries import libraries
from vgs_rl.experiments.benchmarks.quality import quality
from vgs_rl.experiments.benchmarks.scaling.scaling import scaling
from vgs_rl.experiments.benchmarks.speed import device, env, sampling
from vgs_rl.experiments.benchmarks.steps import oracle, steps
from vgs_rl.experiments.benchmarks.students import distill
from vgs_rl.experiments.benchmarks.untuned import untuned
from vgs_rl.experiments.cli import Mistake, called, command
from vgs_rl.fields import field_types, nearest
from vgs_rl.training.options import checked_options

COMMANDS: dict[str, Any] = {
    "env": env,
    "libraries": libraries,
    "sampling": sampling,
    "device": device,
    "scaling": scaling,
    "quality": quality,
    "oracle": oracle,
    "steps": steps,
    "distill": distill,
    "untuned": untuned,
    "certificate": certificate,
    "budget": budget,
    "conditional": conditional,
    "ebm": ebm,
    "stability": stability,
}


@command
def main(arguments: list[str]) -> int:
    """Runs one of the benchmarks; returns the exit status."""
    if not arguments:
        raise Mistake(f"say which benchmark: {', '.join(COMMANDS)}")
    name, *options = arguments
    if name not in COMMANDS and not name.startswith("-"):
        raise Mistake(f"no benchmark is called {name!r}; {nearest(name, COMMANDS)}")
    if name in COMMANDS:
        options = checked_options(COMMANDS[name], [], options)
        known = [f"--{each}" for each in (*field_types(COMMANDS[name]), "help", "config")]
        for option in (each.partition("=")[0] for each in options if each.startswith("--")):
            if option not in known:
                raise Mistake(f"there is no option {option}; {nearest(option, known)}")
    settings: dict[str, Any] = {
        "exit_on_error": False,
        "allow_abbrev": False,
        "prog": called("benchmark"),
    }
    try:
        auto_cli(COMMANDS, args=[name, *options], **settings)
    except ArgumentError as error:
        raise Mistake(str(error)) from error
    return 0
