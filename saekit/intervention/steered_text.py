"""A prompt, what a model writes after it with and without edits, and both distributions over that
text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from saekit.errors import DataError, UsageError, check_choice, opt
from saekit.harvesting.models import LiveModel
from saekit.intervention.controls import Controls
from saekit.intervention.doses import Edit, control_added
from saekit.intervention.live import Live
from saekit.intervention.positions import TEXT_NAMES
from saekit.intervention.reconstruct import log_probabilities

Span = Literal["all", "prompt", "generated", "last"]


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


@dataclass(frozen=True)
class Writing:
    """How texts are written."""

    positions: Span = "all"
    """Where edits act."""
    chat: bool = False
    """The prompt is a user's message in the model's chat template."""
    max_new_tokens: int = 40
    temperature: float = 0.0
    """Of sampling from the whole distribution; 0: greedy."""

    def __post_init__(self) -> None:
        check_choice("positions", self.positions, TEXT_NAMES)
        if self.max_new_tokens < 1:
            raise UsageError(f"{opt('max_new_tokens', self.max_new_tokens)} must be at least 1")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise UsageError(f"{opt('temperature', self.temperature)} must be 0 or more")


class _Told:
    """The streamer of `generate`, which puts the prompt and then each token."""

    def __init__(self, decoded: Callable[[list[int]], str], tell: Callable[[str], None]) -> None:
        self._decoded, self._tell = decoded, tell
        self._tokens: list[int] | None = None

    def put(self, value: torch.Tensor) -> None:
        if self._tokens is None:
            self._tokens = []
            return
        # all of it again: the text of a token may depend on those before it
        self._tokens += value.flatten().tolist()
        self._tell(self._decoded(self._tokens))

    def end(self) -> None: ...


class SteeredText:
    """A prompt, and what a model makes of it."""

    def __init__(
        self, live_model: LiveModel, prompt: str, writing: Writing, error: bool = True
    ) -> None:
        if live_model.output_head is None:
            images = live_model.image_tokens is not None
            raise DataError(
                f"{live_model.name} writes no text",
                f"give {opt('image')}" if images else "give a causal language model",
            )
        self.module: Any = live_model.module
        self.tokenizer = live_model.tokenizer
        self.prompt, self.writing, self.error = prompt, writing, error
        ids = self._message(prompt) if writing.chat else self.tokenizer(prompt)["input_ids"]
        if not len(ids):
            raise DataError("the prompt holds no token", "give a longer one")
        self.ids = torch.tensor([ids], device=live_model.device)

    def _message(self, prompt: str) -> list[int]:
        """Of a user's message, up to where the answer begins. Raises DataError."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise DataError("the tokenizer has no chat template", f"drop {opt('chat')}")
        messages = [{"role": "user", "content": prompt}]
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )

    def written(
        self,
        live: Live,
        edit: Edit | None = None,
        seed: int = 0,
        tell: Callable[[str], None] | None = None,
    ) -> torch.Tensor:
        """(1,P+T): the prompt and what the model writes. `seed`: of sampling. `tell` is called with
        the text after the prompt whenever there is one more token; what it raises ends the
        writing."""
        self._edit(live, edit, self.writing.positions)
        pad, temperature = self.tokenizer.pad_token_id, self.writing.temperature
        # the model's own distribution, whatever its generation_config prefers
        plain: dict[str, Any] = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
        plain |= {"num_beams": 1}
        if temperature:
            plain |= {"temperature": temperature, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        devices = [self.ids.device] if self.ids.is_cuda else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            return self.module.generate(
                self.ids,
                attention_mask=torch.ones_like(self.ids),
                max_new_tokens=self.writing.max_new_tokens,
                do_sample=temperature > 0,
                pad_token_id=self.tokenizer.eos_token_id if pad is None else pad,
                streamer=None if tell is None else _Told(self.decoded, tell),
                **plain,
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
        for kind in controls.kinds:
            where = self.columns(ids)
            with control_added(self.module, controls, kind, strength, where) as count:
                scored.append(self._scored(ids.expand(count, -1)))
        return scored

    def tokens(self, wanted: Sequence[str] | Sequence[int]) -> torch.Tensor:
        """(n,): tokens by number or as they are written. Raises UsageError for what is not
        one token of the vocabulary."""
        size = self.module.get_output_embeddings().weight.shape[0]
        numbers = [self._number(token) if isinstance(token, str) else token for token in wanted]
        if outside := [number for number in numbers if not 0 <= number < size]:
            raise UsageError(f"{opt('targets')}: token {outside[0]} is not below {size:,}")
        return torch.tensor(numbers, dtype=torch.int64, device=self.ids.device)

    def _number(self, token: str) -> int:
        numbers = self.tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(numbers) == 1 and numbers[0] != self.tokenizer.unk_token_id:
            return numbers[0]
        pieces = ", ".join(repr(self.decoded([number])) for number in numbers)
        raise UsageError(
            f"{opt('targets', token)} is not one token", f"it is {pieces}" if pieces else "' King'"
        )

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
        positions = self.writing.positions
        if positions == "all":
            return "all"
        first = {"generated": prompt, "last": prompt - 1}
        chosen = column < prompt if positions == "prompt" else column >= first[positions]
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
