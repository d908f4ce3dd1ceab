"""What results show at a prompt and in a notebook: figures, few digits, no walls of numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import saekit
from saekit.display import brief, html_table, plain_table, text
from saekit.evaluation.table import Evaluation, Evaluations
from saekit.store.checkpoint import read_checkpoint
from saekit.types import ActivationBatch, Example, FeatureRecord, Output

SMALL = dict(latents=32, k=2, rows=1024, batch=128)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.123456, "0.1235"),
        (32.0, "32"),
        (12345.678, "12346"),
        (1e-9, "1e-09"),
        (1e20, "1e+20"),
        ("a", "'a'"),
        ((2, 3), "(2, 3)"),
        (True, "True"),
        (float("nan"), "nan"),
    ],
)
def test_figures_have_four_digits(value, shown):
    assert text(value) == shown


def test_a_line_leaves_out_what_is_not_known():
    class Thing: ...

    assert brief(Thing(), {"a": 1, "b": None, "c": "x"}, "'id'") == "Thing('id', a=1, c='x')"


ROWS = [{"name": "a", "fvu": 0.25, "n": 12345, "l0": None}, {"name": "bb", "fvu": None, "n": 7}]


def test_tables_align_words_left_and_figures_right_and_drop_empty_columns():
    assert plain_table(ROWS).splitlines() == [
        "name   fvu       n",
        "a     0.25  12,345",
        "bb               7",
    ]


def test_tables_in_html_escape_what_users_wrote():
    html = html_table([{"name": "<b>&"}], "x < y")
    assert "<td>&lt;b&gt;&amp;</td>" in html and "x &lt; y" in html


# -- results


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    x_ND = np.random.default_rng(0).normal(size=(600, 16))
    return x_ND, saekit.train(x_ND, tmp_path_factory.mktemp("runs") / "a", **SMALL)


def test_a_training_result_shows_path_and_figures(run):
    _, result = run
    shown = repr(result)
    assert shown.startswith(f"TrainResult(path={result.path!r}, fvu={result.metrics['fvu']:.4g}")
    assert "step=8, rows=1024" in shown and "backend='torch'" in shown
    assert f"<td>{result.metrics['fvu']:.4g}</td>" in result._repr_html_()


def test_printing_a_result_reads_no_model(run):
    _, result = run
    repr(result)
    assert "model" not in vars(type(result)(**vars(result)))


def test_evaluations_are_a_list_that_shows_a_table(run):
    x_ND, result = run
    found = saekit.evaluate([result, result.model], x_ND, k=[1, 2])
    assert isinstance(found, list) and len(found) == 4 and isinstance(found[0], Evaluation)
    header, *lines = repr(found).splitlines()
    assert header.split()[:6] == ["checkpoint", "model", "params", "latents", "k", "rows"]
    assert len(lines) == 4 and f"{found[1].metrics['fvu']:.4g}" in lines[1]
    assert found._repr_html_().count("<tr>") == 5
    assert repr(found[1]).startswith(
        f"Evaluation({result.path!r}, model='sae topk', latents=32, k=2"
    )
    assert repr(Evaluations()) == "[]"


def test_evaluations_become_a_data_frame(run):
    x_ND, result = run
    frame = saekit.evaluate(result, x_ND).to_pandas()
    assert frame.loc[0, "model"] == "sae topk" and frame.loc[0, "fvu"] == pytest.approx(
        saekit.evaluate(result, x_ND)[0].metrics["fvu"]
    )


def test_losses_and_parts_are_flat_figures():
    loss = {"value": 0.5, "low": 0.4, "high": 0.6}
    metrics = {"fvu": 0.1, "loss_recovered": loss, "parts": {"blocks.3": 0.2}}
    one = Evaluation("a", "sae topk", 10, 4, 100, "all", metrics)
    figures = one.figures()
    assert figures["loss_recovered"] == 0.5 and figures["loss_recovered_high"] == 0.6
    assert figures["fvu blocks.3"] == 0.2
    assert "loss_recovered_low" not in repr(Evaluations([one])) and "0.5" in repr(one)


def test_a_checkpoint_shows_no_tensors(run):
    _, result = run
    shown = repr(read_checkpoint(result.path))
    assert shown.startswith(
        f"Checkpoint('{result.path}', model='sae topk', d_in=16, latents=32, k=2"
    )
    assert f"fvu={result.metrics['fvu']:.4g}" in shown and "tensor" not in shown


def test_models_show_their_sizes(run):
    x_ND, result = run
    assert repr(result.model) == "TopK(16 -> 32, k=2, folded)"
    pca = saekit.train(x_ND, model="pca", latents=3).model
    assert repr(pca) == "PCA(16 -> 3)"
    conv = saekit.train(x_ND.reshape(-1, 4, 4, 1), model="conv", rows=64, batch=32).model
    assert "4 x 4 x 1 -> 32" in repr(conv)


def test_batches_and_outputs_show_shapes(run, store):
    _, result = run
    batch = next(store.batches(8))
    assert isinstance(batch, ActivationBatch)
    assert repr(batch).startswith("ActivationBatch(x=float16[8, 16], doc_id=int64[8]")
    shown = repr(result.model(torch.zeros(3, 16)))
    assert shown.startswith(
        "Output(x_hat=float32[3, 16], code=SparseCodes((3, 32), at most 2 active"
    )
    assert repr(Output(torch.zeros(2), torch.zeros(2), {"elbo": 1})).endswith("extras=('elbo',))")


def test_a_harvest_shows_rows_and_hooks(tmp_path):
    result = saekit.harvest("raw:pixels", "embedded:digits", tmp_path / "px")
    assert repr(result).startswith(f"HarvestResult(path={result.path!r}, rows=1797, rows_per_s=")
    assert "hooks=('pixels',)" in repr(result) and "dropped" not in repr(result)


def record(**changes) -> FeatureRecord:
    example = Example("top", 2.5, 0, 0, 1, [0.0, 2.5], tokens=["<a>", " cat"], centre=1)
    values = dict(
        index=7, density=0.01234, active_rows=20, max=2.5, histogram={}, examples=[example]
    )
    return FeatureRecord(**values | changes)


def test_a_feature_shows_its_figures_and_in_a_notebook_its_examples():
    assert repr(record()) == (
        "FeatureRecord(index=7, density=0.01234, active_rows=20, max=2.5, examples=1)"
    )
    assert "<li>2.5: &lt;a&gt;<b> cat</b></li>" in record()._repr_html_()
    image = Example("top", 1.0, 0, 0, 3, [1.0], source="a.png", label="seven", grid=(1, 1))
    assert "<li>1: seven</li>" in record(label="x", examples=[image])._repr_html_()
