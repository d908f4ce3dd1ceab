"""embedded:pydocs: English prose about Python that is on every machine with Python.

Two parts: the help topics of the language reference (pydoc_data), and the docstrings of the
standard library: modules, public classes with their public methods, public functions. Docstrings
are read by parsing the sources, never by importing them: imports have side effects (`antigravity`
opens a browser) and some modules exist only on other systems.

The text depends on the Python version, so its digest identifies the data set, not its name.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SHORTEST = 200  # characters; shorter docstrings say too little to be a document
_SKIPPED_FOLDERS = frozenset({
    "test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages",
    "pydoc_data", "ensurepip",
    "__pycache__", "encodings", "__phello__",
})  # fmt: skip
# repeat posixpath, decimal and io
_SKIPPED_MODULES = frozenset({"ntpath", "_pydecimal", "_pyio", "__main__"})
_PUBLIC_NAMES = {"posixpath": "os.path"}  # the module's name in its documentation


@functools.lru_cache(maxsize=1)
def documents() -> tuple[tuple[str, str], ...]:
    """(name, text) of every document: topics by name, then the library by path and line. The same
    order on every call."""
    seen: set[str] = set()
    texts: list[tuple[str, str]] = []
    for name, text in (*_topics(), *_library()):
        text = text.strip()
        if len(text) >= SHORTEST and text not in seen:
            seen.add(text)
            texts.append((name, text))
    return tuple(texts)


def _topics() -> Iterator[tuple[str, str]]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield f"topics.{name}", topics[name]


def _library() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).parts):
        parts = path.relative_to(root).with_suffix("").parts
        if _SKIPPED_FOLDERS.isdisjoint(parts[:-1]) and not any("-" in part for part in parts):
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if module and module not in _SKIPPED_MODULES:
                yield from _docstrings(path, module)


def _docstrings(path: Path, module: str) -> Iterator[tuple[str, str]]:
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    # a handful of templates and sources in other encodings
    except (UnicodeDecodeError, SyntaxError):
        return
    module = _PUBLIC_NAMES.get(module, module.removeprefix("_"))
    yield module, inspect.cleandoc(ast.get_docstring(tree, clean=False) or "")
    yield from _members(tree, module)


def _members(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, str]]:
    for child in node.body:
        if isinstance(
            child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) and not child.name.startswith("_"):
            name = f"{prefix}.{child.name}"
            yield name, ast.get_docstring(child) or ""
            if isinstance(child, ast.ClassDef):
                yield from _members(child, name)
