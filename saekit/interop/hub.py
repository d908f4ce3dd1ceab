"""`hf:OWNER/REPO[@REV]/PATH` -> local files, through huggingface_hub only: its cache, and HF_TOKEN,
HF_HUB_OFFLINE and HF_ENDPOINT as that client reads them.

Only the files of the one dictionary are fetched. Each format declares which these are (`FILES` of
its module); the list of the repo's files says which formats may be at PATH.
"""

from __future__ import annotations

import difflib
import glob
import posixpath
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from saekit.errors import MissingError, UsageError
from saekit.interop.hub_errors import endpoint, explained, unreachable
from saekit.types import Progress

if TYPE_CHECKING:
    from saekit.interop.dictionary import Files

PREFIX = "hf:"
NAME = re.compile(
    r"hf:(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<path>.*))?"
)
NEAR = 5  # names that an error lists
_report: ContextVar[Callable[[Progress], None]] = ContextVar("report", default=lambda _: None)


@dataclass(frozen=True)
class HubName:
    repo: str
    revision: str | None
    """A branch, a tag or a commit; None: the default branch."""
    path: str
    """A folder or a file in the repo; "": the root."""

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return PREFIX + self.repo + at + (f"/{self.path}" if self.path else "")


@dataclass(frozen=True)
class Fetched:
    path: Path
    """The dictionary's folder or file, in the cache."""
    repo: str
    commit: str


@contextmanager
def reporting(progress: Callable[[Progress], None]) -> Iterator[None]:
    """Downloads in the body report to `progress`; outside of such a block they are silent."""
    token = _report.set(progress)
    try:
        yield
    finally:
        _report.reset(token)


def parsed(name: str) -> HubName:
    """Raises UsageError for a text that is not such a name. A slash in a revision is written
    %2F."""
    match = NAME.fullmatch(name)
    path = ((match and match["path"]) or "").strip("/")
    if match is None or any(part in ("", ".", "..") for part in path.split("/") if path):
        raise UsageError(
            f"{name} is not a name on the hub", "write hf:OWNER/REPO/PATH or hf:OWNER/REPO@REV/PATH"
        )
    revision = match["revision"]
    return HubName(match["repo"], unquote(revision) if revision else None, path)


def fetch(name: HubName, formats: Mapping[str, Files]) -> Fetched:
    """The files of one dictionary, in the client's cache.

    formats: those that it may have, by name. A file that the cache has is not fetched again. Raises
    MissingError for whatever the hub does not give, UsageError for a malformed repo name.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name.repo)
    except HFValidationError:
        raise UsageError(
            f"{name.repo} is not a repo name", "write hf:OWNER/REPO/PATH, as on the hub's pages"
        ) from None
    listing = _remote_files(name)
    if listing is None:  # offline, or no answer
        return _from_cache(name, formats)
    files = _chosen(name, listing, formats)
    snapshot: Path | None = None
    for file in files:
        # the first one records which commit the revision is, and all others are of that commit
        revision = snapshot.name if snapshot else name.revision or constants.DEFAULT_REVISION
        local = _download(name, file, revision)
        snapshot = snapshot or local.parents[file.count("/")]
    assert snapshot is not None, "files is never empty"
    return Fetched(snapshot / name.path, name.repo, snapshot.name)


def files_of(path: str, files: Collection[str], formats: Mapping[str, Files]) -> list[str]:
    """Those of a repo's files that the dictionary at `path` consists of, its tensors last, so that
    a cache that has them has all; empty where there is none.

    Several formats may claim a path: then the files of all, and the content decides. A file that no
    format claims is fetched by itself.
    """
    tensors: set[str] = {path} if path in files else set()
    beside: set[str] = set()
    folder, name = posixpath.split(path) if tensors else (path, "")
    for format in formats.values():
        # whether the format claims the path
        if name:
            star = next((_star(name, p) for p in format.file if fnmatchcase(name, p)), None)
            if star is None:
                continue
        else:
            matches = (_matching(folder, pattern, files) for pattern in format.folder)
            star, present = "", next((names for names in matches if names), [])
            if not present:
                continue
            tensors.update(present)
        # what it reads with the tensors
        for pattern in format.beside:
            beside.update(_matching(folder, pattern.replace("{}", glob.escape(star)), files))
    return [*sorted(beside - tensors), *sorted(tensors)]


def _star(name: str, pattern: str) -> str:
    """What * stands for in a name that matches."""
    before, _, after = pattern.partition("*")
    return name[len(before) : len(name) - len(after)]


def _matching(folder: str, pattern: str, files: Iterable[str]) -> list[str]:
    whole = posixpath.normpath(posixpath.join(glob.escape(folder), pattern))
    depth = whole.count("/")
    return [f for f in files if f.count("/") == depth and fnmatchcase(f, whole)]


def _chosen(name: HubName, files: Collection[str], formats: Mapping[str, Files]) -> list[str]:
    """Raises MissingError with near names where there is no dictionary at the path."""
    if chosen := files_of(name.path, files, formats):
        return chosen
    where = f"{name.repo}{f' at {name.revision}' if name.revision else ''}"
    below = [file for file in files if not name.path or file.startswith(name.path + "/")]
    if below:
        cause = f"{name.path or 'the root'} of {where} holds no dictionary in a known format"
    else:
        cause = f"there is no {name.path} in {where}"
    raise MissingError(cause, near_names(name.path, _dictionaries(below or files, formats)))


def _dictionaries(files: Iterable[str], formats: Mapping[str, Files]) -> list[str]:
    """The folders and files that may be dictionaries, by their names."""
    paths: set[str] = set()
    for format in formats.values():
        for parts in (file.split("/") for file in files):
            for pattern in format.folder:
                depth = pattern.count("/") + 1
                if fnmatchcase("/".join(parts[-depth:]), pattern):
                    paths.add("/".join(parts[:-depth]))
            if any(fnmatchcase(parts[-1], pattern) for pattern in format.file):
                paths.add("/".join(parts))
    return sorted(paths)


def near_names(word: str, known: Collection[str]) -> str:
    """A hint that lists known names near a word; of no near ones, the first."""
    near = difflib.get_close_matches(word, [name for name in known if name], n=NEAR, cutoff=0.6)
    shown = near or sorted(name for name in known if name)[:NEAR]
    if not shown:
        return "docs/published.md lists the formats that saekit opens"
    more = f" and {len(known) - len(shown):,} more" if len(known) > len(shown) else ""
    return f"{'near names' if near else 'it has'}: {', '.join(shown)}{more}"


def _remote_files(name: HubName) -> list[str] | None:
    """The files of the repo, by the hub; None when it is not asked (offline mode) or does not
    answer."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        info = HfApi().model_info(name.repo, revision=name.revision)
    except Exception as error:
        if unreachable(error):
            return None
        raise explained(error, name.repo, name.revision) from None
    names = [file.rfilename for file in info.siblings or ()]
    return [file for file in names if ".." not in file.split("/")]  # none outside the cache


