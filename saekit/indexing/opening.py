"""What index, inspect and features read: a model and a store that fit each other."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from saekit.errors import DataError
from saekit.interop.fit import check_fit
from saekit.interop.opening import open_checkpoint
from saekit.models.autoencoder import Autoencoder
from saekit.models.catalog import restore
from saekit.store.checkpoint import Checkpoint
from saekit.store.opening import RowsLike, open_stores
from saekit.store.reader import Store
from saekit.store.stack import StackedStore, stores_of
from saekit.training.checkpoints import (
    ModelLike,
    catalog_name,
    check_rows,
    for_inference,
    name_of,
    path_or_model,
    unchanged_origin,
)


@dataclass(frozen=True)
class OpenedPair:
    name: str
    """The path or name of the checkpoint; of a model in memory its class."""
    model: Autoencoder
    """Takes raw rows, in eval mode, on the CPU."""
    checkpoint: Checkpoint | None
    """None: a model in memory."""
    store: Store | StackedStore

    def recorded(self, *keys: str) -> Any:
        """An entry of the checkpoint's config.json; None where there is none."""
        entry: Any = {} if self.checkpoint is None else self.checkpoint.config
        for key in keys:
            entry = entry.get(key, {})
        return entry or None

    def even_directions(self) -> torch.Tensor:
        """The decoder (F,D) of a crosscoder in the units of training, in which the rows of all
        hooks have the same size: in raw units a late block, whose rows are ten times as long as an
        early one's, would have ten times the decoder norm for that reason only."""
        scales = self._scales()
        if len(set(scales)) == 1:  # written once where all are equal
            scales = scales[:1] * len(self.store.parts)
        if len(scales) != len(self.store.parts):
            raise DataError(
                f"{self.name}: input_scale holds {len(scales)} values for"
                f" {len(self.store.parts)} hooks"
            )
        W_dec_FD = self.directions()
        assert W_dec_FD is not None, "a crosscoder"
        return W_dec_FD * torch.tensor(scales).repeat_interleave(torch.tensor(self.store.parts))

    def directions(self) -> torch.Tensor | None:
        """The decoder (F,D); None for a deep decoder, whose latents have no directions."""
        return getattr(self.model, "W_dec", None)

    def weights_digest(self) -> str:
        """sha256 (64 hex digits) of the weights, whatever the folder is called."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def contents(self) -> list[str]:
        """The digest of the rows of each store, in order."""
        return [store.content for store in stores_of(self.store)]

    def _scales(self) -> list[float]:
        """Of each hook: as training recorded them, else (a model in memory, an import) by the
        statistics of the stores."""
        scales = None if self.checkpoint is None else self.checkpoint.config["input_scale"]
        if scales is not None:
            return list(scales) if isinstance(scales, (list, tuple)) else [scales]
        return [
            (store.spec.d_in / sum(std**2 for std in store.stats["std"])) ** 0.5
            for store in stores_of(self.store)
            if isinstance(store, Store)
        ]


def opened_pair(checkpoint: ModelLike, store: RowsLike, any_store: bool = False) -> OpenedPair:
    """Model and store, known to fit (saekit.interop.fit). Raises UsageError (rows in memory),
    DataError, MissingError."""
    source = path_or_model(checkpoint)
    if not isinstance(source, str):
        source = unchanged_origin(source) or source
    if isinstance(source, str):
        described = open_checkpoint(source)
        opened = open_stores(store)
        check_fit(source, described.config, opened, any_store=any_store)
        config = described.config
        model = restore(config["model"], config["config"], described.tensors)
    else:
        described, opened, model = None, open_stores(store), for_inference(source)
        check_rows(model, opened)
    if model.takes != "rows":
        raise DataError(
            f"{name_of(source)} is a {catalog_name(model)} model: its code is of whole examples,"
            " and features are shown on rows",
            f"saekit compare {name_of(source)} --store {opened.path}",
        )
    return OpenedPair(name_of(source), model, described, opened)
