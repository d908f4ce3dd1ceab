"""Which latents a text or an image activates, token by token, patch by patch: the rows and codes
are those by which `saekit.features` ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from saekit.harvesting.models import LiveModel
from saekit.harvesting.sources import Document
from saekit.inspection.inputs import input_rows, larger
from saekit.inspection.query import no_rows
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

    def read(self, document: Document, tell: Tell) -> dict[str, Any]:
        """{"contexts", "ranked", "latents", "cut"}.

        contexts: of each its `tokens` (text), or its `grid` of patches, and `rows`: [{"at", "latents",
        "acts"}], each with its active latents, largest first; `at` is the number of the token or
        patch. ranked: [[latent, act]], as `saekit.features` ranks them. latents: number ->
        KnownLatents.brief, of all that occur. cut: null, or how many latents of each row are
        given where all would be too many.
        """
        contexts, codes = [], []
        largest_F = torch.zeros(self.dictionary.latents)
        with torch.inference_mode():
            for given in input_rows(document, self.specs, self.models):
                tell(None)  # a sign of life: ends here where the client has gone
                code_BF = self._code(given.x_BD)
                largest_F = larger(largest_F, code_BF)
                tokens = None if self.texts is None else self.texts(given.token_ids)
                contexts.append({"tokens": tokens, "grid": given.grid})
                codes.append((given.positions, code_BF))
        rows = sum(len(positions) for positions, _ in codes)
        if rows == 0:
            raise no_rows()

        most = max(MOST_ENTRIES // rows, 1)
        active = [fires(code_BF, self._above).sum(1) for _, code_BF in codes]
        busiest = max(int(count.max()) for count in active if len(count))
        for context, (positions, code_BF) in zip(contexts, codes):
            context["rows"] = [
                {"at": at, **self._entries(code_F, most)}
                for at, code_F in zip(positions, code_BF)
                if at >= 0
            ]
        order = torch.argsort(largest_F.abs(), descending=True, stable=True)
        ranked = order[fires(largest_F, self._above)[order]][:RANKED].tolist()
        seen = {j for context in contexts for row in context["rows"] for j in row["latents"]}
        return {
            "contexts": contexts,
            "ranked": [[j, float(largest_F[j])] for j in ranked],
            "latents": {str(j): self.known.brief(j) for j in sorted(seen.union(ranked))},
            "cut": most if busiest > most else None,
        }

    def _code(self, x_BD: torch.Tensor) -> torch.Tensor:
        """(B,F), on the CPU."""
        device = next(iter(self.dictionary.state_dict().values())).device
        return self.dictionary.encode(x_BD.to(device)).to_dense().float().cpu()

    @property
    def _above(self) -> float:
        return self.dictionary.active_above or 0.0

    def _entries(self, code_F: torch.Tensor, most: int) -> dict[str, Any]:
        active = fires(code_F, self._above).nonzero()[:, 0]
        order = torch.argsort(code_F[active].abs(), descending=True, stable=True)[:most]
        chosen = active[order]
        return {"latents": chosen.tolist(), "acts": code_F[chosen].tolist()}
