"""What an index says of every latent, windows and records against the whole code matrix held in
memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_index import made_index
from made_stores import make_rows, write_store

import saekit
from saekit.errors import DataError, UsageError
from saekit.indexing import build
from saekit.indexing.histogram import BINS
from saekit.indexing.shown import KEPT_TOP
from saekit.inspection.records import feature_records, pick_rows, select_latents
from saekit.inspection.relate import decoder_neighbours, output_tokens
from saekit.inspection.windows import read_windows
from saekit.store.reader import open_store


@pytest.fixture(scope="module", params=["topk", "l1", "kl-sigmoid", "pca"])
def trained(request, tmp_path_factory):
    """(model, store, z (N,F) whole, index)."""
    folder = tmp_path_factory.mktemp(request.param)
    store = open_store(write_store(folder / "store", 2000, tokens=40))
    options = {"sparsity": request.param, "expansion": 4, "batch": 256, "rows": 20_000}
    if request.param == "topk":
        options["k"] = 4
    if request.param == "kl-sigmoid":
        options["coef"] = 0.01
    if request.param == "pca":
        options = {"model": "pca", "latents": 8}
    saekit.train(store.path, folder / "run", **options)
    model = saekit.load(folder / "run")
    code = model.encode(make_rows(2000).half().float())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "CHUNK_ROWS", 300)
        index = made_index(folder / "index", model, store)
    return model, store, code.to_dense(), index


def test_counts_maxima_and_histograms_are_exact(trained):
    model, _, z, index = trained
    above = model.active_above or 0.0
    active = z.abs() > above
    assert index.rows == 2000 and np.array_equal(index.active, active.sum(0))
    largest = torch.where(active, z.abs(), 0.0).amax(0)
    np.testing.assert_allclose(index.max, largest, rtol=1e-5, atol=1e-6)
    for j in range(0, model.latents, 7):
        assert sum(index.histogram(j)["counts"]) == index.active[j]
        values = z[active[:, j], j]
        if len(values) == 0:
            continue
        histogram = index.histogram(j)
        edges, counts = torch.tensor(histogram["edges"]), histogram["counts"]
        sides = 2 if (values < 0).any() else 1
        assert len(edges) == len(counts) + 1 <= sides * BINS + 1 and edges[
            -2
        ] <= values.max() <= edges[-1] * (1 + 1e-6)
        width = float(edges[1] - edges[0])
        for i in (0, len(counts) // 2, len(counts) - 1):
            # A value within rounding of an edge may fall on either side.
            sure = (
                (values > edges[i] + 1e-4 * width) & (values < edges[i + 1] - 1e-4 * width)
            ).sum()
            possible = (
                (values > edges[i] - 1e-4 * width) & (values < edges[i + 1] + 1e-4 * width)
            ).sum()
            assert sure <= counts[i] <= possible


def test_the_top_rows_are_the_best_row_of_each_of_the_best_examples(trained):
    model, _, z, index = trained
    example = torch.arange(2000) // 40
    for j in range(0, model.latents, 5):
        # of a dense code `top` is its upper end
        values = torch.where(z[:, j] > (model.active_above or 0.0), z[:, j], 0.0)
        best = torch.zeros(50).scatter_reduce(0, example, values, "amax")
        expected = best[best > 0].sort(descending=True).values[:KEPT_TOP]
        rows, found = index.shown.top.of(j)
        torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(values[rows], expected, rtol=1e-5, atol=1e-6)


def test_chunks_do_not_change_what_is_exact(trained, tmp_path):
    model, store, _, many = trained
    one = made_index(tmp_path / "index", model, store)
    assert many.manifest.chunk < 2000 < one.manifest.chunk
    assert np.array_equal(many.active, one.active)
    for side in ("top", "bottom"):
        found, expected = getattr(one.shown, side), getattr(many.shown, side)
        np.testing.assert_allclose(found.value, expected.value, rtol=1e-5, atol=1e-6)


def test_the_sample_reaches_every_interval(trained):
    _, store, z, index = trained
    j = int(index.active.argmax())
    bands = {pick.interval for pick in pick_rows(index, store, j, top=5)} - {None}
    filled = {band for band, counted in enumerate(index.bands(j)) if counted["rows"]}
    assert bands <= filled and len(bands) >= min(3, len(filled) - 1)
    for pick in pick_rows(index, store, j, top=5):
        assert float(z[pick.row, j]) == pytest.approx(pick.act, rel=1e-4)


def test_windows_hold_the_latent_on_the_rows_of_the_same_example(trained):
    model, store, z, _ = trained
    rows = torch.tensor([0, 39, 40, 55, 1999, 55]).numpy()
    latents = torch.tensor([0, 1, 2, 3, 4, 5]).numpy() % model.latents
    windows = read_windows(model, store, rows, latents)
    for i, (row, latent) in enumerate(zip(rows, latents)):
        first, last = row // 40 * 40, min(row // 40 * 40 + 40, 2000)
        start, stop = first, last
        assert (windows.start[i], windows.stop[i]) == (start, stop)
        got = torch.from_numpy(windows.values[windows.ptr[i] : windows.ptr[i + 1]])
        torch.testing.assert_close(got, z[start:stop, latent], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trained", ["topk"], indirect=True)
def test_records_say_what_the_code_matrix_says(trained, monkeypatch):
    import saekit.inspection.records as records_module

    model, store, z, index = trained
    monkeypatch.setattr(
        records_module, "token_texts", lambda store: lambda ids: [f"<{i}>" for i in ids]
    )
    chosen = select_latents("top:5", index)
    contexts: dict[int, list[str]] = {}
    records = feature_records(model, store, index, chosen, 6, None, contexts=contexts)
    for record, j in zip(records, chosen.tolist()):
        assert record.index == j and record.active_rows == int((z[:, j] > 0).sum())
        assert record.density == pytest.approx(record.active_rows / 2000)
        top = [e for e in record.examples if e.group == "top"]
        assert len(top) == 6 and [e.act for e in top] == sorted((e.act for e in top), reverse=True)
        assert top[0].act == pytest.approx(record.max)
        assert len({e.doc_id for e in top}) == 6, "one example a document while documents last"
        for e in record.examples:
            row = e.example_id * 40 + e.position
            assert (
                z[row, j].item()
                == pytest.approx(e.act, rel=1e-4)
                == pytest.approx(e.values[e.centre], rel=1e-4)
            )
            assert e.tokens[e.centre] == f"<{e.example_id + e.position}>" and len(e.tokens) == len(
                e.values
            )
            assert e.source == f"document {e.doc_id}"
            # the list shows twelve tokens on either side, the context all forty
            first = e.position - e.centre
            assert (first, first + len(e.tokens)) == (
                max(0, e.position - 12),
                min(40, e.position + 13),
            )
            assert contexts[e.example_id][first : first + len(e.tokens)] == e.tokens
            whole = z[e.example_id * 40 : e.example_id * 40 + 40, j]
            assert [place for place, _ in e.context_values] == whole.nonzero()[:, 0].tolist()
            assert [value for _, value in e.context_values] == pytest.approx(
                whole[whole != 0].tolist(), rel=1e-4
            )


def test_select_latents(trained):
    model, _, _, index = trained
    assert select_latents("0-3,5,2", index).tolist() == [0, 1, 2, 3, 5]
    top = select_latents("top:3", index)
    assert index.active[top].tolist() == sorted(index.active.tolist(), reverse=True)[:3]
    assert (index.active[select_latents("all", index)] > 0).all()
    with pytest.raises(DataError, match=rf"feature 999: this model has {model.latents} "):
        select_latents("999", index)
    with pytest.raises(UsageError, match="write 0-255"):
        select_latents("top500", index)


def test_neighbours_and_output_tokens_by_hand():
    W_dec = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0], [0.9, 0.1]])
    alive = torch.tensor([True, True, True, False])
    near = decoder_neighbours(W_dec, torch.tensor([0]), alive, count=3)[0]
    assert [n["index"] for n in near] == [1, 2]
    assert [n["cosine"] for n in near] == pytest.approx([0.6, -1.0])
    W_U = torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, 1.0]])
    logits = output_tokens(W_dec, torch.tensor([1]), W_U, "abc".__getitem__, count=2)[0][0]
    assert logits["top"] == [
        {"token": "b", "value": pytest.approx(4.0)},
        {"token": "a", "value": pytest.approx(1.2)},
    ]
    assert logits["bottom"][0] == {"token": "c", "value": pytest.approx(0.2)}
