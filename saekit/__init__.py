"""saekit: cache a transformer's hidden states, train sparse autoencoders on them, read what the
features mean.

The public names load on first use, so that `import saekit` costs milliseconds and does no work.
"""

from __future__ import annotations

from importlib import import_module
from types import FunctionType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "harvest": "saekit.harvesting.run",
    "capture": "saekit.harvesting.hooks",
    "splice": "saekit.intervention.splice",
    "attach": "saekit.intervention.attach",
    "steer": "saekit.report.steering",
    "attribute": "saekit.intervention.attribute",
    "attack": "saekit.attacks.run",
    "open_store": "saekit.store.reader",
    "train": "saekit.training.run",
    "sample": "saekit.training.sampling",
    "sweep": "saekit.sweeps.run",
    "finetune": "saekit.intervention.finetune",
    "import_dictionary": "saekit.interop.importing",
    "export_dictionary": "saekit.exporting",
    "dictionaries": "saekit.interop.registry",
    "load": "saekit.training.checkpoints",
    "evaluate": "saekit.evaluation.table",
    "compare": "saekit.report.comparison",
    "convert": "saekit.evaluation.conversion",
    "index": "saekit.indexing.build",
    "open_index": "saekit.indexing.beside",
    "Index": "saekit.indexing.reader",
    "inspect": "saekit.inspection.run",
    "features": "saekit.inspection.query",
    "show": "saekit.inspection.shown",
    "Estimator": "saekit.estimator",
    "SaekitError": "saekit.errors",
}
__all__ = sorted(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from saekit.attacks.run import attack as attack
    from saekit.errors import SaekitError as SaekitError
    from saekit.estimator import Estimator as Estimator
    from saekit.evaluation.conversion import convert as convert
    from saekit.evaluation.table import evaluate as evaluate
    from saekit.exporting import export_dictionary as export_dictionary
    from saekit.harvesting.hooks import capture as capture
    from saekit.harvesting.run import harvest as harvest
    from saekit.indexing.beside import open_index as open_index
    from saekit.indexing.build import index as index
    from saekit.indexing.reader import Index as Index
    from saekit.inspection.query import features as features
    from saekit.inspection.run import inspect as inspect
    from saekit.inspection.shown import show as show
    from saekit.interop.importing import import_dictionary as import_dictionary
    from saekit.interop.registry import dictionaries as dictionaries
    from saekit.intervention.attach import attach as attach
    from saekit.intervention.attribute import attribute as attribute
    from saekit.intervention.finetune import finetune as finetune
    from saekit.intervention.splice import splice as splice
    from saekit.report.comparison import compare as compare
    from saekit.report.steering import steer as steer
    from saekit.store.reader import open_store as open_store
    from saekit.sweeps.run import sweep as sweep
    from saekit.training.checkpoints import load as load
    from saekit.training.run import train as train
    from saekit.training.sampling import sample as sample


def __getattr__(name: str) -> Any:
    """A public name, as users meet it (saekit.public), kept for the next time."""
    if name not in _PUBLIC:
        from saekit.errors import ALIKE, nearest

        near = nearest(name, __all__, ALIKE)
        guess = f"; did you mean {near}?" if near else ""
        raise AttributeError(f"module 'saekit' has no attribute {name!r}{guess}")
    value = getattr(import_module(_PUBLIC[name]), name)
    if isinstance(value, FunctionType):
        from saekit.public import public

        value = public(value)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """What a prompt completes."""
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
