"""How results show themselves at a prompt and in a notebook: one line with the figures that matter,
or a small table. No more digits than they mean.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, TypeVar

from saekit.errors import MissingError

T = TypeVar("T")
DIGITS = 4
MOST_EXAMPLES = 8


def finite(value: Any) -> Any:
    """The same structure for JSON, which has no number for NaN and infinity: null. The perplexity
    of a text that the model would never write is infinite, for example. Keys become strings."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def pandas() -> Any:
    """The module, which saekit does not require. Raises MissingError."""
    try:
        import pandas
    except ImportError:
        raise MissingError("pandas is not installed", "pip install pandas") from None
    return pandas


def brief(owner: object, values: Mapping[str, Any], lead: str = "") -> str:
    """`Store('acts', rows=600, d_in=16)`: the class, what identifies the object, then its figures;
    None is left out."""
    shown = [f"{name}={text(value)}" for name, value in values.items() if value is not None]
    return f"{type(owner).__name__}({', '.join([lead] * bool(lead) + shown)})"


def text(value: Any) -> str:
    """A value as Python would write it, with at most four significant digits."""
    if isinstance(value, float):
        return f"{value:.0f}" if 10**DIGITS <= abs(value) < 1e15 else f"{value:.{DIGITS}g}"
    return str(value) if isinstance(value, tuple) else repr(value)


class Shape:
    """Stands for a tensor or a code where one line has no place for its values."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        if not hasattr(self.value, "shape") or not hasattr(self.value, "dtype"):
            return repr(self.value)  # a sparse code shows its shape itself
        return f"{str(self.value.dtype).removeprefix('torch.')}{list(self.value.shape)}"


def cell(value: Any) -> str:
    """The same for people: 1,234 and no quotes; None is empty."""
    if value is None or value != value:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else text(value)


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names that have a value in any row, in the order in which they come first."""
    filled = {name for row in rows for name, value in row.items() if value not in (None, "")}
    return [name for name in dict.fromkeys(name for row in rows for name in row) if name in filled]


def plain_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Aligned columns of text: words to the left, figures to the right."""
    names = columns(rows)
    lines = [names, *([cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    words = [any(isinstance(row.get(name), str) for row in rows) for name in names]
    return "\n".join(
        "  ".join(
            value.ljust(width) if word else value.rjust(width)
            for value, width, word in zip(line, widths, words)
        ).rstrip()
        for line in lines
    )


def html_table(rows: Sequence[Mapping[str, Any]], caption: str = "") -> str:
    """The same as an HTML table, for a notebook."""
    names = columns(rows)
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell(row.get(name)))}</td>" for name in names) + "</tr>"
        for row in rows
    )
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class TableList(list[T], ABC):
    """A list of results that shows itself as a table."""

    @abstractmethod
    def figures(self) -> list[dict[str, Any]]:
        """One flat dict for each result."""

    def to_pandas(self) -> Any:
        """A DataFrame of `figures`, one row for each result. Raises MissingError without pandas."""
        return pandas().DataFrame(self.figures())

    def __repr__(self) -> str:
        return plain_table(self._shown()) if self else "[]"

    def _repr_html_(self) -> str:
        return html_table(self._shown())

    def _shown(self) -> list[dict[str, Any]]:
        """Of `figures`, what has a place in a table."""
        return self.figures()


def feature_html(line: str, examples: Iterable[Any]) -> str:
    """A feature for a notebook: its line, then its strongest examples, of texts with their window
    and the token in bold, of images with their source."""
    items = []
    for example in list(examples)[:MOST_EXAMPLES]:
        if example.tokens is None:
            where = escape(example.label or example.source)
        else:
            tokens = [escape(token) for token in example.tokens]
            tokens[example.centre or 0] = f"<b>{tokens[example.centre or 0]}</b>"
            where = "".join(tokens)
        items.append(f"<li>{example.act:.{DIGITS}g}: {where}</li>")
    return f"<code>{escape(line)}</code><ol>{''.join(items)}</ol>"
