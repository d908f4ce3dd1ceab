"""What the server answers: figures are the library's, and what is wrong is said."""

from __future__ import annotations

import json

import pytest
import torch
from served import CPU, Running

import saekit
from saekit.harvesting.sources import Document
from saekit.inspection.score import Scores
from saekit.serving.questions import MOST_TEXT_BYTES
from saekit.serving.workbench import open_workbench

TEXT = "the cat sat on a mat and the dog ran far away from it"
TWICE = f"{TEXT} {TEXT}"  # two contexts of 15 and 13 tokens


def test_latents_of_a_text_are_those_that_features_ranks(client, made):
    answer = client.send("text", {"text": TEXT}).json
    expected = saekit.features(made.run, made.store, text=TEXT, sort="act", top=50)
    assert answer["ranked"] == [[row.index, row.act] for row in expected]
    for row in expected:
        brief = answer["latents"][str(row.index)]
        assert (brief["max"], brief["density"]) == (row.max, row.density)
    # by the share of each one's largest activation in the store, and by the score
    act = dict(answer["ranked"])
    assert len(act) < 50  # so all are listed in each order
    rows = {row.index: row.density * len(saekit.open_store(made.store)) for row in expected}
    share = {
        row.index: min(row.act / row.max, 1) * rows[row.index] / (rows[row.index] + 20)
        for row in expected
    }
    listed = [j for j, _ in answer["orders"]["relative"]]
    assert listed == sorted(act, key=lambda j: -share[j]) != list(act)
    scored = saekit.features(made.run, made.store, text=TEXT, top=50, sort="score")
    listed = [j for j, _ in answer["orders"]["score"]]
    assert [j for j in listed if answer["latents"][str(j)]["score"]] == [
        row.index for row in scored if row.score
    ]
    assert answer["orders"]["score"] == [[j, act[j]] for j in listed]
    for row in scored:
        brief = answer["latents"][str(row.index)]
        assert (brief["label"], brief["score"]) == (row.label, row.score)


def test_every_token_has_the_code_of_its_row(client, made):
    """Against a harvest of only this text."""
    answer = client.send("text", {"text": TWICE}).json
    store = saekit.harvest(made.model, [TWICE], hook="blocks.1", ctx=16, batch=1, dtype="float32")
    code_NF = saekit.load(made.run).encode(store.x).to_dense()
    code_NF = torch.cat([code_NF[-15:], code_NF[:-15]])  # a harvest begins with short contexts
    rows = [row for context in answer["contexts"] for row in context["rows"]]
    assert len(answer["contexts"]) == 2 and len(rows) == len(code_NF)
    for row, code_F in zip(rows, code_NF):
        active = code_F.nonzero()[:, 0].tolist()
        assert sorted(row["latents"]) == active
        assert row["acts"] == sorted(row["acts"], reverse=True)
        for latent, act in zip(row["latents"], row["acts"]):
            assert act == pytest.approx(float(code_F[latent]), rel=1e-5)
    for context in answer["contexts"]:
        assert len(context["tokens"]) <= 16
        # the token before the text is not a row
        assert [row["at"] for row in context["rows"]] == list(range(1, len(context["tokens"])))
        assert context["tokens"][0] == "<s>"
    spoken = "".join("".join(c["tokens"][1:]) + " " for c in answer["contexts"])
    assert spoken.split() == TWICE.split()


def test_too_many_entries_are_cut_and_it_says_so(bench, monkeypatch):
    from saekit.serving import reading

    document = Document(0, "input", TEXT)
    whole = bench.reader.read(document, lambda _: None)
    monkeypatch.setattr(reading, "MOST_ENTRIES", 3 * 14)
    cut = bench.reader.read(document, lambda _: None)
    assert (whole["cut"], cut["cut"]) == (None, 3)
    for a, b in zip(whole["contexts"][0]["rows"], cut["contexts"][0]["rows"]):
        assert b["latents"] == a["latents"][:3] and len(a["latents"]) == 4
    assert cut["ranked"] == whole["ranked"]


def figures(client, **question):
    answer = client.send("steer", {"prompt": "the cat", "max_new_tokens": 6, **question})
    assert answer.status == 200, answer.body
    return answer.lines


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"raw": True},
        {"positions": "generated"},
        {"error": False},
        {"temperature": 1.0, "seed": 3},
    ],
    ids=str,
)
def test_what_is_steered_is_what_steer_returns(client, made, options):
    lines = figures(client, latents={"3": 2.5}, ablate=[5], **options)
    expected = saekit.steer(
        made.run, prompt="the cat", latents={3: 2.5}, ablate=[5], max_new_tokens=6, **options
    )
    (told,) = [line for line in lines if line["kind"] == "figures"]
    for name in ("clean", "steered"):
        part = getattr(expected, name)
        assert told[name] == {
            "text": part.text, "tokens": part.tokens, "kl": part.kl, "perplexity": part.perplexity,
        }  # fmt: skip
    for name in ("raised", "lowered"):
        assert [change["token"] for change in told[name]] == [
            change.token for change in getattr(expected, name)
        ]
    assert told["edits"] == expected.edits
    assert lines[-1] == {"kind": "end"}


