"""A new result takes the place of an old one atomically, for several folders all or none.

The new result of OUT is written in a folder beside it, `.OUT.new/OUT`. When it is complete,
`.OUT.new/commit` is written, which lists all folders to exchange and their inodes; from then on
every reader (`settle`) finishes what a kill interrupted. The exchange itself is one system call
(renameat2 with RENAME_EXCHANGE), so that there is a result at OUT at every moment; on file systems
without it there are two renames, and `settle` again.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from saekit.errors import DataError
from saekit.store.files import read_json, sync_folder, write_json
from saekit.store.folder_kinds import FolderKind
from saekit.store.lock import locked
from saekit.typed import MisfitError, as_type

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@dataclass(frozen=True)
class Stage:
    """Where the new result of `target` (resolved) is written, and where the old one goes."""

    target: Path

    @property
    def folder(self) -> Path:
        return self.target.with_name(f".{self.target.name}.new")

    @property
    def new(self) -> Path:
        return self.folder / self.target.name  # the same name, since loggers name a run after it

    @property
    def old(self) -> Path:
        return self.folder / "old"

    @property
    def commit(self) -> Path:
        return self.folder / "commit"

    def discard(self, kind: FolderKind) -> None:
        """Remove the remains of an earlier command. Raises DataError when there are other files."""
        for path in (self.new, self.old):
            remove(path, kind)
        if self.folder.is_dir():
            self.commit.unlink(missing_ok=True)
            for temporary in self.folder.glob("commit.*.tmp"):
                temporary.unlink()
            self.folder.rmdir()


def remove(folder: Path, kind: FolderKind) -> None:
    """Remove a folder of ours file by file. Raises DataError, before anything is removed, when it
    holds other files."""
    if not folder.is_dir():
        return
    own, others = kind.sort(folder)
    if others:
        raise foreign(folder, others, kind)
    # The marker last: until then, the folder is known to be ours.
    own.sort(key=lambda path: path.name == kind.marker)
    for path in own:
        path.unlink()
    for parent, _, _ in os.walk(folder, topdown=False):
        os.rmdir(parent)


def foreign(folder: Path, others: list[Path], kind: FolderKind) -> DataError:
    names = ", ".join(sorted(str(path.relative_to(folder)) for path in others)[:3])
    more = f" and {len(others) - 3:,} more" if len(others) > 3 else ""
    return DataError(
        f"{folder} holds files that `saekit {kind.verb}` did not write: {names}{more}",
        "move them elsewhere, or choose another OUT",
    )


def exchange_all(stages: list[Stage], kind: FolderKind) -> None:
    """Put every new result in place and remove the old ones. The caller holds the locks."""
    # Before the first exchange: somebody may have put files there in the meantime.
    for stage in stages:
        if stage.target.is_dir():
            _, others = kind.sort(stage.target)
            if others:
                raise foreign(stage.target, others, kind)
    pairs = [(str(stage.target), os.stat(stage.new).st_ino) for stage in stages]
    for stage in stages:
        write_json(stage.commit, {"schema_version": 1, "pairs": pairs})
    _finish(pairs, kind)


def settle(target: Path, kind: FolderKind) -> None:
    """Finish an exchange that was interrupted, if there is one. Also for readers: if they lack the
    permission, nothing changes."""
    stage = Stage(Path(os.path.realpath(target)))
    if not stage.target.name or not stage.commit.exists():  # nothing is exchanged for "/"
        return
    with suppress(DataError, PermissionError), locked(stage.target):
        finish(stage, kind)


def finish(stage: Stage, kind: FolderKind) -> None:
    """The same under the caller's lock."""
    if not stage.commit.exists():
        return
    try:
        pairs = as_type(
            read_json(stage.commit, "a list of folders").get("pairs"),
            list[tuple[str, int]],
            "pairs",
        )
    except MisfitError as error:
        raise _damaged(stage, str(error)) from None
    # All hooks of a harvest are in one folder.
    if any(Path(name).parent != stage.target.parent for name, _ in pairs):
        raise _damaged(stage, f"it lists folders outside {stage.target.parent}")
    _finish(pairs, kind)


def _damaged(stage: Stage, problem: str) -> DataError:
    hint = (
        f"{stage.target} is the old result, {stage.new} the new one: keep one of them, and remove"
        f" {stage.folder}"
    )
    return DataError(f"{stage.commit} is damaged: {problem}", hint)


def _finish(pairs: Sequence[tuple[str, int]], kind: FolderKind) -> None:
    for name, inode in pairs:
        stage = Stage(Path(name))
        if stage.new.is_dir() and os.stat(stage.new).st_ino == inode:
            _exchange(stage)
            sync_folder(stage.target.parent)
    for name, _ in pairs:
        Stage(Path(name)).discard(kind)


def _exchange(stage: Stage) -> None:
    if not os.path.lexists(stage.target):
        os.rename(stage.new, stage.target)
        return
    arguments = (
        _AT_FDCWD,
        os.fsencode(stage.new),
        _AT_FDCWD,
        os.fsencode(stage.target),
        _RENAME_EXCHANGE,
    )
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is not None and rename(*arguments) == 0:
        return
    if rename is not None and ctypes.get_errno() not in (
        errno.EINVAL,
        errno.ENOSYS,
        errno.EOPNOTSUPP,
    ):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(stage.target))
    os.rename(stage.target, stage.old)
    os.rename(stage.new, stage.target)
