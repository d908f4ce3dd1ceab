from __future__ import annotations

import pytest
import tiny


@pytest.fixture(scope="session")
def live(tmp_path_factory):
    """live('gpt2') -> a LiveModel of that family, saved and loaded once a session."""
    from saekit.harvesting.models import load_model

    loaded = {}

    def load(family: str, **tokenizer_options):
        key = (family, *sorted(tokenizer_options.items()))
        if key not in loaded:
            loaded[key] = load_model(
                tiny.save(family, tmp_path_factory.mktemp(family), **tokenizer_options)
            )
        return loaded[key]

    return load
