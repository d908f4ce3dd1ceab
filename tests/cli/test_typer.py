"""The command line needs only what every typer from 0.26 on has."""

from __future__ import annotations

import ast
from pathlib import Path

import saekit_cli

EVERYWHERE = {"typer", "typer.core"}  # typer.exceptions came with 0.28


def imported(path: Path) -> set[str]:
    """Modules of typer that are imported when the module is; not those for type checkers only."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {name for name in found if name.split(".")[0] == "typer"}


def test_only_modules_that_older_typers_have_are_imported():
    modules = list(Path(saekit_cli.__file__).parent.glob("**/*.py"))
    found = set[str]().union(*map(imported, modules))
    assert len(modules) > 10 and found == EVERYWHERE
