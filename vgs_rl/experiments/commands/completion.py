"""Prints the completion script of a shell.

    vgs-rl completion bash > ~/.local/share/bash-completion/completions/vgs-rl
    vgs-rl completion zsh > ~/.zfunc/_vgs-rl        (with fpath+=~/.zfunc before compinit)

The script holds every option, so that TAB runs no Python. Print it again after an update.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from vgs_rl.experiments.cli import Parser, command, module_of, one_of
from vgs_rl.experiments.pretrained import shipped_samplers
from vgs_rl.fields import field_types
from vgs_rl.files.shipped import Kind, shipped_configs
from vgs_rl.registry import find, registered
from vgs_rl.training.config import ConfigParser
from vgs_rl.training.help import all_names

FILES = {"--config", "--json", "--export", "--markdown", "--pretrained", "--out", "--reports"}
FOLDERS = {"--output", "--resume", "--figures", "--folder"}
# What shtab knows as its FILE and DIRECTORY; it is imported where a script is made.
FILE = {"bash": "_shtab_compgen_files", "zsh": "_files"}
DIRECTORY = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/"}


def make_parser() -> Parser:
    """The command's options."""
    parser = Parser(__doc__, "completion")
    parser.add_argument("shell", type=one_of("bash", "zsh"), help="bash or zsh")
    return parser


@command
def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status."""
    import shtab

    shell = make_parser().read(arguments).shell
    print(shtab.complete(whole_parser(), shell=shell))
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """Every command, option and name as plain argparse, which the script is made from."""
    from vgs_rl_main import COMMANDS

    root = argparse.ArgumentParser(prog="vgs-rl", description="Sampling as reinforcement learning.")
    root.add_argument("--version", action="store_true", help="show the version")
    commands = root.add_subparsers(dest="command")
    for name, about in COMMANDS.items():
        sub = commands.add_parser(name, help=about)
        if name == "benchmark":
            _add_benchmarks(sub)
            continue
        parser = module_of(name).make_parser()
        nested = all_names(parser.config_type) if isinstance(parser, ConfigParser) else {}
        for action in parser._actions:
            if not nested.keys() & set(action.option_strings):
                _copy(sub, name, action)
        if isinstance(parser, ConfigParser):
            kind: Kind = "detector" if name == "train-ebm" else "run"
            sub.add_argument("configuration", nargs="?", choices=shipped_configs(kind))
            _add_options(sub, nested.items())
    return root


def _add_benchmarks(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="benchmark")
    for name, function in module_of("benchmark").COMMANDS.items():
        about = _plain((inspect.getdoc(function) or "").splitlines()[0])
        sub = kinds.add_parser(name, help=about)
        types = field_types(function).items()
        _add_options(sub, ((f"--{option}", kind) for option, kind in types))


def _copy(parser: argparse.ArgumentParser, name: str, action: argparse.Action) -> None:
    """Adds an option or a positional argument of a command."""
    names = [each for each in action.option_strings if each not in ("-h", "--help")]
    if action.option_strings and not names:
        return
    settings: dict[str, Any] = {"help": _plain(str(action.help or ""))}
    if names:
        if action.nargs == 0:
            settings["action"] = "store_true"
        elif choices := _choices(action):
            settings["choices"] = choices
        _complete_path(parser.add_argument(*names, **settings), names[-1])
        return
    values = {"sample": shipped_samplers, "compare": _targets}.get(name)
    nargs = action.nargs
    added = parser.add_argument(action.dest, nargs=nargs, **settings)
    if values is not None:
        added.choices = values()
    elif choices := _choices(action):
        added.choices = choices
    elif name == "evaluate":
        added.complete = DIRECTORY  # type: ignore[attr-defined]


def _add_options(parser: argparse.ArgumentParser, options: Iterable[tuple[str, Any]]) -> None:
    for option, kind in options:
        choices: list[str] | None = None
        if get_origin(kind) is Literal:
            choices = [str(each) for each in get_args(kind)]
        elif kind is bool:
            choices = ["true", "false"]
        _complete_path(parser.add_argument(option, choices=choices, help=""), option)


def _complete_path(action: argparse.Action, option: str) -> None:
    if option in FILES:
        action.complete = FILE  # type: ignore[attr-defined]
    elif option in FOLDERS:
        action.complete = DIRECTORY  # type: ignore[attr-defined]
    elif option == "--env":
        action.choices = _targets()


def _targets() -> list[str]:
    return [find(name).name for name in registered()]


def _choices(action: argparse.Action) -> list[str]:
    """What an option's type says that it takes: `true or false`, `bash or zsh`."""
    if action.choices:
        return [str(each) for each in action.choices]
    words = str(action.type).split(" or ")
    return words if len(words) > 1 and all(re.fullmatch(r"[\w-]+", each) for each in words) else []


def _plain(text: str) -> str:
    """The first sentence of a help text, without what a shell could take for its own."""
    return re.sub(r"[^\w\s,.;()/-]", "", text.split(". ")[0].split("\n")[0])[:100]
