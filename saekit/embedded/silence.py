"""transformers announces every load (progress bars, advice on other backends); this keeps it quiet
around our own calls only.

What it says of weights that a file lacks is not lost by this: `saekit.embedded.weights` asks for
that report and reads it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Errors still raise; bars, advice and warnings of transformers are held back, and its settings
    come back afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
