"""Latents that predict the next token: in the store one token follows most of a latent's strongest
rows, and its decoder row raises that token. What steering by them does can be predicted before
anything is steered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from saekit.errors import DataError
from saekit.harvesting.models import LiveModel
from saekit.inspection.indexed import index_of
from saekit.inspection.opening import open_pair
from saekit.inspection.output_head import output_head
from saekit.inspection.relate import CHUNK
from saekit.inspection.show import token_texts
from saekit.store.opening import RowsLike
from saekit.store.reader import Store
from saekit.training.checkpoints import ModelLike
from saekit.types import Progress

STRONGEST = 20  # rows of different contexts
SHARE = 0.5
MOST_DENSITY = 0.01


@dataclass(frozen=True)
class NextTokenLatent:
    """A latent and the token that it predicts."""

    latent: int
    token: int
    """Its id."""
    text: str
    share: float
    """Of the latent's strongest rows, those that the token follows."""
    score: float
    """What the decoder row adds to the token's logit on the direct path (w_j W_U^T, without the
    final norm), in standard deviations above the mean of all tokens."""


def next_token_latents(
    checkpoint: ModelLike,
    store: RowsLike,
    live_model: LiveModel | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> list[NextTokenLatent]:
    """The latents of which one token follows more than SHARE of the STRONGEST rows in a store, and
    which are active in at most MOST_DENSITY of all rows; largest score first.

    live_model: the model that the store came from; None: it is loaded.

    Raises DataError for a store without texts and for a dictionary whose directions the output head
    does not read, and the errors of `open_pair`.
    """
    # the index, the tokens after the strongest rows, and the output head
    inspected = open_pair(checkpoint, store)
    opened, W_dec_FD = inspected.store, inspected.directions()
    if not isinstance(opened, Store) or opened.spec.modality != "text" or W_dec_FD is None:
        raise DataError(
            f"{inspected.name}: the next token is predicted by latents of texts with decoder rows"
        )
    index = index_of(inspected, progress)
    module = None if live_model is None else live_model.module
    head, why = output_head(inspected, opened, module)
    if head is None:
        raise DataError(why)
    rows_FR, _ = index.shown.top.padded(np.arange(len(index)), STRONGEST)
    top_FR = torch.from_numpy(rows_FR)
    token_F, share_F = common_next(next_tokens(opened), top_FR)
    # latents with enough rows, and their tokens
    rare_F = (torch.from_numpy(index.density) <= MOST_DENSITY) & (top_FR[:, -1] >= 0)
    latents = (rare_F & (share_F > SHARE) & (token_F >= 0)).nonzero()[:, 0]
    head_rows = torch.searchsorted(torch.tensor(head.ids), token_F[latents])
    scores = raised_by(W_dec_FD.detach().float().cpu()[latents], head.W_U_ND, head_rows)
    texts = token_texts(opened)
    chosen = [
        NextTokenLatent(j, token, texts.alone(token), share, score)
        for j, token, share, score in zip(
            latents.tolist(),
            token_F[latents].tolist(),
            share_F[latents].tolist(),
            scores.tolist(),
        )
    ]
    return sorted(chosen, key=lambda entry: -entry.score)


def next_tokens(store: Store) -> torch.Tensor:
    """(N,) int64: the id of the token that follows each row in its context; -1 after the last."""
    positions, following = store.column("position"), np.full(len(store), -1, np.int64)
    row = 0
    while row < len(store):
        example, first = store.example_at(row)
        row = first + example.rows
        after = positions[first:row] + 1
        tokens = np.append(np.asarray(example.tokens, np.int64), -1)
        following[first:row] = tokens[after]
    return torch.from_numpy(following)


def common_next(next_N: torch.Tensor, top_FR: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(token (F,), share (F,)): the most common token after the given rows of each latent, and
    its share of them; -1 stands for no row and for no token."""
    following_FR = torch.where(top_FR >= 0, next_N[top_FR.clamp_min(0)], -1)
    token_F = following_FR.mode(1).values
    return token_F, (following_FR == token_F[:, None]).double().mean(1)


def raised_by(W_dec_FD: torch.Tensor, W_U_ND: torch.Tensor, row_F: torch.Tensor) -> torch.Tensor:
    """(F,): the score of a NextTokenLatent, of row `row_F` of W_U."""
    scores = []
    for directions, rows in zip(W_dec_FD.split(CHUNK), row_F.split(CHUNK)):
        logits = directions @ W_U_ND.T
        own = logits.gather(1, rows[:, None])[:, 0]
        scores.append((own - logits.mean(1)) / logits.std(1))
    return torch.cat(scores) if scores else torch.zeros(0)
