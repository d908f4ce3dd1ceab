"""Another dictionary on a page: what the page says of it, and the files that hold its matches.

OUT/matches/NNN.js  for each of 512 latents by number, its matches: other latent, cosine, rows
                    together, Jaccard index, correlation; null for one without a page
OUT/other/000.js    list of the other dictionary: densities, maxima, labels, previews
OUT/beside/NNN.js   records of the other's latents that are a match of a latent on the page,
                    with their strongest examples; contexts and images are those of the page
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from saekit.inspection.compact import compact, rounded
from saekit.inspection.site import Contexts, Folder, Inline, Pictures, pack
from saekit.types import FeatureRecord

if TYPE_CHECKING:
    from saekit.inspection.page import Catalog, PageMeta

LATENTS_EACH_FILE = 512
# of what the list has of each of the other's latents
LISTED = ("density", "max", "score", "meanings", "records", "labels", "previews", "data_labels")


@dataclass(frozen=True)
class Match:
    """A latent of the other dictionary, beside one of the page."""

    index: int
    cosine: float
    """Of their decoder rows."""
    together: int | None
    """Rows on which both are active; None, as the next two, without an index of both."""
    jaccard: float | None
    correlation: float | None
    """Pearson's, of their activations over all rows."""


@dataclass(frozen=True)
class Beside:
    meta: PageMeta
    """Of the other dictionary."""
    facts: Mapping[str, Any]
    """What the page says about both (saekit.inspection.beside)."""
    matches: Mapping[int, Sequence[Match]]
    """Of the latents on the page."""
    records: Iterable[FeatureRecord]
    """Of every latent of the other that is a match."""


def write_beside(
    beside: Beside,
    catalog: Catalog,
    latents: int,
    each_shard: int,
    site: Folder | Inline,
    pictures: Pictures,
    texts: Contexts,
) -> dict[str, Any]:
    """Writes the files, and returns what the catalog of the page says. `catalog` is an empty one of
    the other dictionary; `latents` are those of the page's."""
    records = iter(beside.records)
    number = 0
    while shown := [pictures.by_file(record) for record in islice(records, each_shard)]:
        for record in shown:
            texts.add(record.examples)
            catalog.add(record)
        site.part("beside", number, pack([compact(record, texts.of) for record in shown]))
        number += 1
    listed = catalog.to_json([])
    site.part("other", 0, pack({name: listed[name] for name in (*LISTED, "thumbnails")}))
    numbers = range(0, latents, LATENTS_EACH_FILE)
    for number, first in enumerate(numbers):
        of_file = range(first, min(first + LATENTS_EACH_FILE, latents))
        site.part("matches", number, pack([_flat(beside.matches.get(j)) for j in of_file]))
    return {**rounded(dict(beside.facts)), "each_file": LATENTS_EACH_FILE}


def _flat(matches: Sequence[Match] | None) -> list[Any] | None:
    if matches is None:
        return None
    return rounded([value for match in matches for value in vars(match).values()])
