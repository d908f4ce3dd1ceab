"""Which hooks have output tokens, and which rows of the head are tokens."""

from __future__ import annotations

import itertools
import json
from statistics import NormalDist

import numpy as np
import pytest
import torch
from made_letters import LETTERS, letters_model

import saekit
from saekit.harvesting.models import load_model
from saekit.inspection.output_head import logit_histograms, logit_test
from saekit.inspection.output_tests import SIDES, told
from saekit.inspection.relate import (
    deviations,
    off_the_residual_stream,
    standing_out,
    standing_out_by_chance,
)


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("letters")
    letters_model(folder)
    return folder


@pytest.mark.parametrize(
    ("hook", "written"),
    [("blocks.0", True), ("blocks.1:in", True), ("blocks.1.attn", True), ("blocks.1.mlp", True),
    ("blocks.1.mlp:in", False),
     ("blocks.0.attn:in", False), ("transformer.h.0.ln_1", False),
     ("transformer.h.1.attn.c_proj:in", False), ("transformer.ln_f", False)],
)  # fmt: skip
def test_only_what_is_added_to_the_residual_stream_has_output_tokens(letters, hook, written):
    why = off_the_residual_stream(load_model(str(letters / "model")), hook)
    assert (why == "") == written and (written or hook in why)


def test_padded_rows_of_the_head_are_no_tokens(letters, tmp_path):
    model = str(letters / "model")
    saekit.harvest(
        model,
        str(letters / "docs"),
        tmp_path / "acts",
        hook="blocks.1",
        dtype="float32",
        holdout=0.2,
    )
    saekit.train(tmp_path / "acts", tmp_path / "run", model="pca", latents=4)
    saekit.inspect(tmp_path / "run", tmp_path / "acts", tmp_path / "page", top=3, jsonl=True)
    records = [
        json.loads(line) for line in (tmp_path / "page/features.jsonl").read_text().splitlines()
    ]
    W_U = load_model(model).module.lm_head.weight[:6].detach()
    W_dec = saekit.load(tmp_path / "run").W_dec.detach()
    names = ["<eos>", "<unk>", *LETTERS]
    for record in records:
        assert len(record["logits"]["top"]) == len(record["logits"]["bottom"]) == 6
        expected = (W_U @ W_dec[record["index"]]).tolist()
        for entry in record["logits"]["top"]:
            assert entry["value"] == pytest.approx(
                expected[names.index(entry["token"])], rel=1e-4, abs=1e-6
            )


def test_a_transcoder_writes_to_its_target(letters, tmp_path):
    model = str(letters / "model")
    hooks = ["blocks.1.mlp:in", "blocks.1.mlp"]
    result = saekit.harvest(
        model, str(letters / "docs"), tmp_path / "acts", hook=hooks, dtype="float32", holdout=0.2
    )
    reads, writes = result.stores.values()
    has = {}
    for name, target in (("same", None), ("transcoder", str(writes))):
        saekit.train(
            reads, tmp_path / name, k=2, latents=16, rows=2000, batch=128, target_store=target
        )
        saekit.inspect(tmp_path / name, reads, tmp_path / f"{name}-page", top=3, jsonl=True)
        lines = (tmp_path / f"{name}-page/features.jsonl").read_text().splitlines()
        has[name] = [json.loads(line)["logits"] is not None for line in lines]
    assert not any(has["same"]) and all(has["transcoder"])


def test_a_direction_with_tokens_of_its_own_stands_out_and_a_random_one_does_not():
    generator = torch.Generator().manual_seed(3)
    W_U_VD = torch.randn(3000, 48, generator=generator)
    topic_D = torch.randn(48, generator=generator)
    W_U_VD[:20] += 2 * topic_D  # twenty tokens of one topic
    by_chance = standing_out_by_chance(W_U_VD)
    assert by_chance == standing_out_by_chance(W_U_VD)
    raised, lowered = by_chance.raised, by_chance.lowered
    random_ND = torch.randn(2000, 48, generator=generator)
    ends_N2 = standing_out(random_ND @ W_U_VD.T)
    for side, limit in zip(ends_N2.T, (raised, lowered)):
        assert 0.003 <= float((side > limit).float().mean()) <= 0.025
    of_topic = standing_out(topic_D[None] @ W_U_VD.T)[0]
    assert of_topic[0] > 1.5 * raised and of_topic[1] < lowered
    # by hand, and whatever the direction's length
    logits = (topic_D @ W_U_VD.T).double().numpy()
    by_hand = (np.sort(logits)[-10:].mean() - logits.mean()) / logits.std()
    assert float(of_topic[0]) == pytest.approx(by_hand, rel=1e-4)
    torch.testing.assert_close(standing_out(30 * topic_D[None] @ W_U_VD.T)[0], of_topic)


