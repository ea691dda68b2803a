"""The command `vgs-rl`, which `pip install vgs-rl` puts on the path.

It lies outside the package, since importing the package imports PyTorch: help, the version and a
mistyped command answer at once, and Ctrl-C while the rest is imported is no traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

COMMANDS = {
    "train": "train an agent on a target, evaluate it and write a run folder",
    "evaluate": "evaluate trained runs, detectors or exported samplers again",
    "distill": "make a sampler of few network calls, or one, from a trained one",
    "compare": "train agents and run baselines on the same MDP, in one table",
    "sweep": "search settings of a training by its validation ELBO",
    "sample": "draw from an energy, a trained run or a shipped sampler into a file",
    "list": "show targets, agents, configurations and shipped samplers",
    "train-ebm": "train an energy-based model as an anomaly detector",
    "detect": "run classical anomaly detectors on the same features",
    "benchmark": "measure speed and quality",
    "make-reference": "make the reference samples of a target",
    "completion": "print the completion script of bash or zsh",
}
TOGETHER = ("train",)  # what several processes of torchrun do together
HELP = """usage: vgs-rl COMMAND [OPTIONS]

Sampling from unnormalised densities as reinforcement learning.

commands:
{commands}

options:
  -h, --help        show this help message and exit
  --version         show the version and exit

`vgs-rl COMMAND --help` explains every option of a command.

  vgs-rl train gmm9 --agent.lr 1e-3
  vgs-rl evaluate runs/GMM9/vgs/0
  vgs-rl compare GMM9 --agents vgs,pis,mala
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status: 0, 1, 2 for a user's mistake, 130 after Ctrl-C.

    Args:
        arguments: the command line; that of the process by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    return _guarded(lambda: _run(words))


def run_command(name: str, arguments: list[str], *, typed: str) -> int:
    """Runs one of the commands; returns its exit status.

    Args:
        name: of :data:`COMMANDS`.
        arguments: its options.
        typed: what the user has typed for it, for its messages.
    """
    return _guarded(lambda: _started(name, arguments, typed))


def _guarded(run: Callable[[], int]) -> int:
    try:
        return run()
    except KeyboardInterrupt:  # a second one, while the first was answered
        print("interrupted", file=sys.stderr)
        return 130


def _run(words: list[str]) -> int:
    name = words[0] if words else ""
    if name in ("-h", "--help"):
        return _show(HELP.format(commands=_table()))
    if name == "--version":
        return _show(f"vgs-rl {version('vgs-rl')}\n")
    if name not in COMMANDS:
        near = difflib.get_close_matches(name.lower(), COMMANDS, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(COMMANDS)}"
        what = f"no command is called {name!r}" if name else "say which command"
        print(f"error: {what}; {hint}", file=sys.stderr)
        return 2
    module = os.path.basename(sys.argv[0]) == "__main__.py"
    return _started(name, words[1:], f"{'python -m vgs_rl' if module else 'vgs-rl'} {name}")


def _started(name: str, arguments: list[str], typed: str) -> int:
    ranks = os.environ.get("WORLD_SIZE", "1") if "RANK" in os.environ else "1"
    if name not in TOGETHER and ranks != "1":
        print(
            f"error: {name} runs in one process, got {ranks}: leave torchrun out", file=sys.stderr
        )
        return 2
    with ctrl_c_ends_at_once():
        from vgs_rl.experiments.cli import command_named

        command = command_named(name, typed)
    return command(arguments)


def _table() -> str:
    return "\n".join(f"  {name:16}  {what}" for name, what in COMMANDS.items())


def _show(text: str) -> int:
    """Prints a text; a reader that has gone, as in `vgs-rl --help | head`, ends nothing."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


@contextlib.contextmanager
def ctrl_c_ends_at_once() -> Iterator[None]:
    """Within it Ctrl-C ends the process, whatever is being imported; a shell may ignore Ctrl-C."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave(*_: Any) -> None:
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
