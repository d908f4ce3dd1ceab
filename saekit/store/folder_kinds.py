"""The folders that saekit writes, and which files in them are its own: no others are ever removed.

A folder is recognized by its marker, a JSON file with certain keys that is written first. Its other
files are known by name, or listed in the marker.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saekit.store.files import TEMPORARY

_TOKENIZER = (
    r"tokenizer/(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template|normalizer)\.json"
    r"|tokenizer/(vocab|merges|bpe\.codes)\.txt|tokenizer/[\w.-]+\.model|tokenizer/chat_template\.jinja"
)


@dataclass(frozen=True)
class FolderKind:
    """One kind of output folder. `keys`: a marker has all keys of one of these sets, so that
    another program's file of the same name is not mistaken for one."""

    verb: str
    done: str  # participle for messages: "trained"
    marker: str
    keys: tuple[frozenset[str], ...]
    files: re.Pattern[str]  # of whole paths relative to the folder, with /
    listed: Callable[[dict[str, Any]], set[str]] = lambda marker: set()
    """More files, from the content of the marker."""
    resumable: bool = True
    members: FolderKind | None = None
    """The kind of the folders inside it that are whole outputs themselves."""

    def read_marker(self, folder: Path) -> dict[str, Any] | None:
        """None when the folder is not of this kind."""
        try:
            marker = json.loads((folder / self.marker).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        ours = (
            isinstance(marker, dict)
            and "schema_version" in marker
            and any(keys <= marker.keys() for keys in self.keys)
        )
        return marker if ours else None

    def sort(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """(own files, all others), absolute. A symbolic link in the folder is not ours. Empty
        folders are in neither."""
        marker = self.read_marker(folder)
        listed = {self.marker} if marker is None else {self.marker} | _names(self.listed, marker)
        own, others = [], []
        for parent, folders, names in os.walk(folder):
            # Members sort their own files; the walk does not enter them, nor links.
            links = [name for name in folders if Path(parent, name).is_symlink()]
            members = [name for name in folders if self._is_member(Path(parent, name))]
            for name in members:
                assert self.members is not None
                member_own, member_others = self.members.sort(Path(parent, name))
                own += member_own
                others += member_others
            folders[:] = [name for name in folders if name not in (*links, *members)]
            for name in (*names, *links):
                path = Path(parent, name)
                relative = path.relative_to(folder).as_posix()
                known = self._is_own(relative, listed)
                # wandb links to its latest run
                may_be = not path.is_symlink() or relative.startswith("wandb/")
                (own if known and may_be else others).append(path)
        return own, others

    def _is_member(self, folder: Path) -> bool:
        return self.members is not None and self.members.read_marker(folder) is not None

    def _is_own(self, relative: str, listed: set[str]) -> bool:
        """Also true for the half-written files of a killed process: a file under a temporary name,
        or files in a folder of such a name."""
        parts = relative.split("/")
        for at, part in enumerate(parts):
            if temporary := TEMPORARY.fullmatch(part):
                relative = "/".join([*parts[:at], temporary["name"]])
                break
        return relative in listed or self.files.fullmatch(relative) is not None


def _names(listed: Callable[[dict[str, Any]], set[str]], marker: dict[str, Any]) -> set[str]:
    try:
        return {name for name in listed(marker) if isinstance(name, str)}
    except (KeyError, TypeError, AttributeError):  # a marker that was edited lists nothing
        return set()


def _of_store(manifest: dict[str, Any]) -> set[str]:
    """The files that the manifest lists and, until it is complete, later shards: a kill may have
    prevented it from listing one."""
    names = [shard["name"] for shard in manifest["shards"]]
    more = (
        []
        if manifest["complete"]
        else [f"{n:05d}.safetensors" for n in range(len(names), len(names) + 10_000)]
    )
    return {f"shards/{name}" for name in (*names, *more)} | set(manifest.get("extras", ()))


STORE = FolderKind(
    verb="harvest",
    done="harvested",
    marker="manifest.json",
    keys=(frozenset({"spec", "plan", "shards"}),),
    files=re.compile(rf"config\.toml|vocabulary\.json|\.lock|{_TOKENIZER}"),
    listed=_of_store,
)
INDEX = FolderKind(
    verb="index",
    done="indexed",
    marker="index.json",
    keys=(frozenset({"weights", "stores", "latents"}),),
    files=re.compile(
        r"config\.toml|(by_feature|by_row|origin|features|shown|histograms)\.safetensors|runs/\d{5}\.safetensors|\.lock"
    ),
)
RUN = FolderKind(
    verb="train",
    done="trained",
    marker="run.json",
    keys=(
        frozenset({"content", "seed"}),
        frozenset({"finetune"}),
        frozenset({"published"}),
        frozenset({"converted"}),
    ),
    files=re.compile(
        r"config\.(json|toml)|model\.safetensors|metrics\.jsonl|train_state/state\.safetensors|\.lock|scans/[0-9a-f-]+\.safetensors"
        r"|tensorboard/events\.out\.tfevents\.[^/]+|wandb\.json|trackio\.json|wandb/.+"
        # of an index that a kill left without its marker, or that was to be replaced
        r"|index/(\.[0-9a-f]{16}\.(lock|new/commit)|(\.[0-9a-f]{16}\.new/)?[0-9a-f]{16}/index\.json)"
    ),
    members=INDEX,
)
SWEEP = FolderKind(
    verb="sweep",
    done="made",
    marker="sweep.json",
    keys=(frozenset({"members"}),),
    files=re.compile(r"pareto\.html|\.lock"),
    members=RUN,
)
PAGE = FolderKind(
    verb="inspect",
    done="made",
    marker="inspect.json",
    keys=(frozenset({"checkpoint", "store", "features"}),),
    files=re.compile(
        r"(index\.html|features\.jsonl)(\.part)?|config\.toml|(shards|contexts|patches|words|lookup|map|beside|matches|other)/\d{3,}\.js|images/[0-9a-f]{16,}\.(png|webp|jpg)|\.lock"
    ),
    resumable=False,
)
REPORT = FolderKind(
    verb="compare",
    done="made",
    marker="compare.json",
    keys=(frozenset({"runs", "store"}),),
    files=re.compile(r"report\.html|config\.toml|\.lock"),
    resumable=False,
)
STEERED = FolderKind(
    verb="steer",
    done="made",
    marker="steer.json",
    keys=(frozenset({"checkpoint", "latents"}),),
    files=re.compile(r"report\.html|config\.toml|\.lock"),
    resumable=False,
)
ATTACKED = FolderKind(
    verb="attack",
    done="attacked",
    marker="attack.json",
    keys=(frozenset({"attacked", "latent"}),),
    files=re.compile(r"report\.html|config\.toml|(before|after|difference|made)-\d+\.png|\.lock"),
    resumable=False,
)
EXPORT = FolderKind(
    verb="export",
    done="exported",
    marker="export.json",
    keys=(frozenset({"exported", "format"}),),
    files=re.compile(
        r"(cfg|config)\.json|config\.yaml|(sae_weights|sae|params|layer_\d+)\.safetensors|ae\.pt|batch-\d+\.json"
        r"|[\w.-]+/[\w.-]+/((release|model|sourceset|source)\.jsonl|(features|activations)/batch-\d+\.jsonl\.gz)"
        r"|\.lock"
    ),
    resumable=False,
)
