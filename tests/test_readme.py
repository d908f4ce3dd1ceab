"""Every code block of README.md runs, from top to bottom in one folder.

A small random CLIP (twelve blocks, class token, center crop) in a hub cache replaces the one from
the hub, and `photos` is a folder of random pictures.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(
    r"^```(\w*)\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
)
RUNNABLE = [(language, text) for language, text in BLOCKS if language in ("sh", "python")]


def put_clip(hub: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    shape = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=12)
    config = CLIPConfig(
        vision_config=shape | dict(image_size=64, patch_size=4),
        text_config=shape | dict(vocab_size=50, bos_token_id=0, eos_token_id=1),
    )
    repository = hub / "models--openai--clip-vit-base-patch16"
    snapshot = repository / "snapshots" / ("0" * 40)
    CLIPModel(config).save_pretrained(snapshot)
    CLIPImageProcessorPil(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}
    ).save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)


def put_photos(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    for n in range(80):
        Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(folder / f"{n}.jpg")


@pytest.mark.slow  # the page's own commands: three minutes
@pytest.mark.network_model
@pytest.mark.mnist
def test_the_blocks_of_the_readme_run_from_top_to_bottom(tmp_path):
    put_clip(tmp_path / "hub")
    work = tmp_path / "work"
    work.mkdir()
    shutil.copytree(ROOT / "recipes", work / "recipes")
    put_photos(work / "photos")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {
        "PATH": path,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
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


def test_every_block_of_the_readme_is_run_or_is_a_listing():
    others = [text for language, text in BLOCKS if language not in ("sh", "python")]
    assert [text.split()[0] for text in others] == ["make", "saekit/"], (
        "two commands that CI runs, and the list of files"
    )
    assert len(RUNNABLE) == 4
