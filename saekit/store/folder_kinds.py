"""The folders that saekit writes, and which files in them are its own: nothing else in them is ever
removed.

A folder is told by its marker, a JSON file with certain keys that is written first. What else
belongs to it is known by name, or listed in the marker.
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
    """`keys`: sets of keys of which a marker holds one, so that another program's file of the same
    name is none."""

    verb: str
    done: str  # "trained": what happened to such a folder, in messages
    marker: str
    keys: tuple[frozenset[str], ...]
    files: re.Pattern[str]  # whole paths relative to the folder, with /
    listed: Callable[[dict[str, Any]], set[str]] = lambda marker: set()
    """More files, by what the marker says."""
    resumable: bool = True
    members: FolderKind | None = None
    """Of folders in it that are whole outputs themselves."""

    def read_marker(self, folder: Path) -> dict[str, Any] | None:
        """None where the folder is not of this kind."""
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
        """(own files, all others), absolute. A symbolic link in the folder is somebody's. Empty
        folders are in neither."""
        marker = self.read_marker(folder)
        listed = {self.marker} if marker is None else {self.marker} | _names(self.listed, marker)
        own, others = [], []
        for parent, folders, names in os.walk(folder):
            links = [name for name in folders if Path(parent, name).is_symlink()]
            members = (
                []
                if self.members is None
                else [n for n in folders if self.members.read_marker(Path(parent, n)) is not None]
            )
            for name in members:
                of_member = self.members.sort(Path(parent, name))
                own += of_member[0]
                others += of_member[1]
            folders[:] = [name for name in folders if name not in (*links, *members)]
            for name in (*names, *links):
                path = Path(parent, name)
                relative = path.relative_to(folder).as_posix()
                known = self._is_own(relative, listed)
                # wandb links to its latest run
                may_be = not path.is_symlink() or relative.startswith("wandb/")
                (own if known and may_be else others).append(path)
        return own, others

    def _is_own(self, relative: str, listed: set[str]) -> bool:
        """Also what a killed process left half written: a file under a temporary name, or files in
        a folder of such a name."""
        parts = relative.split("/")
        at = next((i for i, part in enumerate(parts) if TEMPORARY.fullmatch(part)), None)
        if at is not None:
            relative = "/".join([*parts[:at], TEMPORARY.fullmatch(parts[at])["name"]])
        return relative in listed or self.files.fullmatch(relative) is not None


def _names(listed: Callable[[dict[str, Any]], set[str]], marker: dict[str, Any]) -> set[str]:
    try:
        return {name for name in listed(marker) if isinstance(name, str)}
    except (KeyError, TypeError, AttributeError):  # a marker that somebody has edited names nothing
        return set()


def _of_store(manifest: dict[str, Any]) -> set[str]:
    """What the manifest names, and while more shards come, those that a kill kept it from
    naming."""
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
RUN = FolderKind(
    verb="train",
    done="trained",
    marker="run.json",
    keys=(frozenset({"content", "seed"}), frozenset({"finetune"})),
    files=re.compile(
        r"config\.(json|toml)|model\.safetensors|metrics\.jsonl|train_state/state\.safetensors|\.lock|scans/[0-9a-f-]+\.safetensors"
        r"|tensorboard/events\.out\.tfevents\.[^/]+|wandb\.json|trackio\.json|wandb/.+"
    ),
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
        r"(index\.html|features\.jsonl)(\.part)?|config\.toml|shards/\d{3,}\.js|images/[0-9a-f]{16,}\.(png|webp|jpg)|\.lock"
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
