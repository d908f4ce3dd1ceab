"""Signatures, docstrings and fields as Markdown, for docs/api.py.

A docstring is plain text: paragraphs, indented or `>>>` examples, and entries `name: text` for
parameters, whose further lines may be indented. An option whose type is `Annotated[..., Doc(text)]`
is listed with that text, a field of a dataclass with the string or the comment beside it.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from saekit.options import Option, options_of

CODE_WIDTH, PROSE_WIDTH = 100, 120
ENTRY = re.compile(r"(?P<names>\w+(?:, \w+)*)(?: \([^)]*\))?: (?P<text>.*)")


def parsed(owner: Any) -> ast.FunctionDef | ast.ClassDef:
    """The syntax tree of a function's or class's source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(owner)))).body[0]
    assert isinstance(tree, ast.FunctionDef | ast.ClassDef)
    return tree


def documented(owner: Any) -> dict[str, Option]:
    """The options among its parameters or fields: those with a `Doc`."""
    try:
        return options_of(owner)
    except NameError:  # of a type that only type checkers import: such functions have no options
        assert "Doc(" not in ast.unparse(parsed(owner)), owner
        return {}


def code(text: str) -> str:
    return f"```python\n{text}\n```\n"


# -- signatures


def function_of(owner: Any) -> ast.FunctionDef | None:
    """The function itself, or a class's own `__init__`; None for a dataclass, whose fields are
    listed instead."""
    tree = parsed(owner)
    if isinstance(tree, ast.FunctionDef):
        return tree
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return next((node for node in functions if node.name == "__init__"), None)


def signature(owner: Any, function: ast.FunctionDef, name: str) -> str:
    """As in the source, without `self`; one parameter per line where one line is too short."""
    parameters = [_spaced(text) for text in _split(ast.unparse(_with_values(owner, function)))]
    parameters = [text for text in parameters if text != "self"]
    result = ""
    if function.returns is not None and function.name != "__init__":
        result = f" -> {ast.unparse(_bare(function.returns))}"
    if len(line := f"{name}({', '.join(parameters)}){result}") <= CODE_WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {text},\n" for text in parameters) + f"){result}"


def _with_values(owner: Any, function: ast.FunctionDef) -> ast.arguments:
    """The parameters without Annotated, and with values for defaults that are names."""
    arguments, options = _bare(function.args), documented(owner)
    assert isinstance(arguments, ast.arguments)
    values = {name: p.default for name, p in inspect.signature(owner).parameters.items()}
    positional = [*arguments.posonlyargs, *arguments.args]
    for defaults, names in (
        (arguments.defaults, positional[len(positional) - len(arguments.defaults) :]),
        (arguments.kw_defaults, arguments.kwonlyargs),
    ):
        for number, (default, argument) in enumerate(zip(defaults, names)):
            if isinstance(argument.annotation, ast.Name) and argument.arg in options:
                hint = inspect.formatannotation(options[argument.arg].hint)
                argument.annotation = ast.parse(hint, mode="eval").body
            value = values.get(argument.arg)
            if argument.arg == "progress" and isinstance(default, ast.Lambda) and value is None:
                defaults[number] = ast.Constant(None)  # of a public function (saekit.public)
                argument.annotation = ast.Name("Callable[[Progress], None] | bool | None")
            if isinstance(default, ast.Attribute | ast.Name) and isinstance(
                value, int | float | str
            ):
                defaults[number] = ast.Constant(value)
    return arguments


def _spaced(parameter: str) -> str:
    """`k: int = 32` for `k: int=32`, as ast writes it."""
    name, colon, rest = parameter.partition(": ")
    return f"{name}: {rest.replace('=', ' = ', 1)}" if colon else parameter


