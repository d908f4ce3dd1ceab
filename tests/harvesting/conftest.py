from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

# --import-mode=importlib does not put test folders on the path; the shared builders are loaded by name here.
_spec = importlib.util.spec_from_file_location("saekit_tiny_models", Path(__file__).with_name("tiny.py"))
tiny_module = importlib.util.module_from_spec(_spec)
sys.modules["saekit_tiny_models"] = tiny_module
_spec.loader.exec_module(tiny_module)


@pytest.fixture(scope="session")
def live(tmp_path_factory):
    """live('gpt2') -> a LiveModel of that family, saved and loaded once a session."""
    from saekit.harvesting.models import load_model

    loaded = {}

    def load(family: str, **tokenizer_options):
        key = (family, *sorted(tokenizer_options.items()))
        if key not in loaded:
            loaded[key] = load_model(tiny_module.save(family, tmp_path_factory.mktemp(family), **tokenizer_options))
        return loaded[key]

    return load
