"""The site's build: the package as one tree, public names as lists, plain roles in docstrings."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path
from typing import Any

import griffe
from mkdocs.plugins import event_priority

ROOT = Path(__file__).parents[1]
TREE = ROOT / "build" / "api" / "vgs_rl"
FOREIGN = re.compile(  # a script or style of another host, or one that imports from there
    r"<script\b[^>]*\bsrc=.https?:[^>]*>|<link\b[^>]*stylesheet[^>]*https?:[^>]*>"
    r"|<script\b[^>]*>(?:(?!</script>).)*?\bfrom\s+.https?:(?:(?!</script>).)*?</script>",
    re.DOTALL,
)
ROLE = re.compile(r":(?:class|meth|func|mod|attr|data|exc):`~?([^`]+)`")


@event_priority(100)  # before mkdocstrings looks for the tree
def on_config(config: Any) -> Any:
    """Copies the sources into one tree, as the installed package is, for static reading."""
    shutil.rmtree(TREE, ignore_errors=True)
    for folder, place in (("vgs_rl", TREE), ("envs", TREE / "envs"), ("agents", TREE / "agents")):
        for source in (ROOT / folder).rglob("*.py"):
            target = place / source.relative_to(ROOT / folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    return config


def public_names(package: str) -> list[str]:
    """The names in a package's `__all__`, in its order."""
    source = TREE.joinpath(*package.split(".")[1:], "__init__.py").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(each, ast.Name) and each.id == "__all__" for each in targets):
            return [str(name) for name in ast.literal_eval(node.value)]
    raise ValueError(f"{package} has no __all__")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces a line `::: all PACKAGE` by one reference for each public name of the package."""

    def references(match: re.Match[str]) -> str:
        package = match[1]
        return "\n\n".join(f"::: {package}.{name}" for name in public_names(package))

    return re.sub(r"^::: all ([\w.]+)$", references, markdown, flags=re.MULTILINE)


def on_post_page(output: str, **_: Any) -> str:
    """Takes out what a page would load from other hosts: the notebook's template names some."""
    return FOREIGN.sub("", output)


class PlainRoles(griffe.Extension):
    """Shows the roles in docstrings (`:class:` and the like) as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