def _download(name: HubName, file: str, revision: str) -> Path:
    """One file in the cache, fetched where it is missing. The client refuses a file of another
    size than the hub announces, and keeps nothing of it."""
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(name.repo, file, revision=revision, tqdm_class=_bar(file))
    except Exception as error:
        raise explained(error, name.repo, name.revision, file) from None
    return Path(path)


def _from_cache(name: HubName, formats: Mapping[str, Files]) -> Fetched:
    """The cached copy, when the hub is not asked or does not answer; reported where it was asked.
    Raises MissingError where there is none."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    snapshot, chosen = Path(), []
    try:
        # "/" matches no file: only the folder is looked up
        snapshot = Path(
            snapshot_download(
                name.repo, revision=name.revision, local_files_only=True, allow_patterns="/"
            )
        )
    except LocalEntryNotFoundError:
        pass
    else:
        files = [f.relative_to(snapshot).as_posix() for f in snapshot.rglob("*") if f.is_file()]
        chosen = files_of(name.path, files, formats)
    if not chosen and constants.HF_HUB_OFFLINE:
        raise MissingError(
            f"{name} is not in the cache, and offline mode is on (HF_HUB_OFFLINE)",
            f"unset HF_HUB_OFFLINE, or fetch it into {constants.HF_HUB_CACHE} on a machine with"
            " network access",
        )
    if not chosen:
        raise MissingError(
            f"{name} is not in the cache, and {endpoint()} does not answer",
            "check the network and HF_ENDPOINT",
        )
    if not constants.HF_HUB_OFFLINE:
        message = f"{endpoint()} does not answer: the cached copy of {name} is used"
        _report.get()(Progress("download", 0, 0, "bytes", message=message))
    return Fetched(snapshot / name.path, name.repo, snapshot.name)


def _bar(file: str) -> Any:
    """What the client takes as a progress bar: it reports bytes, and prints nothing."""
    from tqdm import tqdm

    report, name = _report.get(), posixpath.basename(file)

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"disable": True})

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            report(Progress(name, int(self.n), int(self.total or 0), "bytes"))

        # of the xet protocol: bytes on the wire, besides those of the file
        def update_transfer(self, n: float | None = 1) -> None: ...

        def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None: ...

    return Bar
