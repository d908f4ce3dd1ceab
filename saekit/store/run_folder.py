"""The folder that a command writes: locked, known to be ours, and once it has a complete result,
never without one.

A new or resumed result is written to OUT itself, where it can be watched. With `overwrite` the old
result stays in OUT until the new one is complete (saekit.store.swap). A command that cannot be
resumed always writes beside OUT, so that OUT is complete or absent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saekit.errors import DataError, NumericsError, UsageError, opt
from saekit.store.files import TEMPORARY, write_config, write_json
from saekit.store.folder_kinds import FolderKind
from saekit.store.lock import IN_FOLDER, locked
from saekit.store.oserrors import user_error, writing
from saekit.store.swap import Stage, exchange_all, finish, foreign

Differs = Callable[[int, Path], str]
RESUME, OVERWRITE = opt("resume", True), opt("overwrite", True)


@dataclass(frozen=True)
class RunFolder:
    out: Path
    """The path that the user gave."""
    path: Path
    """Where to write until the command ends."""
    resuming: bool
    kind: FolderKind

    def begin(self, marker: dict[str, Any], settings: dict[str, Any] | None = None) -> None:
        """Write the marker, by which the folder is known and a resume is checked, unless a resumed
        result has one; and config.toml, the resolved settings by option."""
        if not self.resuming:
            write_json(self.path / self.kind.marker, {"schema_version": 1, **marker})
        if settings is not None:
            write_config(self.path / "config.toml", settings)

    @property
    def notice(self) -> str | None:
        """A line for the user when OUT keeps an older result until this one is complete."""
        staged = self.path != Path(os.path.realpath(self.out))
        return (
            f"{self.out} keeps the old result until the new one is complete"
            if staged and self.out.exists()
            else None
        )


@contextmanager
def run_folder(
    out: Path,
    kind: FolderKind,
    *,
    resume: bool,
    overwrite: bool,
    differs: Differs = lambda n, path: "",
) -> Iterator[RunFolder]:
    """`run_folders` for one folder."""
    with run_folders([out], kind, resume=resume, overwrite=overwrite, differs=differs) as (folder,):
        yield folder


@contextmanager
def run_folders(
    outs: Sequence[Path],
    kind: FolderKind,
    *,
    resume: bool,
    overwrite: bool,
    differs: Differs = lambda n, path: "",
) -> Iterator[list[RunFolder]]:
    """Lock the folders and say where to write. When the body ends without an error, all results are
    in place.

    `differs(n, path)` compares the settings for the n-th folder with those of the result in `path`:
    '', or what is different. A resume continues the unfinished result that was to replace OUT's, if
    there is one with the same settings, else OUT's.

    Raises UsageError for both `resume` and `overwrite`. Raises DataError when another command
    writes there, when a folder holds other files, a result (without `resume` and `overwrite`) or a
    result of other settings (with `resume`), and for an OSError of the body.
    """
    if resume and overwrite:
        raise UsageError(
            f"{opt('resume')} and {opt('overwrite')} contradict each other", "give one of them"
        )
    targets = []
    for out in outs:
        with writing(out):
            targets.append(Path(os.path.realpath(out)))
    with ExitStack() as stack:
        # Lock all folders, and finish exchanges that were interrupted.
        for out, target in zip(outs, targets):
            with writing(out):  # a name that is too long, missing permission
                _check_path(out, target)
            stack.enter_context(locked(target))
            finish(Stage(target), kind)
        # Decide where to write, and make the folders.
        has_result = [
            _inspected(out, target, kind, resume, overwrite) for out, target in zip(outs, targets)
        ]
        stages = [Stage(target) for target in targets]
        beside, continues = _choose(outs, stages, has_result, kind, resume, overwrite, differs)
        folders = []
        for out, stage, has in zip(outs, stages, has_result):
            path = stage.new if beside else stage.target
            with writing(path):
                path.mkdir(parents=True, exist_ok=True)
            folders.append(RunFolder(out, path, continues if beside else has and resume, kind))
            _sweep(path, kind)
        # The command; then new results take the place of old ones.
        try:
            try:
                yield folders
            except OSError as error:  # of a write, or of a file that the command reads
                raise user_error(error, None if error.filename else outs[0]) from error
        except NumericsError:  # the same command would diverge again: nothing to resume
            if beside:
                _discard(stages, kind)
            raise
        except BaseException:
            if beside and not kind.resumable:
                _discard(stages, kind)
            raise
        if beside:
            exchange_all(stages, kind)


def _choose(
    outs: Sequence[Path],
    stages: list[Stage],
    has_result: list[bool],
    kind: FolderKind,
    resume: bool,
    overwrite: bool,
    differs: Differs,
) -> tuple[bool, bool]:
    """(whether to write beside OUT, whether to continue the result there)."""
    if resume and kind.resumable:
        started = [kind.read_marker(stage.new) is not None for stage in stages]
        if all(started) and not any(differs(n, stage.new) for n, stage in enumerate(stages)):
            return True, True
        for n, (out, stage, has) in enumerate(zip(outs, stages, has_result)):
            if has and (changed := differs(n, stage.target)):
                hint = f"{RESUME} with the old settings, {OVERWRITE}, or another OUT"
                raise DataError(f"{out} was {kind.done} with other settings: {changed}", hint)
        return False, False
    if not (any(has_result) and overwrite) and kind.resumable:
        return False, False
    for stage in stages:
        _check_beside(stage)
    _discard(stages, kind)
    return True, False


def _check_path(out: Path, target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise DataError(f"{out} is a file, not a folder", "choose another OUT")
    above = next(parent for parent in target.parents if parent.exists())
    if not above.is_dir():
        raise DataError(
            f"{above} is a file, so the folder {out} cannot be created", "choose another OUT"
        )
    folder = target if target.exists() else above
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(
            f"{folder} cannot be written: it is read-only for this user",
            "choose another OUT, or change its permissions",
        )


def _inspected(out: Path, target: Path, kind: FolderKind, resume: bool, overwrite: bool) -> bool:
    """Whether `target` holds a result of this kind. Raises DataError if it must stay."""
    if not target.is_dir() or not any(_counts(path) for path in target.iterdir()):
        return False
    if kind.read_marker(target) is None:
        names = sorted(path.name for path in target.iterdir() if _counts(path))
        if resume or overwrite:
            raise foreign(out, [out / name for name in names], kind)
        raise DataError(f"{out} exists and is not empty", "choose another OUT")
    if not resume and not overwrite:
        ways = (
            f"{RESUME} to continue it, {OVERWRITE} to replace it"
            if kind.resumable
            else f"{OVERWRITE} to replace it"
        )
        raise DataError(f"{out} exists and is not empty", f"{ways}, or another OUT")
    if overwrite:
        _, others = kind.sort(target)
        if others:
            raise foreign(target, others, kind)
    return True


def _counts(path: Path) -> bool:
    """Whether a folder with this file counts as not empty: locks do not count, nor do the remains
    of a command that was killed before it wrote the marker."""
    return path.name != IN_FOLDER and TEMPORARY.fullmatch(path.name) is None


def _check_beside(stage: Stage) -> None:
    """Raise DataError when a folder cannot be written beside OUT and take its place."""
    target, parent = stage.target, stage.target.parent
    if not target.exists():
        return
    here = Path.cwd()
    if here == target or target in here.parents:
        cause = f"{target} is the current directory or contains it, and would be replaced"
        raise DataError(cause, f"cd {parent}, and give OUT as {target.name}")
    if os.path.ismount(target):
        raise DataError(
            f"{target} is a mount point, which cannot be replaced", "give a folder in it as OUT"
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise DataError(
            f"the new result is written beside the old one, but {parent} is not writable",
            "choose another OUT",
        )


def _discard(stages: list[Stage], kind: FolderKind) -> None:
    for stage in stages:
        stage.discard(kind)


def _sweep(folder: Path, kind: FolderKind) -> None:
    """Remove the half-written files of killed commands. The folder is locked: nobody writes it."""
    own, _ = kind.sort(folder)
    for path in own:
        if any(TEMPORARY.fullmatch(part) for part in path.relative_to(folder).parts):
            path.unlink()
    for parent, _, _ in os.walk(folder, topdown=False):
        if TEMPORARY.fullmatch(Path(parent).name) and not os.listdir(parent):
            os.rmdir(parent)
