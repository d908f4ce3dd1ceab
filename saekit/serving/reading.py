"""Which latents a text or an image activates, token by token, patch by patch: the rows and codes
are those by which `saekit.features` ranks."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from saekit.harvesting.models import LiveModel
from saekit.harvesting.sources import Document
from saekit.inspection.inputs import input_rows, larger, no_rows
from saekit.inspection.show import ModelView
from saekit.inspection.tokens import TokenTexts
from saekit.models.autoencoder import Autoencoder
from saekit.models.codes import fires
from saekit.serving.latents import KnownLatents
from saekit.serving.worker import Tell
from saekit.types import ActivationSpec

MOST_ENTRIES = 200_000  # active entries of one answer: about 5 MB
RANKED = 50


class Reader:
    """A dictionary, and the models whose rows it reads."""

    def __init__(
        self,
        dictionary: Autoencoder,
        specs: Sequence[ActivationSpec],
        models: Mapping[str, LiveModel],
        known: KnownLatents,
    ) -> None:
        self.dictionary, self.specs, self.models, self.known = dictionary, specs, models, known
        first = models[specs[0].model]
        self.texts = TokenTexts(first.tokenizer) if first.modality == "text" else None
        self._view: ModelView | None = None

    def read(self, document: Document, tell: Tell) -> dict[str, Any]:
        """{"contexts", "ranked", "orders", "latents", "cut"}.

        contexts: of each its `tokens` (text), or its `grid` of patches and the `picture` that the
            model sees (PNG in base64), and `rows`: [{"at", "latents", "acts"}], each with its
            active latents, largest first; `at` is the number of the token or patch.
        ranked: [[latent, act]], as `saekit.features` ranks them.
        orders: the same in the other orders that there are: relative, score (orders.Orders).
        latents: number -> KnownLatents.brief, of all that occur.
        cut: null, or the most latents of any row, where all would be too many.
        """
        with torch.inference_mode():
            read = []
            for rows in input_rows(document, self.specs, self.models):
                tell(None)  # a sign of life: ends here where the client has gone
                read.append(rows)
            read.sort(key=lambda rows: rows.number)
            count = sum(len(rows.x_BD) for rows in read)
            if count == 0:
                raise no_rows()

            # a code is dense while its context is looked at, and then its active entries
            most = max(MOST_ENTRIES // count, 1)
            contexts, largest_F, is_cut = [], torch.zeros(self.dictionary.latents), False
            for rows in read:
                tell(None)
                code_BF = self._code(rows.x_BD)
                largest_F = larger(largest_F, code_BF)
                is_cut |= bool((fires(code_BF, self._above).sum(1) > most).any())
                contexts.append(
                    {
                        "tokens": None if self.texts is None else self.texts(rows.token_ids),
                        "grid": rows.grid,
                        "picture": self._picture(document, rows.grid),
                        "rows": [
                            {"at": at, **self._entries(code_F, most)}
                            for at, code_F in zip(rows.positions, code_BF)
                            if at >= 0
                        ],
                    }
                )
        order = torch.argsort(largest_F.abs(), descending=True, stable=True)
        active = order[fires(largest_F, self._above)[order]].numpy()
        others = self.known.orders
        orders = {by: others.ordered(active, largest_F.numpy(), by) for by in others.names}
        listed = {
            by: [[j, float(largest_F[j])] for j in latents[:RANKED].tolist()]
            for by, latents in [("ranked", active), *orders.items()]
        }
        ranked = [j for pairs in listed.values() for j, _ in pairs]
        seen = {j for context in contexts for row in context["rows"] for j in row["latents"]}
        return {
            "contexts": contexts,
            "ranked": listed.pop("ranked"),
            "orders": listed,
            "latents": {str(j): self.known.brief(j) for j in sorted(seen.union(ranked))},
            "cut": most if is_cut else None,
        }

    def _code(self, x_BD: torch.Tensor) -> torch.Tensor:
        """(B,F), on the CPU."""
        device = next(iter(self.dictionary.state_dict().values())).device
        return self.dictionary.encode(x_BD.to(device)).to_dense().float().cpu()

    def _picture(self, document: Document, grid: tuple[int, int] | None) -> str | None:
        """What the image processor makes of it, PNG in base64: patches lie on these pixels."""
        if document.image is None:
            return None
        if self._view is None:
            self._view = ModelView(self.specs[0].model, grid)
        encoded = io.BytesIO()
        self._view(document.image).save(encoded, "PNG")
        return base64.b64encode(encoded.getvalue()).decode()

    @property
    def _above(self) -> float:
        return self.dictionary.active_above or 0.0

    def _entries(self, code_F: torch.Tensor, most: int) -> dict[str, Any]:
        active = fires(code_F, self._above).nonzero()[:, 0]
        order = torch.argsort(code_F[active].abs(), descending=True, stable=True)[:most]
        chosen = active[order]
        return {"latents": chosen.tolist(), "acts": code_F[chosen].tolist()}
