"""A published dictionary -> an ordinary checkpoint folder: the verb `import`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from saekit.interop.opening import description, open_published
from saekit.models.catalog import restore
from saekit.options import Doc, Overwrite
from saekit.store.checkpoint import write_checkpoint
from saekit.store.folder_kinds import RUN
from saekit.store.run_folder import run_folder

FormatName = Literal[
    "saelens",
    "sparsify",
    "dictionary_learning",
    "gemma_scope",
    "gemma_scope_2",
    "circuit_tracer",
    "openai",
    "llama_scope",
    "llamascopium",
    "qwen_scope",
    "goodfire",
    "hook_z",
    "deepseek_r1",
    "saev",
    "temporal",
    "vit_prisma",
]
IMPORT = replace(RUN, verb="import", done="imported", resumable=False)


@dataclass(frozen=True)
class ImportResult:
    path: str
    """The checkpoint folder."""
    format: str
    sparsity: str
    """Of a model that is not an SAE its kind."""
    d_in: int
    latents: int
    base_model: str | None
    """None where the files do not say."""
    hook: str | None
    """In the format's own words."""


def import_dictionary(
    src: Annotated[
        str | Path,
        Doc(
            "The published dictionary: a folder or file, hf:OWNER/REPO[@REV]/PATH or"
            " saelens:RELEASE/SAE_ID.",
            metavar="SRC",
            positional=True,
        ),
    ],
    out: Annotated[str | Path, Doc("Folder to write.", metavar="OUT", positional=True)],
    *,
    format: Annotated[
        FormatName | None,
        Doc("Its format (default: the one that the registry or its content shows)."),
    ] = None,
    overwrite: Overwrite = False,
) -> ImportResult:
    """Write a published dictionary as a checkpoint folder, which evaluate, inspect and features
    take.

    >>> saekit.import_dictionary("downloads/layer_12/width_16k/average_l0_82", "runs/gemma")

    Parameters
        src: docs/published.md lists the formats. Files on the hub are fetched into the cache of
            huggingface_hub.
        out: the checkpoint folder. config.json has the origin under `published`, and null for what
            the files do not say.

    Raises MissingError when there is nothing at `src` or the hub does not give it, DataError for an
    unknown format, a damaged file or a dictionary that saekit does not compute exactly, and where
    `out` has other files.
    """
    dictionary = open_published(src, format)
    # it must load before it is written
    restore(dictionary.model, dictionary.config, dictionary.tensors)
    with run_folder(Path(out), IMPORT, resume=False, overwrite=overwrite) as folder:
        folder.begin({"published": asdict(dictionary.origin)})
        write_checkpoint(folder.path, description(dictionary), dictionary.tensors)
    origin, config = dictionary.origin, dictionary.config
    return ImportResult(
        str(out),
        origin.format,
        config.get("sparsity", dictionary.model),
        config["d_in"],
        config["latents"],
        origin.base_model,
        origin.hook,
    )
