"""A prompt, what a model writes after it with and without edits, and both distributions over that
text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from saekit.errors import DataError
from saekit.harvesting.models import LiveModel
from saekit.intervention.attach import attach
from saekit.intervention.controls import Controls
from saekit.intervention.live import Live
from saekit.intervention.reconstruct import log_probabilities

Span = Literal["all", "prompt", "generated", "last"]
Edit = Callable[[Live, Span | torch.Tensor], None]
"""Makes its edits at these positions."""


@dataclass(frozen=True)
class Continuation:
    """What the model writes after the prompt."""

    text: str
    tokens: list[str]
    kl: list[float]
    """Of each token: KL(clean || steered) of the distributions that it could come from, in nats."""
    perplexity: float
    """Of these tokens under the clean model: what the edit costs in coherence."""


@dataclass(frozen=True)
class TokenChange:
    """A token after the prompt, with its log-probability in nats."""

    token: str
    clean: float
    steered: float


class SteeredText:
    """A prompt, and what a model makes of it."""

    def __init__(
        self,
        live_model: LiveModel,
        prompt: str,
        chat: bool,
        positions: Span,
        max_new_tokens: int,
        error: bool = True,
    ) -> None:
        if live_model.output_head is None:
            raise DataError(
                f"{live_model.name} has no logits to steer", "give a causal language model"
            )
        self.module: Any = live_model.module
        self.tokenizer = live_model.tokenizer
        self.positions: Span = positions
        self.max_new_tokens = max_new_tokens
        self.error = error
        if chat:
            messages = [{"role": "user", "content": prompt}]
            ids = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )
        else:
            ids = self.tokenizer(prompt)["input_ids"]
        if not len(ids):
            raise DataError("the prompt holds no token", "give a longer one")
        self.ids = torch.tensor([ids], device=live_model.device)

    def written(self, live: Live, edit: Edit | None = None) -> torch.Tensor:
        """(1,P+T): the prompt and what the model writes."""
        self._edit(live, edit, self.positions)
        pad = self.tokenizer.pad_token_id
        return self.module.generate(
            self.ids,
            attention_mask=torch.ones_like(self.ids),
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.eos_token_id if pad is None else pad,
        )

    def log_p(self, live: Live, ids: torch.Tensor, edit: Edit | None = None) -> torch.Tensor:
        """(T,V): the distributions of the tokens after the prompt, in nats."""
        self._edit(live, edit, self.columns(ids))
        return self._scored(ids)[0]

    def controlled(
        self, live: Live, controls: Controls, strength: float, ids: torch.Tensor
    ) -> list[torch.Tensor]:
        """[(C,T,V)] of each kind of control: the distributions with each of C directions added."""
        self._edit(live, lambda _live, _where: None, "all")
        scored = []
        for sae in controls.kinds:
            with attach(self.module, sae, controls.hook) as control:
                for row in range(sae.latents):
                    where = self.columns(ids)
                    control.add(row, strength, raw=True, positions=where, examples=row)
                scored.append(self._scored(ids.expand(sae.latents, -1)))
        return scored

    def raised_by(self, live: Live, edit: Edit, top: int) -> torch.Tensor:
        """(top,): the tokens that an edit raises most right after the beginning of a text."""
        begin = self.tokenizer.bos_token_id
        begin = self.tokenizer.eos_token_id if begin is None else begin
        ids = torch.full_like(self.ids[:, :1], 0 if begin is None else begin)
        self._edit(live, None, "all")
        clean_V = log_probabilities(self.module(ids, use_cache=False).logits[:, -1])[0]
        self._edit(live, edit, "all")
        edited_V = log_probabilities(self.module(ids, use_cache=False).logits[:, -1])[0]
        return (edited_V - clean_V).topk(top).indices

    def columns(self, ids: torch.Tensor) -> Span | torch.Tensor:
        """The positions, in a pass over a whole text that was generated."""
        prompt, column = self.ids.shape[1], torch.arange(ids.shape[1], device=ids.device)
        if self.positions == "all":
            return "all"
        first = {"generated": prompt, "last": prompt - 1}
        chosen = column < prompt if self.positions == "prompt" else column >= first[self.positions]
        return chosen[None]

    def new(self, ids: torch.Tensor) -> list[int]:
        return ids[0, self.ids.shape[1] :].tolist()

    def decoded(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens)

    def change(self, token: int, log_p: tuple[torch.Tensor, torch.Tensor]) -> TokenChange:
        clean_TV, steered_TV = log_p
        before, after = float(clean_TV[0, token]), float(steered_TV[0, token])
        return TokenChange(self.decoded([token]), before, after)

    def continuation(
        self, ids: torch.Tensor, clean_TV: torch.Tensor, steered_TV: torch.Tensor
    ) -> Continuation:
        tokens = self.new(ids)
        return Continuation(
            self.decoded(tokens),
            [self.decoded([token]) for token in tokens],
            divergences(clean_TV, steered_TV).tolist(),
            perplexity(clean_TV, tokens),
        )

    def _edit(self, live: Live, edit: Edit | None, where: Span | torch.Tensor) -> None:
        """Only these edits from now on; None: the clean model."""
        live.clear()
        live[0].keep_error(self.error or edit is None)
        if edit is not None:
            edit(live, where)

    def _scored(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """(B,T,V)."""
        logits = self.module(ids_BT, use_cache=False).logits[:, self.ids.shape[1] - 1 : -1]
        return log_probabilities(logits.flatten(0, 1)).view_as(logits)


def divergences(clean_TV: torch.Tensor, steered_TV: torch.Tensor) -> torch.Tensor:
    """(T,): KL(clean || steered), in nats."""
    p_TV = clean_TV.exp()
    # a token that the model rules out has p = 0 and the logarithm -inf
    return torch.where(p_TV > 0, p_TV * (clean_TV - steered_TV), 0.0).sum(1)


def perplexity(clean_TV: torch.Tensor, tokens: list[int]) -> float:
    at = torch.tensor(tokens, device=clean_TV.device)[:, None]
    return float((-clean_TV.gather(1, at)).mean().exp())


def effects(clean_TV: torch.Tensor, edited_CTV: torch.Tensor, targets: torch.Tensor) -> list[float]:
    """(C,): mean over T of the change of the log-probability of the targets together."""
    before_T = clean_TV[:, targets].logsumexp(1)
    return (edited_CTV[:, :, targets].logsumexp(2) - before_T).mean(1).tolist()