def test_what_is_infinite_is_null(client):
    """A latent so strong that the clean model rules out what is written."""
    answer = client.send(
        "steer", {"prompt": "the", "latents": {"3": 1e4}, "raw": True, "max_new_tokens": 4}
    )
    *_, told, end = answer.lines  # json.loads takes Infinity too
    assert told["steered"]["perplexity"] is None or told["steered"]["perplexity"] > 1
    assert b"Infinity" not in answer.body and b"NaN" not in answer.body
    assert (told["kind"], end["kind"]) == ("figures", "end")
    from saekit.display import finite

    assert finite({"a": (float("inf"), [float("nan"), 1.5])}) == {"a": [None, [None, 1.5]]}


def test_a_published_dictionary_is_read_without_a_store(made, tmp_path):
    saekit.export_dictionary(made.run, tmp_path / "theirs", format="saelens")
    bench = open_workbench(tmp_path / "theirs", model=made.model, device=CPU)
    answer = bench.reader.read(Document(0, "input", TEXT), lambda _: None)
    with_store = saekit.features(made.run, made.store, text=TEXT, sort="act", top=50)
    assert [j for j, _ in answer["ranked"]] == [row.index for row in with_store]
    acts = [act for _, act in answer["ranked"]]
    assert acts == pytest.approx([row.act for row in with_store], rel=1e-5)
    assert bench.steering is not None and not bench.about["has_maxima"]


def test_a_text_is_sent_while_it_is_written_and_a_clean_one_once(bench):
    with Running(bench) as running:
        question = {"prompt": "a dog", "max_new_tokens": 5}
        first = running.client.send("steer", question | {"latents": {"3": 2}}).lines
        second = running.client.send("steer", question | {"latents": {"3": 3}}).lines
    for kind in ("clean", "steered"):
        texts = [line["text"] for line in first if line["kind"] == kind]
        (figures,) = [line for line in first if line["kind"] == "figures"]
        tokens = figures[kind]["tokens"]
        # one more token each time, and the whole clean text once more
        assert texts[: len(tokens)] == [" ".join(tokens[: n + 1]) for n in range(len(tokens))]
        assert texts[len(tokens) :] == texts[-1:] * (kind == "clean")
    assert len([line for line in second if line["kind"] == "clean"]) == 1
    assert [line for line in second if line["kind"] == "steered"]


def test_search_by_number_label_and_score(client, bench, made):
    found = client.send("latents?q=%237").json
    assert [brief["index"] for brief in found["found"]] == [7]
    assert client.send("latents?q=64").json == {"found": [], "of": 0}
    best = client.send("latents?q=").json
    expected = saekit.features(made.run, made.store, sort="score", top=64)
    assert {brief["index"] for brief in best["found"]} == {row.index for row in expected}
    named = client.send("latents?q=DOG").json["found"]
    assert named and all("dog" in brief["label"] for brief in named)
    assert {b["index"] for b in named} == {r.index for r in expected if "'dog'" in (r.label or "")}


def test_a_latent_is_shown_with_the_record_of_the_page(client, made, tmp_path):
    saekit.inspect(made.run, made.store, tmp_path / "page", features="3", top=8, jsonl=True)
    (line,) = (tmp_path / "page" / "features.jsonl").read_text().splitlines()
    record = client.send("latents/3").json["record"]
    # only the page has output tokens, and what is beyond the strongest rows
    without = {"logits": None, "logit_test": None, "samples": [], "tokens": None}
    without |= {"coactivation": [], "following": [], "fifths": None, "word": None}
    assert record == json.loads(line) | without
    assert client.send("latents/64").status == 400
    assert client.send("latents/-1").status == 404


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("text", b"", "not JSON"),
        ("text", b"{", "not JSON"),
        ("text", b"\xff\xfe", "not JSON"),
        ("text", b"[" * 100_000, "not JSON"),
        ("text", b'{"text": NaN}', "NaN is not a number"),
        ("text", b"[]", "must be an object"),
        ("text", b"{}", "has no text"),
        ("text", b'{"text": 3}', "must be text"),
        ("text", b'{"text": "\\ud800"}', "half a character"),
        ("text", b'{"text": "a", "more": 1}', "unknown field 'more'"),
        ("text", b'{"text": ""}', "holds no token"),
        ("image", b'{"image": ""}', "is of texts, not of images"),
        ("steer", b'{"prompt": "a"}', "no latent to steer"),
        ("steer", b'{"prompt": "", "latents": {"3": 1}}', "holds no token"),
        ("steer", b'{"prompt": "a", "latents": {"64": 1}}', "latent 64"),
        ("steer", b'{"prompt": "a", "latents": {"x": 1}}', "not the number of a latent"),
        ("steer", b'{"prompt": "a", "latents": {"3": "1"}}', "must be a number"),
        ("steer", b'{"prompt": "a", "latents": {"3": 1e999}}', "not a finite number"),
        ("steer", b'{"prompt": "a", "latents": {"3": 1}, "max_new_tokens": 513}', "at most 512"),
        (
            "steer",
            b'{"prompt": "a", "latents": {"3": 1}, "max_new_tokens": 0}',
            "“Tokens” 0 must be at least 1",
        ),
        (
            "steer",
            b'{"prompt": "a", "latents": {"3": 1}, "temperature": -1}',
            "“Temperature” -1 must",
        ),
        ("steer", b'{"prompt": "a", "latents": {"3": 1}, "positions": "x"}', "positions"),
        ("steer", b'{"prompt": "a", "latents": {"3": 1}, "chat": true}', "no chat template"),
    ],
)
def test_what_is_wrong_with_a_question_is_said(client, path, body, words):
    answer = client.send(path, body)
    assert answer.status == 400, answer.body
    assert words in answer.json["error"]


