"""Which latents answer a question about a token, a label or another latent, best first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from saekit.errors import DataError, UsageError, did_you_mean, opt
from saekit.indexing.association import label_figures, token_figures
from saekit.inspection.known import Known
from saekit.inspection.opening import InspectedModel
from saekit.inspection.tokens import TokenTexts
from saekit.store.stack import StackedStore

By = Literal[
    "max", "mean", "share", "lift", "information", "auroc", "decoder", "encoder", "coactivation"
]
# question -> what it can be ordered by, the default first
ORDERS: dict[str, tuple[str, ...]] = {
    "text": ("max", "mean"),
    "image": ("max", "mean"),
    "token": ("information", "mean", "share", "lift"),
    "label": ("information", "auroc", "share", "lift"),
    "near": ("decoder", "encoder", "coactivation"),
}
AT_BEGINNINGS = 0.5  # share of the active rows from which a latent is one of beginnings


@dataclass(frozen=True)
class Ranking:
    """Latents that answer a question, best first, with the value of each (F,) that is shown as
    `act` (None: the largest on the store), and figures by name: one per latent (F,), or one number
    for all."""

    order: np.ndarray
    act: np.ndarray | None = None
    figures: Mapping[str, np.ndarray | float] = field(default_factory=dict)

    def of(self, latent: int) -> dict[str, float] | None:
        """The figures of one latent."""
        if not self.figures:
            return None
        return {
            name: float(values[latent] if isinstance(values, np.ndarray) else values)
            for name, values in self.figures.items()
        }


def check_order(question: str, by: str | None) -> str:
    """What to order by. Raises UsageError where the question cannot be ordered so."""
    known = ORDERS.get(question, ())
    if by is None:
        return known[0] if known else ""
    if by not in known:
        choices = " or ".join(known)
        raise UsageError(
            f"{opt('by', by)} does not go with {opt(question) if known else 'this question'}",
            f"{opt('by')} {choices}" if known else f"drop {opt('by')}",
        )
    return by


def descending(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The latents of `among` (F,) bool, largest value first, the earlier of equal ones first."""
    latents = np.flatnonzero(among)
    return latents[np.argsort(-values[latents], kind="stable")]


def of_token(inspected: InspectedModel, known: Known, token: str, by: str) -> Ranking:
    """Latents by what they tell about a token, whatever its context. Raises DataError for a store
    that is not text, or a token that it does not have."""
    if known.texts is None:
        path = inspected.store.path
        raise DataError(f"{path} holds no tokens", f"{opt('label')} or {opt('near')}")
    index = known.of_entries(opt("token", token))
    rows = _rows_of_token(index.origin.token, known.texts, token)
    figures = token_figures(index, rows)
    columns = {
        "mean": figures.mean,
        "share": figures.share,
        "lift": figures.lift,
        "information": figures.information,
    }
    return Ranking(
        descending(columns[by], (figures.both > 0) & (figures.lift > 1)),
        index.by_row.largest(rows),
        {**columns, "chance": figures.chance},
    )


def _rows_of_token(token_R: np.ndarray, texts: TokenTexts, token: str) -> np.ndarray:
    """Rows whose token is written so. Raises DataError, with near ones."""
    present = np.unique(token_R).tolist()
    written = {index: texts.alone(index) for index in present}
    ids = [index for index, text in written.items() if text == token]
    if ids:
        return np.flatnonzero(np.isin(token_R, ids))
    word = token.strip().casefold()
    alike = sorted({text for text in written.values() if text.strip().casefold() == word and word})
    if alike:
        hint = f"{opt('token', *alike[:3])}: spaces and capitals count"
    else:
        pieces = texts.tokenized(token)
        several = [texts.alone(index) for index in pieces[0]] if pieces else []
        hint = did_you_mean(token, written.values())
        if len(several) > 1:
            hint = f"it is several tokens: {', '.join(map(repr, several))}; give one of them"
    raise DataError(f"no row of the store is on the token {token!r}", hint)


