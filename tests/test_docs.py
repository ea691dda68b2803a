"""The documentation says what the code does: blocks run, commands parse, links and pages exist."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import importlib
import io
import itertools
import json
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from commands import ROOT
from nbclient import NotebookClient

import vgs_rl
from vgs_rl import agents, envs

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHIPPED = ROOT / "configs"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# The text shows sizes that give good samples; the law is that the lines run.
SMALLER = [
    (r"updates=[\d_]+", "updates=2"),
    (r"sample\(10_000\)", "sample(100)"),
    (r"sample\(1_000, 0\)", "sample(64, 0)"),
    (r"10_000, dim", "500, dim"),
    (r"(dim=\d+(?:, support=support)?), seconds=[26]0\)", r"\1, seconds=0.3)"),
    (r"agent\.learn\(seconds=60\)", "agent.learn(seconds=1)"),
    (r"seconds=60\)", "updates=2)"),
    (r"\b(100_000|5_120)\b", "320"),
    (r"(num_envs=|, )256\b", r"\g<1>16"),
    (r"steps=200\b", "steps=4"),
    (r"num_steps=400", "num_steps=10"),
    (r"num_steps=5\)", "num_steps=2)"),
    (r"\b5 \+ 1\b", "2 + 1"),
    (r"\b20_000\b", "400"),
    (r"energy, 2_000\)", "energy, 200)"),
    (r'load_sampler\("(\w+)"\)\.sample\([\d_]+\)', r'load_sampler("\1").sample(2)'),
]
NOTEBOOK = {
    "updates=600": "updates=100",
    "num_chains=2_000": "num_chains=100",
    "evaluate(10_000)": "evaluate(400)",
    "sample(20_000": "sample(2_000",
    "sample((20_000,))": "sample((2_000,))",
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[str]:
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [text for language, text in found if language in languages]


def with_blocks(*languages: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, *languages)]


def programs() -> dict[Path, list[str]]:
    """Python blocks by page; one that says what an earlier one said is run there."""
    found: dict[Path, list[str]] = {}
    seen = set()
    for page in PAGES:
        for code in blocks(page, "python"):
            said = ast.dump(ast.parse(code))  # without its comments
            if said not in seen:
                found.setdefault(page, []).append(code)
            seen.add(said)
    return found


PROGRAMS = programs()


def test_the_notebook_runs_and_shows_what_it_says(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "docs/tour.ipynb", as_version=4)
    assert all(cell.outputs for cell in notebook.cells if "print(" in cell.source)
    written = "".join(cell.source for cell in notebook.cells)
    assert all(shown in written for shown in NOTEBOOK)
    for cell in notebook.cells:
        for shown, smaller in NOTEBOOK.items():
            cell.source = cell.source.replace(shown, smaller)
    folder = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, resources=folder).execute()
    texts = [out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", [])]
    (text,) = [text for text in texts if text.startswith("log Z from the weights")]
    assert abs(float(text.rpartition(" ")[2])) < 0.2
    (saved,) = [out.data["text/plain"] for out in notebook.cells[-1].outputs]
    assert saved == "True"


@pytest.mark.parametrize("page", PROGRAMS, ids=name)
def test_python_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = functools.partialmethod(vgs_rl.VGS.distill, updates=2, states=200)
    monkeypatch.setattr(vgs_rl.VGS, "distill", small)  # as agents of one step call it
    for code in PROGRAMS[page]:
        if page.name != "CONTRIBUTING.md":  # whose blocks are laws that need their sizes
            for pattern, smaller in SMALLER:
                code = re.sub(pattern, smaller, code)
        # A module, so that dataclasses and energies within find theirs.
        file = tmp_path / "block.py"
        file.write_text(code, encoding="utf-8")
        runpy.run_path(str(file))
    assert "Traceback" not in capsys.readouterr().err


STUBS = """
vgs-rl() { python_of_the_test "$@"; }
make() { python_of_the_test make "$@"; }
pip() { :; }; git() { :; }; cd() { :; }; source() { :; }; tensorboard() { :; }
python() { :; }; sbatch() { :; }
torchrun() { while [ "$1" != vgs_rl ]; do shift; done; shift; python_of_the_test "$@"; }
"""


def commands_of(page: Path, folder: Path) -> list[list[str]]:
    """What a page's shell blocks call of this project, expanded by the shell itself."""
    record = folder / "calls"
    record.write_text("")
    writer = "import json, sys; print(json.dumps(sys.argv[1:]))"
    stub = f'python_of_the_test() {{ {sys.executable} -S -c "{writer}" "$@" >> {record}; }}'
    text = "\n".join(blocks(page, "bash", "console")).replace("<this repository>", "address")
    text = text.replace(".ci/run", ": .ci/run")
    script = f"set -eu\n{stub}\n{STUBS}\n{text}\n"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [json.loads(line) for line in record.read_text().splitlines()]


