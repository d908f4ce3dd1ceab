"""Whether a checkpoint and rows belong together: the one check of evaluate, compare, inspect and
features."""

from __future__ import annotations

import re
from typing import Any

from saekit.errors import DataError, opt
from saekit.interop.base_models import same_model
from saekit.interop.hook_spellings import portable
from saekit.interop.provenance import Provenance, provenance
from saekit.models.catalog import check_takes_rows
from saekit.rows import Rows
from saekit.store.reader import Store
from saekit.store.stack import check_stores, stores_of
from saekit.types import ActivationSpec

_TOWER = re.compile(r"encoder|decoder|vision|visual|text|language")
# a place in a block: its number, and what follows it
_IN_BLOCK = re.compile(r"(?:^|.*\.)\w+\.(\d+)(?:\.([\w.]+?))?(:\w+)?")


def check_fit(
    path: str, config: dict[str, Any], rows: Rows, *, any_store: bool = False, command: str = ""
) -> None:
    """Raise UsageError for a model that takes no stored rows (a CLT), and DataError unless the rows
    can be given to the checkpoint (number, order and width of stores, modality, shape of examples)
    and are of the kind that it was trained on.

    That kind is the model, the hooks and the scope, each where the checkpoint says it. `any_store`
    skips this second part. `config` is config.json of the checkpoint; `command` is the shell
    command that takes these stores, if it is not the caller.
    """
    check_takes_rows(config["model"], path)
    check_stores(path, config, rows, command)
    spec, trained_on = rows.spec, config["spec"]
    if trained_on["d_in"] != spec.d_in:
        raise DataError(
            f"{path} takes {trained_on['d_in']} values per row ({_named(trained_on)}),"
            f" {rows.path} holds {spec.d_in} ({spec.model}, {spec.hook})",
            f"{opt('store')} with the store that it was trained on, or one of the same hook",
        )
    if trained_on["modality"] not in (spec.modality, None, "array") and spec.modality != "array":
        raise DataError(
            f"{path} was trained on {trained_on['modality']}, {rows.path} holds {spec.modality}"
        )
    shape = config["config"].get("shape")
    if shape is not None and tuple(shape) != spec.shape:
        raise DataError(
            f"{path} takes examples of shape {tuple(shape)}, those of {rows.path} have {spec.shape}"
        )
    if not any_store:
        _check_kind(path, provenance(config), rows)


def _named(spec: dict[str, Any]) -> str:
    return ", ".join(name for name in (spec["model"], spec["hook"]) if name) or "origin unknown"


def _check_kind(path: str, trained_on: Provenance, rows: Rows) -> None:
    stores = [store for store in stores_of(rows) if isinstance(store, Store)]
    if not stores:
        return  # rows in memory do not say where they come from
    hooks = trained_on.hooks if len(trained_on.hooks) == len(stores) else ()
    wrong: dict[str, tuple[str, str]] = {}
    # only the first store's model is known, and all have one scope
    first = stores[0].spec
    if trained_on.model and not _same_model(trained_on, stores[0]):
        wrong["model"] = trained_on.model, first.model
    for hook, store in zip(hooks, stores):
        if not first.is_raw and not same_hook(hook, store.spec, store.manifest.names or {}):
            wrong.setdefault("hook", (hook, store.spec.hook))
    if trained_on.scope and trained_on.scope != first.scope:
        wrong["scope"] = trained_on.scope, first.scope
    if not wrong:
        return
    # Both sides.
    theirs, ours = (
        ", ".join(f"{name} {values[side]}" for name, values in wrong.items()) for side in (0, 1)
    )
    bos = ""
    if wrong.get("scope") == ("all", "content"):
        bos = "; it learned the row of the BOS, which the store leaves out"
    raise DataError(
        f"{path} was trained on {theirs}; {rows.path} holds {ours}{bos}",
        f"saekit harvest --for {path} DATA OUT makes the right store;"
        f" {opt('any_store', True)} goes on all the same",
    )


def _same_model(trained_on: Provenance, store: Store) -> bool:
    spec = store.spec
    if trained_on.revision and trained_on.revision == spec.revision:
        return True  # the same weights, in another place
    names = (spec.model, *(store.manifest.names or {}).get("model", ()))
    return any(same_model(trained_on.model or "", name) for name in names)


def same_hook(hook: str, spec: ActivationSpec, names: dict[str, list[str]]) -> bool:
    """Whether `hook`, in any package's words, may be that of a store. `names`: what the store
    knows about itself; older stores know nothing, and are compared by their path only."""
    theirs, ours, known = portable(hook), portable(spec.hook), names.get("hook", [])
    # encoder.layers.3 is not decoder.layers.3; a name without a tower may be of either
    towers = [set(_TOWER.findall(name)) for name in (hook, spec.hook)]
    if towers[0] - towers[1] and towers[1] - towers[0]:
        return False
    if theirs in (ours, *map(portable, known)):
        return True
    place, other = _IN_BLOCK.fullmatch(theirs), _IN_BLOCK.fullmatch(ours)
    if place is None or other is None:  # no block, such as in `transformer.wte`
        return place is other and ours.endswith(f".{theirs}")
    # A path: `layers.9.mlp` is `model.layers.9.mlp`.
    if not theirs.startswith("blocks."):
        return place.groups() == other.groups()
    # A name that is the same on every model. Of a store that is older than its names, the number of
    # the block is compared, and whether it is the stream or something inside.
    return not known and place[1] == other[1] and (place[2] is None) == (other[2] is None)
