"""A fine-tune that is killed before any of its file operations goes on to the same weights, metrics
and figures."""

from __future__ import annotations

import os
import re
import shutil

import pytest
from kills import content, killed_before

import saekit


@pytest.mark.usefixtures("one_thread")
@pytest.mark.slow  # each kill loads the language model twice
def test_a_fine_tune_killed_anywhere_resumes_to_the_same_bytes(made, tmp_path):
    settings, work = {"rows": 300, "batch": 4, "save_seconds": 0.0}, tmp_path / "work"

    def whole() -> dict[str, bytes]:
        times = re.compile(rb'"(rows_per_s|seconds)": [0-9.e+-]+')
        files = {name: times.sub(b"", data) for name, data in content(work).items()}
        # Its seconds of training are part of the state, which nothing else in it depends on.
        return {
            name: data for name, data in files.items() if not name.endswith("state.safetensors")
        }

    saekit.finetune(made.run, work / "run", **settings)
    expected, operation, step = whole(), 0, int(os.environ.get("KILL_EVERY", "5"))
    shutil.rmtree(work)
    while killed_before(
        operation, work, lambda: saekit.finetune(made.run, work / "run", **settings)
    ):
        saekit.finetune(made.run, work / "run", resume=True, **settings)
        assert whole() == expected, f"killed before operation {operation}"
        shutil.rmtree(work)
        operation += step
    assert operation > 20
