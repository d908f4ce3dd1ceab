"""Checkpoints -> the weight files of another program, or a refusal that names what the format
cannot say and the formats that can."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from saekit.errors import DataError, UsageError, opt
from saekit.interop.opening import open_checkpoint
from saekit.interop.outgoing import Outgoing, Writer, outgoing
from saekit.interop.writers import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope_2,
    saelens,
    sparsify,
)

WRITERS: dict[str, Writer] = {
    "saelens": saelens,
    "sparsify": sparsify,
    "dictionary_learning": dictionary_learning,
    "gemma_scope_2": gemma_scope_2,
    "circuit_tracer": circuit_tracer,
}
SETS = ("circuit_tracer",)  # formats of several dictionaries in one folder


def dictionaries_for(format: str, checkpoints: Sequence[str | Path]) -> list[Outgoing]:
    """The dictionaries of checkpoint folders, or of published dictionaries, known to go into the
    format (a name in WRITERS). Raises UsageError for several where it holds one, DataError for what
    it cannot say, and what `open_checkpoint` raises."""
    if len(checkpoints) > 1 and format not in SETS:
        raise UsageError(
            f"{opt('format', format)} holds one dictionary, and {len(checkpoints)} were given",
            f"export each into a folder of its own; {opt('format', *SETS)} holds one per layer",
        )
    dictionaries = [outgoing(open_checkpoint(path)) for path in checkpoints]
    for dictionary in dictionaries:
        check(format, dictionary)
    return dictionaries


def check(format: str, dictionary: Outgoing) -> None:
    """Raise DataError where the format cannot say what the dictionary computes."""
    says = WRITERS[format].SAYS
    unsaid = [need for need in dictionary.needs if need not in says]
    if not unsaid:
        return
    able = [name for name, writer in WRITERS.items() if writer.SAYS.issuperset(dictionary.needs)]
    ways = [opt("format", *able)] if able else []
    if dictionary.code == "topk":
        converted = dataclasses.replace(dictionary, code="jumprelu")
        if says.issuperset(converted.needs):
            ways.append(f"first saekit convert {dictionary.where} OUT --to jumprelu --store STORE")
    hint = ", or ".join(ways) or "no format that saekit writes does (docs/published.md)"
    raise DataError(f"{dictionary.where}: {format} files do not hold {unsaid[0]}", hint)
