"""FeatureRecords -> a page that opens from disk.

The form follows from what a browser allows on file://. `fetch` of another file fails there, but
`<script src>` works: so records are in `shards/NNN.js`, sixteen per file, each a single call of a
loader function with gzipped JSON in base64, loaded when one of its features is opened. Style sheet
and script are in index.html itself and allowed by their hash, and the content security policy
denies everything else: the page cannot reach a network, whatever a token or label says.

    OUT/index.html      the page, with the list of all latents
    OUT/shards/NNN.js   records, rounded to 4 significant digits (saekit.inspection.compact)
    OUT/images/KEY.png  thumbnails, shared between records (.webp and .jpg by content)
    OUT/contexts/NNN.js tokens of whole contexts, shared between records, loaded when one is opened
    OUT/patches/NNN.js  of images: the latents of each patch, loaded when a picture is enlarged
    OUT/lookup/NNN.js   tokens, labels and nearest rows of all latents (saekit.inspection.lookup),
                        loaded when something is searched
    OUT/map/000.js      where latents are on the map of directions, loaded when it is opened
    OUT/beside/, matches/, other/   another dictionary (saekit.inspection.beside_page)
    OUT/features.jsonl  where asked: one FeatureRecord.to_json() per line, at full precision; every
                        number on the page is one of these, rounded

`single_file` puts shards and images into index.html. Records are streamed: only the line of each in
the list, and the contexts, are kept.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from saekit.inspection.beside_page import Beside, write_beside
from saekit.inspection.compact import compact, rounded
from saekit.inspection.lookup import Lookup
from saekit.inspection.map import DirectionMap
from saekit.inspection.patches import PatchFiles, PatchLatents
from saekit.inspection.site import (
    CONTEXTS_EACH_FILE,
    Contexts,
    Folder,
    Inline,
    Pictures,
    inert,
    pack,
)
from saekit.models.metrics import METRICS
from saekit.types import Example, FeatureRecord

SCHEMA = 3
# about 25 kB per shard for text: a feature opens at once, and the next ones are already loaded
SHARD_RECORDS = 16
PREVIEW_TOKENS = 6
PREVIEW_LABELS = 4
PREVIEW_CHARACTERS = 32

# In this order they are one script; the browser sees one closure.
SCRIPTS = (
    "format.js",
    "expand.js",
    "data.js",
    "explain.js",
    "bar.js",
    "names.js",
    "charts.js",
    "text.js",
    "images.js",
    "patches.js",
    "feature.js",
    "gallery.js",
    "map_drawing.js",
    "map.js",
    "beside.js",
    "views.js",
    "search.js",
    "lookup.js",
    "words.js",
    "answers.js",
    "pageless.js",
    "density_filter.js",
    "filters.js",
    "list.js",
    "explorer.js",
)


@dataclass(frozen=True)
class PageMeta:
    """What the page says about the run as a whole. `density`, `max`, and where there are scores
    `score` and `meanings`, have a value for every latent."""

    title: str  # "SmolLM2-135M · blocks.9 · topk k=32"
    modality: str  # text | image
    model: str
    hook: str
    dataset: str
    checkpoint: str
    d_in: int
    latents: int
    rows: int  # of the store
    density: Sequence[float | None]  # None: dense code, density does not apply
    max: Sequence[float]
    sparsity: str | None = None  # "topk k=32"
    # those of the training, by name (saekit.models.metrics)
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    logit_note: str = "direct path through the unembedding, no final norm"
    # sentences for the "about" panel: what was capped, dropped or not computed
    notes: Sequence[str] = ()
    score: Sequence[float | None] = ()  # saekit.inspection.score
    meanings: Sequence[Mapping[str, Any] | None] = ()  # FeatureRecord.meaning
    gallery: Sequence[Mapping[str, Any]] = ()  # {"index", "twins"}: what the page opens with
    command: str = ""  # the shell command that made the page, without its features
    command_folder: str = ""  # the name of the folder in which it is to be run
    # latents of which at least half of the active rows are the first of their context
    starts: Sequence[int] = ()
    identity: str = ""  # of checkpoint and store; a reader's own names are kept under it


@dataclass(frozen=True)
class PageResult:
    """The path of the page, how many features it has, and the bytes of all files written."""

    index_html: Path
    features: int
    bytes: int


def write_page(
    records: Iterable[FeatureRecord],
    meta: PageMeta,
    images: Mapping[str, bytes],
    out: Path,
    *,
    single_file: bool = False,
    contexts: MutableMapping[int, list[str]] | None = None,
    jsonl: bool = True,
    direction_map: DirectionMap | None = None,
    beside: Beside | None = None,
    patches: PatchLatents | None = None,
    lookup: Lookup | None = None,
) -> PageResult:
    """Write the explorer into `out`, which is created where it is missing.

    `records` may be a generator of any length. `images` maps `Example.image` to an encoded
    thumbnail (PNG, WebP or JPEG), and is read once for each key that occurs. `contexts` maps
    `Example.example_id` to the tokens of the whole context; entries are taken out when they are
    written, so that `records` may put them in as it goes. `jsonl`: also write features.jsonl.
    `direction_map` and `beside` add the map and another dictionary; records of the latter are read
    after `records`.
    `patches` says which latents are active in each patch of an image; `lookup`, what is known of
    the latents without a record.
    index.html and features.jsonl have their names only when complete.

    Raises ValueError for a record, thumbnail or list that cannot be right: an index outside the
    dictionary or given twice, a key that is not a file name, bytes that are not an image, a list of
    another length than `meta.latents`, a number that is not finite.
    """
    _check(meta)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    page_part = out / "index.html.part"
    head, tail, script = _document(meta.title, single_file)
    # One pass over the records fills all files.
    catalog = Catalog(meta)
    with (
        page_part.open("w", encoding="utf-8", newline="\n") as page,
        _lines(out if jsonl else None) as lines,
    ):
        page.write(head)
        site = Inline(page) if single_file else Folder(out)
        pictures = Pictures(images, site)
        texts = Contexts({} if contexts is None else contexts, site)
        grids = PatchFiles(patches, site)
        shard: list[dict[str, Any]] = []
        # A shard at a time.
        for record in records:
            lines(record)
            record = pictures.by_file(record)
            texts.add([*record.examples, *record.samples])
            grids.add([*record.examples, *record.samples])
            catalog.add(record)
            shard.append(compact(record, texts.of))
            if len(shard) == SHARD_RECORDS:
                site.shard(catalog.shards, pack(shard))
                catalog.shards, shard = catalog.shards + 1, []
        if shard:
            site.shard(catalog.shards, pack(shard))
            catalog.shards += 1
        settings: dict[str, Any] = {"single_file": single_file, "jsonl": jsonl}
        if direction_map is not None:
            settings["map"] = rounded(direction_map.header())
            site.part("map", 0, pack(direction_map.packed(meta.latents)))
        if beside is not None:
            other = Catalog(beside.meta)
            settings["beside"] = write_beside(
                beside, other, meta.latents, SHARD_RECORDS, site, pictures, texts
            )
        texts.close()
        grids.close()
        if lookup is not None:
            settings["lookup"] = lookup.header()
            for number, packed in lookup.files.items():
                site.part("lookup", number, packed)
        content = catalog.to_json(texts.ids, **settings)
        page.write(inert("catalog", pack({**content, "patches": grids.to_json()})))
        page.write(script + tail)
    # Files take their places when they are complete.
    names = ("features.jsonl", "index.html") if jsonl else ("index.html",)
    written = site.bytes + sum((out / f"{name}.part").stat().st_size for name in names)
    for name in names:
        os.replace(out / f"{name}.part", out / name)
    return PageResult(index_html=out / "index.html", features=len(catalog.indices), bytes=written)


@contextmanager
def _lines(out: Path | None) -> Iterator[Callable[[FeatureRecord], object]]:
    """What takes each record for features.jsonl in `out`; None: nothing is written."""
    if out is None:
        yield lambda record: None
        return
    with (out / "features.jsonl.part").open("w", encoding="utf-8") as lines:
        yield lambda record: lines.write(json.dumps(record.to_json(), allow_nan=False) + "\n")


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 9.5e6 else f"{size / 1e6:.1f} MB"


class Catalog:
    """The list on the left: all latents by number, and what a row shows of those with a record."""

    def __init__(self, meta: PageMeta) -> None:
        self.meta = meta
        self.indices: dict[int, None] = {}  # insertion order is shard order
        self.labels: list[str | None] = []
        self.previews: list[list[str]] = []
        self.data_labels: list[list[str]] = []
        self.thumbnails: list[str | None] = []
        self.shards = 0

    def add(self, record: FeatureRecord) -> None:
        index = record.index
        if not 0 <= index < self.meta.latents:
            raise ValueError(
                f"feature {index} is outside the dictionary of {self.meta.latents} latents"
            )
        if index in self.indices:
            raise ValueError(f"feature {index} was given twice")
        self.indices[index] = None
        top = [example for example in record.examples if example.group == "top"] or record.examples
        self.labels.append(record.label)
        self.previews.append(_preview_tokens(top))
        labels = Counter(example.label for example in top if example.label is not None)
        self.data_labels.append(
            [label[:PREVIEW_CHARACTERS] for label, _ in labels.most_common(PREVIEW_LABELS)]
        )
        self.thumbnails.append(next((example.image for example in top if example.image), None))

    def to_json(self, contexts: list[int], **settings: Any) -> dict[str, Any]:
        named = {f.name: getattr(self.meta, f.name) for f in dataclasses.fields(self.meta)}
        meta = {**named, "metrics": _metrics(self.meta), "notes": list(self.meta.notes)}
        return {
            "schema": SCHEMA,
            "meta": {
                name: rounded(value)
                for name, value in meta.items()
                if name not in ("density", "max", "score", "meanings", "gallery", "starts")
            },
            "density": rounded(list(self.meta.density)),
            "max": rounded(list(self.meta.max)),
            "score": rounded(list(self.meta.score)),
            "meanings": _compact_meanings(self.meta.meanings),
            "gallery": [dict(shown) for shown in self.meta.gallery],
            "starts": list(self.meta.starts),
            "records": list(self.indices),
            "labels": self.labels,
            "previews": self.previews,
            "data_labels": self.data_labels,
            "thumbnails": self.thumbnails,
            "shard_records": SHARD_RECORDS,
            "shards": self.shards,
            "contexts": contexts,
            "contexts_each_file": CONTEXTS_EACH_FILE,
            **settings,
        }


def _compact_meanings(meanings: Sequence[Mapping[str, Any] | None]) -> list[list[Any] | None]:
    """[kind, text, count, of, lift] for each latent: there are as many as latents."""
    keys = ("kind", "text", "count", "of", "lift")
    return [
        None if meaning is None else [_short(rounded(meaning.get(key))) for key in keys]
        for meaning in meanings
    ]


def _short(value: Any) -> Any:
    return value[:PREVIEW_CHARACTERS] if isinstance(value, str) else value


def _metrics(meta: PageMeta) -> list[dict[str, str]]:
    """Those that apply, as the page shows them."""
    return [
        {"name": name, "text": METRICS[name].text(value), "meaning": METRICS[name].meaning}
        for name, value in meta.metrics.items()
        if name in METRICS and value is not None and not METRICS[name].foreign
    ]


def _preview_tokens(examples: list[Example]) -> list[str]:
    """The tokens on which the latent fires most strongly, strongest first, each once (whatever its
    case and spacing)."""
    seen: dict[str, str] = {}
    for example in examples:
        if example.tokens:
            at = example.centre or 0
            # only the first of several tokens of one character has a text
            token = next((token for token in reversed(example.tokens[: at + 1]) if token), "")
            seen.setdefault(token.strip().casefold(), token[:PREVIEW_CHARACTERS])
    return list(seen.values())[:PREVIEW_TOKENS]


def _document(title: str, single_file: bool) -> tuple[str, str, str]:
    """The template with everything but the data: what is before the data, what is after it, and the
    script element."""
    style = theme() + asset("explorer.css")
    script = "(() => {\n" + "\n".join(asset(name) for name in SCRIPTS) + "})();\n"
    values = {
        "title": html.escape(title),
        "policy": _policy(style, script, single_file),
        "style": style,
    }
    # one pass, so that a value that contains {{name}} stays as it is
    names = r"\{\{(title|policy|style)\}\}"
    filled = re.sub(names, lambda match: values[match[1]], asset("explorer.html"))
    head, tail = filled.split("{{data}}\n")
    return head, tail, f"<script>{script}</script>\n"


def _policy(style: str, script: str, single_file: bool) -> str:
    """Deny by default; allow the page's own style and script by hash, and files next to it (`file:`
    on disk, 'self' on a host)."""
    files = "" if single_file else " 'self' file:"
    return (
        f"default-src 'none'; script-src {_hash(script)}{files}; style-src {_hash(style)}; "
        f"img-src data:{files}; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def theme() -> str:
    """Colors and type of every page, as CSS."""
    return asset("theme.css")


def asset(name: str) -> str:
    """A file of the page: a style sheet, a script or its template."""
    return resources.files("saekit.inspection").joinpath("assets", name).read_text(encoding="utf-8")


def _check(meta: PageMeta) -> None:
    if meta.modality not in ("text", "image"):
        raise ValueError(f"modality {meta.modality!r} is neither text nor image")
    for name in ("density", "max", "score", "meanings"):
        length = len(getattr(meta, name))
        optional = name in ("score", "meanings") and length == 0
        if length != meta.latents and not optional:
            raise ValueError(f"{name} holds {length} values for {meta.latents} latents")
