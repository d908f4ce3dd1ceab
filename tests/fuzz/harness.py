"""Reads mutated files one after another: each must end in a value or in a SaekitError, in bounded
time and memory.

A new reader is one line in readers.py. From the command line, for long runs:

    python tests/fuzz/harness.py READER [READER ...] --count 20000 --seed 1

prints each reader's counts and every kind of failure once; what was read last lies in WORK/last, in
case the process dies.
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from saekit.errors import SaekitError

SECONDS = 20  # for one file, on a busy machine
BYTES = 256 << 20  # that the process may grow by


@dataclass(frozen=True)
class Reader:
    """`make(folder)` writes a right file and gives its path; `read(path)` reads it as users'
    commands do. `fresh`: reading changes files beside it, so that the folder is copied anew each
    time."""

    make: Callable[[Path], Path]
    mutate: Callable[[bytes, random.Random], bytes]
    read: Callable[[Path], object]
    fresh: bool = False
    after: Callable[[Path], None] = lambda path: None
    """Called between writing and reading: puts right what stands elsewhere about the file (its size
    in a manifest)."""


@dataclass
class Counts:
    read: int = 0
    refused: Counter = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)
    """'KeyError at store/x.py:12' -> seed/number of an example, and what it said."""


class TookTooLong(BaseException):
    pass


def fuzz(reader: Reader, work: Path, seed: int, count: int) -> Counts:
    """Read `count` mutations of the reader's file, all in `work`. Raises AssertionError where the
    file is refused as it is."""
    path = reader.make(work / "right")
    right, counts = path.read_bytes(), Counts()
    here = work / "now" / path.relative_to(work / "right")
    shutil.copytree(work / "right", work / "now")
    reader.after(here)
    reader.read(here)
    previous = signal.signal(signal.SIGALRM, _too_long)
    try:
        for number in range(count):
            if reader.fresh:
                shutil.rmtree(work / "now")
                shutil.copytree(work / "right", work / "now")
            rng = random.Random(f"{seed}/{number}")
            data = reader.mutate(right, rng)
            here.write_bytes(data)
            (work / "last").write_text(f"{seed}/{number}")
            _read_one(reader, here, f"{seed}/{number}", counts)
    finally:
        signal.signal(signal.SIGALRM, previous)
    return counts


def _read_one(reader: Reader, path: Path, name: str, counts: Counts) -> None:
    before = _peak()
    signal.alarm(SECONDS)
    try:
        reader.after(path)
        reader.read(path)
        counts.read += 1
    except SaekitError as error:
        counts.refused[type(error).__name__] += 1
        if not str(error) or "bug" in str(error):
            counts.failures.setdefault(f"says nothing: {error}", name)
    except (Exception, TookTooLong) as error:
        frames = [
            f
            for f in traceback.extract_tb(error.__traceback__)
            if "/saekit" in f.filename and "tests" not in f.filename
        ]
        where = (
            f"{frames[-1].filename.split('/saekit/')[-1]}:{frames[-1].lineno}"
            if frames
            else "the harness"
        )
        counts.failures.setdefault(
            f"{type(error).__name__} at {where}", f"{name}: {str(error)[:100]}"
        )
    finally:
        signal.alarm(0)
    if _peak() - before > BYTES:
        counts.failures.setdefault(f"took {(_peak() - before) >> 20} MB", name)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _too_long(number: int, frame: object) -> None:
    raise TookTooLong


def main() -> None:
    from fuzz.readers import READERS

    parser = argparse.ArgumentParser()
    parser.add_argument("readers", nargs="*", metavar="READER", help=", ".join(READERS))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    failed = False
    for name in asked.readers or READERS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="saekit-fuzz-") as work:
            counts = fuzz(READERS[name], Path(work), asked.seed, asked.count)
        refused = ", ".join(f"{number} {kind}" for kind, number in counts.refused.items())
        print(
            f"{name}: {asked.count} files, {counts.read} read, {refused},"
            f" {time.monotonic() - began:.0f} s",
            flush=True,
        )
        for failure, example in counts.failures.items():
            print(f"  {failure}  {example}", flush=True)
        failed |= bool(counts.failures)
    sys.exit(failed)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main()