class _Bare(ast.NodeTransformer):
    """Annotated[X, ...] -> X."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        self.generic_visit(node)
        if ast.unparse(node.value) == "Annotated" and isinstance(node.slice, ast.Tuple):
            return node.slice.elts[0]
        return node


def _bare(tree: ast.AST) -> ast.AST:
    return _Bare().visit(copy.deepcopy(tree))


def _split(parameters: str) -> list[str]:
    """At the commas that are not inside brackets."""
    parts, depth = [""], 0
    for character in parameters:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


# -- docstrings


def described(owner: Any, function: ast.FunctionDef | None) -> Iterator[str]:
    """The docstring as Markdown. Its entries for parameters and the options that have a text stand
    in one list, in the order of the signature.

    `function`: the syntax tree of the function, or of a class's constructor.
    """
    text = inspect.getdoc(inspect.unwrap(owner)) or ""  # without what saekit.public adds
    if text.startswith(f"{getattr(owner, '__name__', '')}("):
        text = ""  # a dataclass without a docstring: Python writes its signature there
    order = [node.arg for node in ast.walk(function or ast.Pass()) if isinstance(node, ast.arg)]
    parts = [_block(lines, order) for lines in re.split(r"\n\s*\n", text) if lines]
    entries = {
        names: text for part in parts if isinstance(part, dict) for names, text in part.items()
    }
    explained = {name for names in entries for name in names}
    options = documented(owner) if function else {}
    entries |= {(name,): o.doc.text for name, o in options.items() if name not in explained}
    # In the place of the first list, or after the first paragraph
    place = next((n for n, part in enumerate(parts) if isinstance(part, dict)), min(len(parts), 1))
    shown = [part for part in parts if isinstance(part, str)]
    if entries:
        items = sorted(entries.items(), key=lambda item: min(map(order.index, item[0])))
        shown.insert(place, "\n".join(_item(names, text) for names, text in items) + "\n")
    yield from shown


def _item(names: tuple[str, ...], text: str) -> str:
    return wrapped(f"- {', '.join(f'`{name}`' for name in names)}: {text}")


def _block(text: str, parameters: list[str]) -> str | dict[tuple[str, ...], str]:
    """A stretch of lines without an empty one, as paragraph or example, or the names that it
    explains: (x, y) -> text."""
    first, *others = text.splitlines()
    if first.startswith((">>>", "    ")):
        return code(textwrap.dedent(text))
    heading = ""
    if others and all(line.startswith("    ") for line in others) and ":" not in first:
        heading, text = first, textwrap.dedent("\n".join(others))
    entries: dict[tuple[str, ...], str] = {}
    names: tuple[str, ...] = ()
    for line in text.splitlines():
        entry = ENTRY.fullmatch(line)
        words = tuple(entry["names"].split(", ")) if entry else ()
        if entry and (set(words) <= set(parameters) or heading not in ("", "Parameters")):
            names = words
            entries[names] = entry["text"]
        elif names:
            entries[names] += " " + line.strip()
        else:
            return wrapped(" ".join(text.split())) + "\n"
    if heading in ("", "Parameters"):
        return entries
    return f"{heading}:\n\n" + "\n".join(_item(*entry) for entry in entries.items()) + "\n"


def wrapped(item: str) -> str:
    """A paragraph or a list item in lines of the width of prose."""
    indent = "  " if item.startswith("- ") else ""
    return textwrap.fill(
        item,
        PROSE_WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


# -- fields of dataclasses


def fields(cls: type, without: frozenset[str] = frozenset()) -> str:
    """One item for each public field of a dataclass: name, type, default and text."""
    tree, lines = parsed(cls), textwrap.dedent(inspect.getsource(cls)).splitlines()
    options = documented(cls)
    shown = {field.name: _default(field) for field in dataclasses.fields(cls) if field.init}
    items = []
    for node, following in zip(tree.body, [*tree.body[1:], None]):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        name = node.target.id
        if name in without or name.startswith("_") or name not in shown:
            continue
        text = options[name].doc.text if name in options else _text(node, following, lines)
        hint = ast.unparse(_bare(node.annotation))
        items.append(wrapped(f"- `{name}: {hint}{shown[name]}`" + (f": {text}" if text else "")))
    return "\n".join(items) + "\n"


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f" = {field.default_factory()!r}"
    return "" if field.default is dataclasses.MISSING else f" = {field.default!r}"


def _text(node: ast.AnnAssign, following: ast.stmt | None, lines: list[str]) -> str:
    """The string after a field, or else the comment beside it or above it."""
    if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
        return " ".join(str(following.value.value).split())
    beside = lines[(node.end_lineno or node.lineno) - 1][node.end_col_offset :]
    if "#" in beside:
        return beside.partition("#")[2].strip()
    above, number = [], node.lineno - 2
    while lines[number].lstrip().startswith("#"):
        above.insert(0, lines[number].strip("# "))
        number -= 1
    return " ".join(above)
