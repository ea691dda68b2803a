"""The architecture: rooms in layers, imports only downwards, nothing too large to read."""

import ast
import doctest
import functools
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for room in ("vgs_rl", "envs", "agents", "scripts") for path in (ROOT / room).rglob("*.py")
)
MODULES = [path for path in SOURCES if path.parent.name != "scripts"]
EXAMPLES = [path for path in MODULES if ">>> " in path.read_text(encoding="utf-8")]
# Lowest first. A prefix stands for everything below it that has no prefix of its own.
LAYERS = [
    ("vgs_rl.checks",),
    ("vgs_rl.training.parallel",),
    ("vgs_rl.files", "vgs_rl.configs", "vgs_rl.training.optim"),
    ("vgs_rl",),  # the theory's nouns: energy (also foreign), chain, MDP, start, weights, registry
    ("vgs_rl.networks",),
    ("vgs_rl.samplers",),
    ("vgs_rl.exploration",),
    ("vgs_rl.ebm",),
    ("vgs_rl.evaluation",),
    ("vgs_rl.plots",),
    ("vgs_rl.training",),
    ("vgs_rl.envs", "vgs_rl.agents"),
    ("vgs_rl.experiments",),
]
LAYER = {prefix: level for level, prefixes in enumerate(LAYERS) for prefix in prefixes}
# The package's face shows what is above it; importing it registers the targets.
FACE = ROOT / "vgs_rl" / "__init__.py"


def module_of(path: Path) -> str:
    room, *rest = path.relative_to(ROOT).with_suffix("").parts
    parts = [room] if room == "vgs_rl" else ["vgs_rl", room]
    return ".".join([*parts, *(part for part in rest if part != "__init__")])


def layer_of(module: str) -> int:
    """The layer of the longest prefix that is in the list."""
    parts = module.split(".")
    known = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next(LAYER[name] for name in known if name in LAYER)


@functools.cache
def imports_of(path: Path) -> set[str]:
    """What a module imports, at its top or within a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path.name}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith("vgs_rl.")}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_imports_go_down_the_layers() -> None:
    def upwards(path: Path) -> set[str]:
        here = layer_of(module_of(path))
        return {each for each in own(imports_of(path)) if layer_of(each) > here}

    wrong = {name(path): upwards(path) for path in MODULES if path != FACE}
    assert {path: names for path, names in wrong.items() if names} == {}


def test_nothing_imports_a_second_copy_of_a_room() -> None:
    def second(path: Path) -> set[str]:
        return {each for each in imports_of(path) if each.split(".")[0] in ("envs", "agents")}

    wrong = {name(path): second(path) for path in [*SOURCES, *(ROOT / "tests").rglob("*.py")]}
    assert {path: names for path, names in wrong.items() if names} == {}


def test_the_tests_see_imports_within_functions_and_name_layers(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("def f():\n    from vgs_rl import envs\n    import agents.base\n")
    assert imports_of(path) == {"vgs_rl.envs", "agents.base"}
    assert layer_of("vgs_rl.envs.targets.gaussian") > layer_of("vgs_rl.mdp.SamplingMDP")
    assert layer_of("vgs_rl.checks.count_of") < layer_of("vgs_rl.files.lock")


def test_a_module_is_read_in_one_sitting() -> None:
    lines = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {path: count for path, count in lines.items() if count > 400} == {}


def test_a_folder_is_seen_at_one_glance() -> None:
    folders = {path.parent for path in SOURCES}
    sizes = {name(each): len([*each.glob("[!_]*.py")]) for each in folders}
    assert {folder: size for folder, size in sizes.items() if size > 13} == {}


PACKAGES = [path for path in SOURCES if path.name == "__init__.py"]


@pytest.mark.parametrize("path", PACKAGES, ids=name)
def test_no_name_of_a_package_hides_a_module_of_it(path: Path) -> None:
    package = importlib.import_module(module_of(path))
    inside = {module.name for module in pkgutil.iter_modules(package.__path__)}
    for each in inside & {*getattr(package, "__all__", dir(package))}:
        assert isinstance(getattr(package, each), ModuleType), each


def test_scripts_are_faces() -> None:
    for path in (ROOT / "scripts").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 66, path


@pytest.mark.parametrize("path", EXAMPLES, ids=name)
def test_examples_in_docstrings_run(path: Path) -> None:
    assert doctest.testmod(importlib.import_module(module_of(path))).failed == 0
