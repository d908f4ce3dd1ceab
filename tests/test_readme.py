"""Every code block of README.md and docs/start.md runs, from top to bottom in one folder.

A small random CLIP (twelve blocks, class token, center crop), a small random Gemma 2 and a
dictionary for its width in a hub cache replace those from the hub, a registry of one name replaces
that of SAELens, and `photos` is a folder of random pictures.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from made_hub import DICTIONARY, put_clip, put_gemma, put_photos

ROOT = Path(__file__).parents[1]
README, START = (
    re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    for page in ("README.md", "docs/start.md")
)
REGISTRY = f"""gemma-scope-2b-pt-res:
  conversion_func: gemma_2
  model: gemma-2-2b
  repo_id: google/gemma-scope-2b-pt-res
  saes:
  - id: {DICTIONARY}
    path: {DICTIONARY}
    l0: 82
    neuronpedia: gemma-2-2b/12-gemmascope-res-16k
"""
RUNNABLE = [(language, text) for language, text in README + START if language in ("sh", "python")]


@pytest.mark.slow  # the page's own commands: four minutes
@pytest.mark.network_model
@pytest.mark.mnist
def test_the_blocks_of_the_readme_run_from_top_to_bottom(tmp_path):
    put_clip(tmp_path / "hub")
    put_gemma(tmp_path / "hub")
    (tmp_path / "registry.yaml").write_text(REGISTRY)
    work = tmp_path / "work"
    work.mkdir()
    shutil.copytree(ROOT / "recipes", work / "recipes")
    put_photos(work / "photos")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {
        "PATH": path,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "SAEKIT_REGISTRY": str(tmp_path / "registry.yaml"),
    }
    for language, text in RUNNABLE:
        program = (
            ["bash", "-euxo", "pipefail", "-c", text]
            if language == "sh"
            else [sys.executable, "-c", text]
        )
        done = subprocess.run(
            program, cwd=work, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert (work / "page" / "index.html").stat().st_size > 10_000
    assert (work / "report" / "report.html").exists()


def test_every_block_is_run_or_is_the_two_commands():
    others = [text for language, text in README + START if language not in ("sh", "python")]
    assert [text.split()[0] for text in others] == ["make"], "two commands that CI runs"
    assert len(RUNNABLE) == 8


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
