"""The explorer's files, without a browser: what is written, that it decodes to the records, that no
string leaves its place."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import hashlib
import json
import re
from pathlib import Path

import page_fixture as fixture
import pytest

from saekit.inspection.compact import compact, expanded, rounded
from saekit.inspection.page import SCRIPTS, SHARD_RECORDS, PageMeta, write_page
from saekit.types import FeatureRecord

PNG = b"\x89PNG\r\n\x1a\n-one-"
WEBP = b"RIFF\x00\x00\x00\x00WEBP-two-"


def meta_for(records: list[FeatureRecord], latents: int, **changes) -> PageMeta:
    meta = fixture.text_meta(latents, [record.index for record in records])
    density, maximum = list(meta.density), list(meta.max)
    for record in records:
        density[record.index], maximum[record.index] = record.density, record.max
    return dataclasses.replace(meta, density=density, max=maximum, **changes)


def unpacked(packed: str):
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def shards_on_disk(out: Path) -> list[list[dict]]:
    read = [
        re.fullmatch(r'saekitShard\((\d+),"([A-Za-z0-9+/=]+)"\);\n', f.read_text())
        for f in sorted((out / "shards").iterdir())
    ]
    assert [int(found[1]) for found in read] == list(range(len(read)))
    return [unpacked(found[2]) for found in read]


def blocks(page: Path) -> dict[str, str]:
    """Inert data blocks of a page by id."""
    return dict(
        re.findall(
            r'<script type="text/plain" id="([^"]+)">([^<]*)</script>',
            page.read_text(encoding="utf-8"),
        )
    )


def catalog_of(out: Path) -> dict:
    return unpacked(blocks(out / "index.html")["catalog"])


def plain_record(index: int, **changes) -> FeatureRecord:
    record = FeatureRecord(
        index=index, density=0.25, active_rows=500_000, max=2.0, histogram=fixture.histogram(2.0,
        500_000), examples=[]
    )  # fmt: skip
    return dataclasses.replace(record, **changes)


def pictured(index: int, *keys: str) -> FeatureRecord:
    examples = [
        dataclasses.replace(
            fixture.hostile_record(0).examples[0],
            tokens=None,
            centre=None,
            image=key,
            label="7",
            grid=(1, 1),
            values=[1.0],
        )
        for key in keys
    ]
    return plain_record(index, examples=examples)


def test_features_jsonl_holds_every_record_at_full_precision(tmp_path):
    records = list(fixture.text_records(range(5), 64))
    result = write_page(records, meta_for(records, 64), {}, tmp_path)
    lines = (tmp_path / "features.jsonl").read_text(encoding="utf-8").splitlines()
    assert [FeatureRecord.from_json(json.loads(line)) for line in lines] == records
    assert (result.features, result.index_html) == (5, tmp_path / "index.html")


def test_result_counts_the_bytes_on_disk(tmp_path):
    image_bytes, keys, pixels, labels = fixture.digit_images(60)
    records = fixture.image_records(3, keys, pixels, labels)
    result = write_page(records, fixture.image_meta(records, 3, 960), image_bytes, tmp_path)
    assert result.bytes == sum(
        file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()
    )


def at_four_digits(record: FeatureRecord) -> FeatureRecord:
    """As the page has it: without what is in the catalog."""
    data = rounded(record.to_json())
    return FeatureRecord.from_json(data | {"score": None, "meaning": None})


@pytest.mark.parametrize("shared", [False, True], ids=["by itself", "contexts shared"])
def test_shards_decode_to_the_records_at_four_digits(tmp_path, shared):
    records = list(fixture.text_records(range(SHARD_RECORDS + 3), 64))
    contexts = {}
    if shared:
        records = [with_whole_contexts(record, contexts) for record in records]
    write_page(records, meta_for(records, 64), {}, tmp_path, contexts=dict(contexts))
    shards = shards_on_disk(tmp_path)
    assert [len(shard) for shard in shards] == [SHARD_RECORDS, 3]
    entry = lambda at: whole_context(records, contexts, at)
    for found, record in zip((item for shard in shards for item in shard), records):
        assert all(isinstance(example, list) == shared for example in found["examples"])
        assert expanded(found, entry) == at_four_digits(record)


def with_whole_contexts(record: FeatureRecord, contexts: dict) -> FeatureRecord:
    """Its examples as parts of whole contexts, which are put into `contexts`."""
    examples = []
    for number, example in enumerate(record.examples):
        at = 1000 * record.index + number
        contexts[at] = ["<s>", *example.tokens, " end"]
        values = [[p + 1, value] for p, value in enumerate(example.values) if value]
        place = {"example_id": at, "position": example.centre + 1, "context_values": values}
        examples.append(dataclasses.replace(example, **place))
    return dataclasses.replace(record, examples=examples)


def whole_context(records: list[FeatureRecord], contexts: dict, at: int) -> list | None:
    example = records[at // 1000].examples[at % 1000]
    return [contexts[at], example.doc_id, example.source, example.label] if at in contexts else None


def test_output_tokens_that_are_not_shown_are_not_written(tmp_path):
    record = next(fixture.text_records([3], 64))
    test = {"raised": 3.0, "lowered": 2.0, "raised_chance": 2.5, "lowered_chance": 2.5}
    record = dataclasses.replace(record, logit_test=test)
    write_page([record], meta_for([record], 64), {}, tmp_path)
    found = expanded(shards_on_disk(tmp_path)[0][0], lambda _: None)
    assert found.logits["bottom"] == [] and found.logits["top"] == rounded(record.logits["top"])


@pytest.mark.parametrize("step, all_written", [(0.1, False), (1 / 3, False), (1.0625, True)])
def test_edges_are_the_same_figures_when_only_their_ends_are_written(step, all_written):
    edges = [i * step for i in range(101)]
    record = plain_record(0, histogram={"edges": edges, "counts": [1] * 100})
    packed = compact(record, lambda _: None)
    assert expanded(packed, lambda _: None).histogram["edges"] == rounded(edges)
    # 1.0625 has two figures at four digits, depending on the program that rounds it
    assert len(packed["edges"]) == (101 if all_written else 2)


def test_catalog_lists_every_latent_and_marks_those_with_a_record(tmp_path):
    records = [plain_record(7), plain_record(2, label="seven")]
    write_page(records, meta_for(records, 40), {}, tmp_path)
    catalog = catalog_of(tmp_path)
    assert len(catalog["density"]) == len(catalog["max"]) == 40
    assert catalog["records"] == [7, 2]
    assert catalog["labels"] == [None, "seven"]
    dead = [j for j in range(40) if fixture.chance("dead", j) < 1 / 12 and j not in (7, 2)]
    assert dead and all(catalog["density"][j] == 0 and catalog["max"][j] == 0 for j in dead)


def test_preview_holds_the_strongest_tokens_once(tmp_path):
    record = next(fixture.text_records([3], 64))  # negation
    write_page([record], meta_for([record], 64), {}, tmp_path)
    preview = catalog_of(tmp_path)["previews"][0]
    centres = [
        example.tokens[example.centre] for example in record.examples if example.group == "top"
    ]
    assert preview[0] == centres[0]
    assert {token.strip().casefold() for token in preview} == {
        token.strip().casefold() for token in centres
    }
    assert len(preview) == len({token.strip().casefold() for token in preview})


@pytest.mark.parametrize("single_file", [False, True])
def test_no_string_of_the_data_stands_in_the_page_as_markup(tmp_path, single_file):
    record = fixture.hostile_record(0)
    title = "</title><script>alert(1)</script>{{style}}"
    write_page([record], meta_for([record], 4, title=title), {}, tmp_path, single_file=single_file)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    clean = tmp_path / "clean"
    write_page(
        [plain_record(0)], meta_for([plain_record(0)], 4), {}, clean, single_file=single_file
    )
    markup = lambda text: len(re.findall(r"<[a-zA-Z/!]", text))
    assert markup(page) == markup((clean / "index.html").read_text(encoding="utf-8"))
    assert "alert(1)" in page and "<script>alert" not in page
    assert page.count("{{style}}") == 2  # the title, as it was given, in both of its places
    line = json.loads((tmp_path / "features.jsonl").read_text(encoding="utf-8"))
    assert tuple(line["examples"][0]["tokens"]) == fixture.HOSTILE


def test_policy_admits_this_page_s_script_and_style_alone(tmp_path):
    write_page([], meta_for([], 4), {}, tmp_path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    digest = lambda text: (
        "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
    )
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"].split()[0] == digest(script)
    assert rules["style-src"] == digest(style)
    assert "unsafe" not in policy and "http" not in policy
    assert not re.search(r"(src|href)=\"(https?:)?//", page)


def test_the_script_parses_no_html():
    assets = Path(__file__).parents[2] / "saekit" / "inspection" / "assets"
    script = "".join((assets / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = script.replace("http://www.w3.org/2000/svg", "")  # a namespace, not an address
    forbidden = (
        "innerHTML outerHTML insertAdjacentHTML document.write eval( fetch( XMLHttp </script"
        " http:// https://"
    )
    assert [word for word in forbidden.split() if word in script] == []


def test_images_are_written_once_and_named_by_content(tmp_path):
    asked = []

    class Counting(dict):
        def __getitem__(self, key):
            asked.append(key)
            return super().__getitem__(key)

    records = [pictured(0, "aa", "bb"), pictured(1, "bb", "aa")]
    write_page(
        records,
        meta_for(records, 2, modality="image"),
        Counting(aa=PNG, bb=WEBP, unused=PNG),
        tmp_path,
    )
    assert {file.name: file.read_bytes() for file in (tmp_path / "images").iterdir()} == {
        "aa.png": PNG,
        "bb.webp": WEBP,
    }
    assert asked == ["aa", "bb"]
    assert [e["image"] for e in shards_on_disk(tmp_path)[0][1]["examples"]] == ["bb.webp", "aa.png"]
    assert catalog_of(tmp_path)["thumbnails"] == ["aa.png", "bb.webp"]


def test_single_file_holds_shards_and_images(tmp_path):
    records = [pictured(j, "aa", "bb") for j in range(SHARD_RECORDS + 1)]
    result = write_page(
        records,
        meta_for(records, 32, modality="image"),
        {"aa": PNG, "bb": WEBP},
        tmp_path,
        single_file=True,
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["features.jsonl", "index.html"]
    found = blocks(result.index_html)
    assert (
        base64.b64decode(found["image-aa.png"]) == PNG
        and base64.b64decode(found["image-bb.webp"]) == WEBP
    )
    indices = [
        record["index"] for number in (0, 1) for record in unpacked(found[f"shard-{number}"])
    ]
    assert indices == list(range(SHARD_RECORDS + 1))
    assert (
        "file:"
        not in result.index_html.read_text(encoding="utf-8").split("</head>")[0].split("<style>")[0]
    )
    assert result.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())


def test_a_page_without_records_lists_the_latents(tmp_path):
    result = write_page([], meta_for([], 12), {}, tmp_path)
    assert result.features == 0
    assert catalog_of(tmp_path)["shards"] == 0
    assert (tmp_path / "features.jsonl").read_text() == ""


def test_density_may_not_apply(tmp_path):
    record = plain_record(1, density=None)
    write_page([record], meta_for([record], 3), {}, tmp_path)
    assert shards_on_disk(tmp_path)[0][0]["density"] is None


def test_records_are_streamed_a_shard_at_a_time(tmp_path):
    """When a record is asked for, all full shards before it are on disk already."""

    def generate():
        for j in range(3 * SHARD_RECORDS):
            yield plain_record(j)
            assert (
                len(list((tmp_path / "shards").glob("*.js"))) == (j + 1) // SHARD_RECORDS
                if j >= SHARD_RECORDS
                else True
            )
            assert not (tmp_path / "index.html").exists()

    write_page(generate(), meta_for([], 64), {}, tmp_path)
    assert len(shards_on_disk(tmp_path)) == 3


def test_equal_input_gives_equal_bytes(tmp_path):
    records = list(fixture.text_records(range(3), 16))
    for name in "ab":
        write_page(records, meta_for(records, 16), {}, tmp_path / name)
    assert (tmp_path / "a" / "index.html").read_bytes() == (
        tmp_path / "b" / "index.html"
    ).read_bytes()
    assert (tmp_path / "a" / "shards" / "000.js").read_bytes() == (
        tmp_path / "b" / "shards" / "000.js"
    ).read_bytes()


@pytest.mark.parametrize(
    ("records", "images", "message"),
    [
        ([plain_record(9)], {}, "feature 9 is outside the dictionary of 4 latents"),
        ([plain_record(1), plain_record(1)], {}, "feature 1 was given twice"),
        ([pictured(1, "aa")], {}, "no thumbnail was given for image aa"),
        ([pictured(1, "../aa")], {"../aa": PNG}, "is not a file name"),
        ([pictured(1, "aa")], {"aa": b"GIF89a"}, "neither PNG, WebP nor JPEG"),
        ([plain_record(1, max=float("nan"))], {}, "not JSON compliant"),
    ],
)
def test_what_cannot_be_right_is_refused_and_leaves_no_page(tmp_path, records, images, message):
    with pytest.raises(ValueError, match=message):
        write_page(records, fixture.text_meta(4), images, tmp_path)
    assert not (tmp_path / "index.html").exists() and not (tmp_path / "features.jsonl").exists()


def test_lists_must_cover_all_latents(tmp_path):
    with pytest.raises(ValueError, match="density holds 3 values for 4 latents"):
        write_page([], dataclasses.replace(fixture.text_meta(4), density=[0.1] * 3), {}, tmp_path)
