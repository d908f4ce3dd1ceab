from __future__ import annotations

import pytest
from made_language import Made, made_language, write_words


@pytest.fixture(scope="session")
def words():
    return write_words


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Made:
    return made_language(tmp_path_factory.mktemp("finetune"))