def test_a_question_that_is_too_large_is_not_read(client):
    text = b'{"text": "' + b"a" * MOST_TEXT_BYTES + b'"}'
    answer = client.send("text", text)
    assert answer.status == 413 and "too large" in answer.json["error"]
    # promised, but not sent
    promised = {"Content-Length": str(10**12)}
    assert client.send("text", b"", headers=promised).status == 413
    assert client.send("text", {"text": "a " * 10_001}).status == 400
    assert client.send("about").status == 200


def test_other_methods_and_addresses_are_not_there(client):
    assert client.send("text").status == 405
    assert client.send("about", {}).status == 405
    for path in ("nothing", "page/", "images/nothing", "../about", "page/../../etc/passwd"):
        assert client.send(path).status in (403, 404), path


def test_without_a_store_texts_are_read_and_steered_in_raw_units(made, tmp_path):
    import shutil

    run = shutil.copytree(made.run, tmp_path / "run", ignore=shutil.ignore_patterns("index"))
    bench = open_workbench(run, model=made.model, device=CPU)
    with Running(bench) as running:
        client = running.client
        about = client.send("about").json
        assert (about["rows"], about["has_maxima"], about["steering"]) == (None, False, True)
        answer = client.send("text", {"text": TEXT}).json
        with_store = saekit.features(made.run, made.store, text=TEXT, sort="act", top=50)
        assert answer["ranked"] == [[row.index, row.act] for row in with_store]
        assert all(brief["max"] is None for brief in answer["latents"].values())
        scaled = client.send("steer", {"prompt": "the", "latents": {"3": 1}})
        assert scaled.status == 400 and "largest activation" in scaled.json["error"]
        raw = client.send("steer", {"prompt": "the", "latents": {"3": 1}, "raw": True})
        assert raw.status == 200 and raw.lines[-1]["kind"] == "end"
        detail = client.send("latents/3").json
        assert detail["record"] is None and "examples come from a store" in detail["note"]


def test_a_bug_is_an_answer_and_the_next_question_is_answered(bench, monkeypatch):
    with Running(bench) as running:
        with monkeypatch.context() as patch:
            patch.setattr(bench.reader, "texts", None)
            patch.setattr(type(bench.reader), "read", lambda *_: 1 / 0)
            answer = running.client.send("text", {"text": TEXT})
        assert answer.status == 500 and "ZeroDivisionError" in answer.json["error"]
        assert running.client.send("text", {"text": TEXT}).status == 200


def test_latents_link_to_the_pages_of_their_page_only(made, tmp_path):
    page = tmp_path / "page"
    saekit.inspect(made.run, made.store, page, features="3,5", top=2)
    bench = open_workbench(made.run, [made.store], page=page, device=CPU)
    assert isinstance(bench.known._scores, Scores)
    with Running(bench) as running:
        client = running.client
        assert [j for j in range(64) if bench.known.brief(j)["page"]] == [3, 5]
        shown = client.send("page/")
        assert shown.status == 200 and shown.body == (page / "index.html").read_bytes()
        assert "connect-src 'none'" in shown.headers["content-security-policy"]
        assert client.send("page/shards/000.js").status == 200
        for path in ("page/../about", "page/%2e%2e/run.json", "page/..%2f..%2fwords.txt"):
            assert client.send(path).status in (403, 404), path
    saekit.train(made.store, tmp_path / "other", latents=64, k=4, batch=128, rows=1280)
    with pytest.raises(saekit.SaekitError, match="page of another checkpoint or store"):
        open_workbench(tmp_path / "other", [made.store], page=page, device=CPU)
    with pytest.raises(saekit.SaekitError, match="is not a page that saekit wrote"):
        open_workbench(made.run, [made.store], page=tmp_path, device=CPU)
