"""What the documentation promises: paths exist, docs/api.md is what the code says, the word list
finds what it should. Links: test_links.py."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import api
import docstrings
import options
import pytest

import saekit
from saekit.options import Doc

ROOT = Path(__file__).parents[1]
PARTS = "saekit|kernels|cli|tests|benchmarks|recipes|docs"
PATHS = re.compile(rf"`?\b((?:{PARTS})/[\w/.-]*[\w/])")


def load_words():
    spec = importlib.util.spec_from_file_location("words", ROOT / ".ci" / "words.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WORDS = load_words()
PHRASES = tomllib.loads((ROOT / ".ci" / "words.toml").read_text())["phrase"]


def test_every_path_of_the_design_exists():
    text = (ROOT / "docs" / "design.md").read_text()
    named = sorted(set(PATHS.findall(text)))
    assert len(named) > 80
    assert [path for path in named if not (ROOT / path).exists()] == []


# -- what is generated from the options


@pytest.mark.parametrize("path", options.outputs(), ids=lambda path: path.name)
def test_what_is_generated_from_the_options_is_up_to_date(path):
    assert path.read_text() == options.outputs()[path], f"{path.name} is out of date: make docs"


# -- docs/api.md


def test_the_reference_is_what_the_code_says():
    assert api.PAGE.read_text() == api.page(), "docs/api.md is out of date: make docs"


def test_every_public_name_is_in_the_reference():
    names = {name for members in api.JOBS.values() for name in members if ":" not in name}
    assert names == set(saekit.__all__)


@pytest.mark.parametrize("name", sorted(set(saekit.__all__) - {"SaekitError"}))
def test_every_parameter_of_a_public_function_is_explained(name):
    """In the docstring or with the option; `progress`, which all long verbs have, on the page."""
    owner = getattr(saekit, name)
    function = docstrings.function_of(owner)
    items = "".join(docstrings.described(owner, function)).splitlines()
    explained = {word for item in items for word in re.findall(r"`(\w+)`", item.partition(": ")[0])}
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    assert {argument.arg for argument in arguments} - {"self", "progress"} <= explained


DEFAULT = 3
Count = Annotated[int, Doc("Active latents.")]


def sample(
    x_BD,
    *,
    k: Annotated[int, Doc("Active latents.")] = DEFAULT,
    n: Count = 0,
    other: dict[str, int],
    **more,
):
    """One line that is
    wrapped.

    Parameters
        x_BD: rows: not columns,
            in any dtype.
        other: more rows.

        sample(1)
          + 2

    Raises nothing.
    """


@dataclass
class Sample:
    # of the rows
    width: int
    count: int = 4  # how many
    k: Annotated[int | None, Doc("Active latents.")] = None
    last: tuple[int, ...] = ()
    """A text
    of two lines."""


def test_a_docstring_becomes_markdown():
    function = docstrings.parsed(sample)
    shown = docstrings.signature(sample, function, "sample")
    assert shown == "sample(x_BD, *, k: int = 3, n: int = 0, other: dict[str, int], **more)"
    assert list(docstrings.described(sample, function)) == [
        "One line that is wrapped.\n",
        "- `x_BD`: rows: not columns, in any dtype.\n"
        "- `k`: Active latents.\n"
        "- `n`: Active latents.\n"
        "- `other`: more rows.\n",
        "```python\nsample(1)\n  + 2\n```\n",
        "Raises nothing.\n",
    ]


def test_fields_are_listed_with_their_texts():
    assert docstrings.fields(Sample).splitlines() == [
        "- `width: int`: of the rows",
        "- `count: int = 4`: how many",
        "- `k: int | None = None`: Active latents.",
        "- `last: tuple[int, ...] = ()`: A text of two lines.",
    ]
    assert "width" not in docstrings.fields(Sample, without=frozenset({"width"}))


# -- the word list


def found(text: str, is_code: bool = False) -> list[tuple[int, str]]:
    return [(line, phrase) for line, phrase, _ in WORDS.hits(text, PHRASES, is_code)]


@pytest.mark.parametrize(
    ("text", "hits"),
    [
        (
            "Fine.\nThe rate is no option, and leave `--k` away.",
            [(2, "leave `--k` away"), (2, "is no")],
        ),
        ("There is no network. It is no longer slow.", []),
        ("A line that ends for\nwant of a network", [(1, "for want of")]),
        (
            "active latents a row; 12 ms a step; per step",
            [(1, "active latents a row"), (1, "ms a step")],
        ),
        ("`x is no y` in code\n\n    it is no y\n\n```\nit is no y\n```", []),
        ("the optimiser normalises", [(1, "optimiser"), (1, "normalises")]),
    ],
)
def test_the_word_list_finds_phrases_in_prose(text, hits):
    assert found(text) == hits


def test_in_code_only_words_for_people_are_read():
    code = 'is_no = 1  # this is no\n# rate\nalone = f"rows {1} alone"\noptimised = "optimised"\n'
    assert sorted(found(code, is_code=True)) == [(1, "is no"), (3, "alone")]
