"""The content of the files decides the format, and exactly one module recognizes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import made_dictionaries as made
import made_more as more
import pytest

from saekit.interop.opening import FORMATS, recognized

# format -> what writes its fixtures: a new format adds its own
WRITERS: dict[str, list[Callable[[Path], Path]]] = {
    "saelens": [
        made.saelens,
        lambda path: made.saelens(path, "topk"),
        lambda path: made.saelens(path, "gated"),
        lambda path: made.saelens(path, "jumprelu"),
        made.old_saelens,
    ],
    "sparsify": [made.sparsify, lambda path: made.sparsify(path, transcode=True, skip=True)],
    "dictionary_learning": [
        *(
            lambda path, kind=kind: made.dictionary_learning(path, kind)
            for kind in ("AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK", "GatedAutoEncoder")
        ),
        lambda path: made.dictionary_learning(path, "AutoEncoderNew") / "ae.pt",
        lambda path: made.dictionary_learning(path, "MatryoshkaBatchTopKSAE") / "ae.pt",
    ],
    "gemma_scope": [made.gemma_scope, lambda path: made.gemma_scope(path) / "params.npz"],
    "openai": [more.openai, lambda path: more.openai(path, None)],
    "llama_scope": [more.llama_scope],
    "llamascopium": [
        more.llamascopium,
        lambda path: more.llamascopium(path, suffix=".pt"),
        lambda path: more.llamascopium(path, suffix=".dcp"),
        more.llama_scope_r1,
    ],
    "qwen_scope": [more.qwen_scope],
    "goodfire": [more.goodfire],
    "deepseek_r1": [more.deepseek_r1],
    "saev": [
        more.saev,
        lambda path: more.saev(path) / "sae.pt",
        lambda path: more.saev(path, more.saev_header("TopK")),
    ],
    "vit_prisma": [
        more.vit_prisma,
        lambda path: more.vit_prisma(path, "gated") / "weights.pt",
        lambda path: more.vit_prisma(path, file="n_images_260014.pt"),
    ],
}


def test_every_format_has_a_fixture():
    assert WRITERS.keys() == FORMATS.keys()


@pytest.mark.parametrize("format", WRITERS)
def test_exactly_one_module_recognizes_each_fixture(tmp_path, format):
    for number, write in enumerate(WRITERS[format]):
        path = write(tmp_path / str(number))
        assert [name for name in FORMATS if FORMATS[name].recognizes(path)] == [format]
        assert recognized(path) == format


def test_files_of_no_format_are_recognized_by_none(tmp_path):
    (tmp_path / "notes.txt").write_text("W_enc")
    (tmp_path / "config.json").write_text("{}")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "config.json", tmp_path / "absent"):
        assert recognized(path) is None
