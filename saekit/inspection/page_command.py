"""The shell command that made a page, for a reader who wants more features on it. It is as short as
it was typed, and does not say where on a disk the page was made."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from os.path import commonpath, relpath
from pathlib import Path

from saekit.store.stack import with_stores


def page_command(
    checkpoint: str, stores: Iterable[str], out: Path, top: int, any_store: bool
) -> tuple[str, str]:
    """(command without its features, name of the folder in which it is to be run).

    Paths are from the working folder where that holds them all, else from the deepest folder that
    does. Where only the root holds them they stay as they were given, and the folder is ''; so
    does a checkpoint that is a name on the hub.
    """
    stores = list(stores)
    local = [path for path in (checkpoint, *stores, str(out)) if _is_local(path, str(out))]
    base = _base([Path(path).resolve() for path in local])
    typed: dict[str, str] = {}
    if base is not None:
        typed = {path: str(relpath(Path(path).resolve(), base)) for path in local}
    quoted = lambda path: shlex.quote(typed.get(path) or path)
    name, folder = quoted(checkpoint), quoted(str(out))
    command = f"saekit inspect {name} --out {folder} --top {top}"
    if any_store:
        command = f"saekit inspect {name} --out {folder} --top {top} --any-store"
    where = "" if base is None else base.name
    return with_stores(command, [quoted(store) for store in stores]), where


def _is_local(path: str, out: str) -> bool:
    return path == out or Path(path).exists()


def _base(paths: list[Path]) -> Path | None:
    here = Path.cwd()
    if all(path.is_relative_to(here) for path in paths):
        return here
    base = Path(commonpath([path.parent for path in paths]))
    return None if base == Path(base.anchor) else base