@functools.cache
def help_of(command: str) -> str:
    module, *rest = command.split()
    module = importlib.import_module(f"vgs_rl.experiments.commands.{module.replace('-', '_')}")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert module.main([*rest, "--help"]) == 0
    return out.getvalue()


def settings_of_agents() -> set[str]:
    """Fields of the agents' configurations, which come after `--agent.`."""
    classes = [getattr(agents, each) for each in agents.__all__]
    known = [each for each in classes if isinstance(each, type)]
    configs = [each for each in known if issubclass(each, agents.AgentConfig)]
    return {field.name for config in configs for field in dataclasses.fields(config)}


@pytest.mark.parametrize("page", with_blocks("bash", "console"), ids=name)
def test_commands_and_their_options_exist(page: Path, tmp_path: Path) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command, *arguments in commands_of(page, tmp_path):
        if command == "make":
            assert set(arguments) <= set(targets), arguments
            continue
        options = [each.partition("=")[0] for each in arguments if each.startswith("--")]
        if command == "benchmark":
            command = f"benchmark {arguments.pop(0)}"
        text = help_of(command) + (help_of("train") if command == "sweep" else "")
        for option in options:
            agent, _, setting = option.partition("--agent.")
            if not agent and setting and command == "train":
                assert setting.split(".")[0] in settings_of_agents(), option
            else:
                assert re.search(rf"{re.escape(option)}(?![\w.])", text), f"{command} {option}"
        plain = arguments[0] if arguments and not arguments[0].startswith("-") else None
        if command == "train" and plain is not None:
            assert (SHIPPED / f"{plain}.yaml").is_file(), plain
        for option, value in itertools.pairwise(arguments):
            if option == "--config" and value.startswith("configs/"):
                assert (ROOT / value).is_file(), value


@pytest.mark.parametrize("page", with_blocks("yaml"), ids=name)
def test_yaml_blocks_are_configurations(page: Path) -> None:
    from vgs_rl.experiments.config import RunConfig

    fields = {field.name for field in dataclasses.fields(RunConfig)}
    for text in blocks(page, "yaml"):
        assert yaml.safe_load(text).keys() <= fields


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        if file.startswith("http"):
            continue
        path = page.parent / file if file else page
        assert path.exists(), target
        if anchor and path.suffix == ".md":
            lines = path.read_text(encoding="utf-8").splitlines()
            heads = [line.lstrip("# ") for line in lines if line.startswith("#")]
            marks = {m for head in heads for m in re.findall(r"\{#([\w-]+)\}", head)}
            marks |= {re.sub(r"[^\w\s-]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in marks, target


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 250


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {str(p.relative_to(ROOT / "docs")) for p in PAGES if p.is_relative_to(ROOT / "docs")}
    assert pages == set(re.findall(r": ([\w/-]+\.md)$", text, re.MULTILINE))


def test_every_public_name_is_described() -> None:
    for package in (vgs_rl, agents, envs):
        for each in package.__all__:
            thing = getattr(package, each)
            assert getattr(thing, "__doc__", None), f"{package.__name__}.{each} has no docstring"
    text = "".join(p.read_text() for p in (ROOT / "docs" / "api").glob("*.md"))
    assert all(f"::: all {p}\n" in text for p in ("vgs_rl", "vgs_rl.agents", "vgs_rl.envs"))


def test_sections_that_commands_write_have_both_marks() -> None:
    found = {}
    for page in (ROOT / "docs/results").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        found |= {mark: page.stem for mark in re.findall(r"<!-- ([\w-]+):begin -->", text)}
        assert sorted(re.findall(r"<!-- ([\w-]+):begin -->", text)) == sorted(
            re.findall(r"<!-- ([\w-]+):end -->", text)
        )
    assert found.keys() >= {"quality", "particles-dw4", "compare", "compare-energies"}


def test_tables_print_no_error_of_rounding() -> None:
    number = r"(-?[\d,]+(?:\.\d+)?(?:e[+-]?\d+)?)"
    for page in (ROOT / "docs/results").glob("*.md"):
        for value, error in re.findall(rf"{number} ± {number}", page.read_text(encoding="utf-8")):
            size, small = (abs(float(each.replace(",", ""))) for each in (value, error))
            assert small == 0 or small > 1e-9 * size, f"{page.name}: {value} ± {error}"
