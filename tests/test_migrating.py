"""docs/migrating.md: saekit's commands run as written, and the coefficients convert as it says.

The blocks of the other tools are in tests/interop/peers/test_migrating.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[1] / "docs" / "migrating.md"
BLOCKS = re.findall(r"^```(\S+) ?(\S*)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.slow  # its commands run a language model and a training: a minute
@pytest.mark.network_model
def test_saekits_commands_run_from_top_to_bottom(tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    programs = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    outputs = []
    for language, tool, text in BLOCKS:
        if tool:
            continue
        done = subprocess.run(
            [*programs[language], text],
            cwd=tmp_path,
            env=os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        outputs.append(done.stdout)
    assert "ce_recovered" in "".join(outputs)
    # exported and imported again: the same figures
    rows = [line.split() for line in outputs[-1].splitlines() if " sae topk " in line]
    assert len(rows) == 2
    assert rows[0][-3:] == rows[1][-3:]


@pytest.mark.parametrize("averages_over_dimensions", [False, True])
@pytest.mark.parametrize("c", [1.0, 0.3, 7.0])
def test_coefficients_convert_as_the_page_says(c, averages_over_dimensions):
    """The other tool's loss at codes z, times a constant, is saekit's at the same codes."""
    D, F, B, coefficient = 6, 15, 40, 0.8
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x, mean, s = 3 * random(B, D) + 2, random(D), 0.37
    losses = []
    for _ in range(3):  # codes and decoders in units of x
        z, W_dec, b_dec = random(B, F).relu(), random(F, D), random(D)
        x_hat, size = z @ W_dec + b_dec, z @ W_dec.norm(dim=1)
        error = (c * (x - x_hat)).square().sum(1).mean() / (D if averages_over_dimensions else 1)
        theirs = error + coefficient * (c * size).mean()
        x_norm, x_hat_norm = (x - mean) * s, (x_hat - mean) * s
        coef = coefficient * s / c * (D if averages_over_dimensions else 1)
        ours = (x_norm - x_hat_norm).square().sum(1).mean() + coef * (s * size).mean()
        losses.append(float(ours / theirs))
    assert max(losses) - min(losses) < 1e-12
