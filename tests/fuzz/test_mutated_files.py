"""Files a little wrong end in a value or a user's error, not in another exception, a hang or a
gigabyte (harness.py, a few of each)."""

from __future__ import annotations

import pytest
from fuzz.harness import fuzz
from fuzz.published import PUBLISHED
from fuzz.readers import DATA, OWN, READERS

SEED = 14
COUNT = 100
SLOW = ("options-of-train", "options-of-harvest", "train_state", "metrics-of-a-killed-run")
# through transformers
MODELS = ("model-config", "model-processor", "model-tokenizer", "model-weights")
FEWER = dict.fromkeys((*DATA, *PUBLISHED), 40) | dict.fromkeys((*SLOW, *MODELS), 30)


@pytest.mark.parametrize("name", [*OWN, *DATA, *PUBLISHED])
def test_a_mutated_file_is_read_or_refused(name, tmp_path):
    counts = fuzz(READERS[name], tmp_path, SEED, FEWER.get(name, COUNT))
    assert not counts.failures
    assert name not in DATA or counts.refused, "mutations reach the file's own checks"