def of_label(known: Known, label: str, by: str) -> Ranking:
    """Latents by what their largest size in an example tells about its label. Raises DataError for
    a label that the data do not have."""
    index = known.of_entries(opt("label", label))
    names = index.origin.labels
    if label not in names:
        if not names:
            raise DataError("the data of this store have no labels")
        shown = ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
        raise DataError(
            f"{opt('label', label)}: the data have no such label",
            f"{did_you_mean(label, names)}there are {shown}",
        )
    number = names.index(label)
    figures = label_figures(index, number)
    columns = {
        "information": figures.information,
        "auroc": figures.auroc,
        "share": figures.share,
        "lift": figures.lift,
    }
    origin = index.origin
    rows = np.flatnonzero((origin.example_label == number)[origin.example])
    chances = {"chance": figures.chance, "auroc_chance": figures.auroc_chance}
    return Ranking(
        descending(columns[by], (figures.both > 0) & (figures.lift > 1)),
        index.by_row.largest(rows),
        {**columns, **chances},
    )


def near_latent(inspected: InspectedModel, known: Known, latent: int, by: str) -> Ranking:
    """Other latents by the cosine of their decoder or encoder rows, or of their activations on all
    rows of the store. Raises DataError where there are none."""
    alive = known.active > 0
    others = alive.copy()
    others[latent] = False
    if by == "coactivation":
        index = known.of_entries(f"{opt('near', latent)} with {opt('by', by)}")
        found = index.coactivation(latent)
        assert found.cosine is not None
        figures = {
            "cosine": found.cosine,
            "jaccard": found.jaccard,
            "pmi": found.pmi,
            "together": found.together,
        }
        return Ranking(descending(found.cosine, others & (found.together > 0)), None, figures)
    stacked = isinstance(inspected.store, StackedStore)
    if by == "decoder":
        rows_FD = inspected.even_directions() if stacked else inspected.directions()
    else:
        rows_FD = getattr(inspected.model, "W_enc", None)
    if rows_FD is None:
        raise DataError(f"{inspected.name} has no {by} row per latent", opt("by", "coactivation"))
    with torch.no_grad():
        unit_FD = torch.nn.functional.normalize(rows_FD.detach().float(), dim=1)
        cosine = (unit_FD @ unit_FD[latent]).double().numpy()
    return Ranking(descending(cosine, others), None, {"cosine": cosine})


def filters_of(
    known: Known, min_density: float | None, max_density: float | None, not_bos: bool
) -> dict[str, np.ndarray]:
    """Option of each filter that is given -> (F,) bool: the latents that pass it. Raises
    UsageError, DataError."""
    for name, value in (("min_density", min_density), ("max_density", max_density)):
        if value is not None and not 0 <= value <= 1:
            raise UsageError(f"{opt(name, value)} must be between 0 and 1")
    passes: dict[str, np.ndarray] = {}
    if min_density is not None:
        passes[opt("min_density", min_density)] = known.density >= min_density
    if max_density is not None:
        passes[opt("max_density", max_density)] = known.density <= max_density
    if not_bos:
        index = known.of_entries(opt("not_bos", True))
        if not len(index.origin.token):
            raise DataError(f"{opt('not_bos', True)} is for texts", f"drop {opt('not_bos')}")
        passes[opt("not_bos", True)] = index.first < AT_BEGINNINGS * index.active
    return passes


def kept(
    known: Known, min_density: float | None, max_density: float | None, not_bos: bool
) -> np.ndarray:
    """(F,) bool: the latents that pass all filters. Raises as filters_of does."""
    filters = filters_of(known, min_density, max_density, not_bos)
    return np.logical_and.reduce([np.ones(len(known.active), bool), *filters.values()])


def left_out(filters: Mapping[str, np.ndarray], answer: np.ndarray) -> str:
    """Why nothing is left of the latents (n,) that answer a question: how many each filter leaves
    out."""
    if not len(answer):
        return "no latent answers this question"
    parts = [f"{name} leaves out {(~passes[answer]).sum():,}" for name, passes in filters.items()]
    return f"of {len(answer):,} latents that answer the question, {', '.join(parts)}"