def test_a_direction_that_raises_one_token_is_told_by_that_token():
    generator = torch.Generator().manual_seed(4)
    W_U_VD = torch.randn(3000, 64, generator=generator)
    wanted = torch.randn(64, generator=generator)
    W_U_VD[17] = 5.5 * wanted / wanted.norm()  # 5.5 standard deviations: others are normal
    by_chance = standing_out_by_chance(W_U_VD)
    apart_N2K = deviations(torch.stack([wanted, -wanted]) @ W_U_VD.T)
    above, below = (logit_test(apart_2K, by_chance) for apart_2K in apart_N2K)
    # ten together are no better than chance, and no other token is by itself
    assert above["raised"] <= above["raised_chance"] < above["raised_one"]
    assert told(above, "raised") == above["raised_beyond"] == 1 and told(above, "lowered") == 0
    assert told(below, "lowered") == 1 and told(below, "raised") == 0
    logits = (wanted @ W_U_VD.T).double().numpy()
    assert logits.argmax() == 17
    by_hand = (logits[17] - logits.mean()) / logits.std()
    assert above["raised_one"] == pytest.approx(by_hand, rel=1e-4)
    # a page of before has no test of single tokens, and its sides are told as they were
    old = {name: above[name] for name in ("raised", "lowered", "raised_chance", "lowered_chance")}
    assert told(old, "raised") == 0 and told(None, "raised") is None


def test_the_level_of_one_token_is_that_of_the_largest_of_the_vocabulary():
    """Of V independent normal logits the largest is below x with the probability Phi(x)^V."""
    V = 2000
    W_U_VD = torch.randn(V, 400, generator=torch.Generator().manual_seed(6))
    by_chance = standing_out_by_chance(W_U_VD)
    expected = NormalDist().inv_cdf(0.99 ** (1 / V))
    for level in (by_chance.raised_one, by_chance.lowered_one):
        assert level == pytest.approx(expected, abs=0.35)
    drawn_ND = torch.randn(2000, 400, generator=torch.Generator().manual_seed(7))
    largest_N2 = deviations(drawn_ND @ W_U_VD.T)[:, :, 0]
    for side, level in zip(largest_N2.T, (by_chance.raised_one, by_chance.lowered_one)):
        assert 0.002 <= float((side > level).float().mean()) <= 0.03


def test_the_distribution_counts_every_token_once():
    generator = torch.Generator().manual_seed(5)
    logits_NV = torch.randn(3, 4999, generator=generator)
    logits_NV[2, 7] = 40.0  # one token far out: all others in few bins
    for row_V, histogram in zip(logits_NV.tolist(), logit_histograms(logits_NV)):
        edges, counts = histogram["edges"], histogram["counts"]
        assert (edges[0], edges[-1]) == (min(row_V), max(row_V)) and len(counts) == 50
        inside = [
            sum(a <= v < b or v == b == edges[-1] for v in row_V)
            for a, b in itertools.pairwise(edges)
        ]
        assert counts == inside and sum(counts) == len(row_V)
        width = (edges[-1] - edges[0]) / 50
        assert np.diff(edges) == pytest.approx(np.full(50, width))


def test_the_records_of_a_page_hold_the_test(letters, tmp_path):
    """The head of six letters and twelve dimensions: the figures are those of its own logits."""
    model = str(letters / "model")
    options = {"hook": "blocks.1", "dtype": "float32", "holdout": 0.2}
    saekit.harvest(model, str(letters / "docs"), tmp_path / "acts", **options)
    saekit.train(tmp_path / "acts", tmp_path / "run", k=2, latents=16, rows=2000, batch=128)
    saekit.inspect(tmp_path / "run", tmp_path / "acts", tmp_path / "page", top=3, jsonl=True)
    W_U = load_model(model).module.lm_head.weight[:6].detach()
    W_dec = saekit.load(tmp_path / "run").W_dec.detach()
    for line in (tmp_path / "page/features.jsonl").read_text().splitlines():
        record = json.loads(line)
        ends = standing_out((W_dec[record["index"]] @ W_U.T)[None])[0].tolist()
        test = record["logit_test"]
        assert [test["raised"], test["lowered"]] == pytest.approx(ends, rel=1e-4, abs=1e-6)
        # the distribution is there where a side, or a token, stands out
        shown = [test[s] > test[f"{s}_chance"] or test[f"{s}_beyond"] for s in SIDES]
        assert (record["logit_histogram"] is not None) == any(shown)
        chance = standing_out_by_chance(W_U)
        names = ("raised", "lowered", "raised_one", "lowered_one")
        assert [test[f"{name}_chance"] for name in names] == pytest.approx(list(chance), rel=1e-4)
        logits = (W_dec[record["index"]] @ W_U.T).double()
        furthest = [logits.max() - logits.mean(), logits.mean() - logits.min()]
        expected = [float(end / logits.std(correction=0)) for end in furthest]
        assert [test[f"{s}_one"] for s in SIDES] == pytest.approx(expected, rel=1e-4)
