"""Write emoji.tsv from OpenMoji's own table (data/openmoji.csv of the npm package openmoji 17.0.0).

python -m saekit.embedded.openmoji.make_table openmoji.csv
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from saekit.embedded.openmoji.table import FILE


def lines_of(source: Path) -> list[str]:
    """The lines of emoji.tsv, from OpenMoji's table."""
    with source.open(encoding="utf-8", newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if not row["group"].startswith("extras") and row["group"] != "component"
        ]
    variants: dict[str, list[str]] = {}
    for row in rows:
        if row["skintone"]:
            variants.setdefault(row["skintone_base_hexcode"], []).append(row["hexcode"])
    columns = ("hexcode", "group", "subgroups", "annotation")
    return [
        "\t".join(
            [*(row[column] for column in columns), " ".join(variants.get(row["hexcode"], []))]
        )
        for row in rows
        if not row["skintone"]
    ]


if __name__ == "__main__":
    FILE.write_text("".join(f"{line}\n" for line in lines_of(Path(sys.argv[1]))), encoding="utf-8")
