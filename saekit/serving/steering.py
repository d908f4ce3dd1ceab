"""What a model writes, or which class it sees, with latents added, beside controls where they are
asked for: `saekit.steer`'s functions, with the text sent while it is written."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from saekit.harvesting.images import prepared
from saekit.harvesting.models import LiveModel
from saekit.intervention.attach import attach
from saekit.intervention.doses import control_rows, edit_of
from saekit.intervention.steer import SteerResult, beside, dosed
from saekit.intervention.steer_image import ImageSteerResult, SteeredImage, steer_image
from saekit.intervention.steered_text import SteeredText, Writing
from saekit.models.autoencoder import Autoencoder
from saekit.serving.questions import SteerImage, SteerText
from saekit.serving.worker import Tell

if TYPE_CHECKING:
    from PIL.Image import Image

TOP = 10
CLEAN_KEPT = 16  # texts without edits, which the next strength need not write again


class Steering:
    """A dictionary at its hooks in a model."""

    def __init__(
        self,
        live_model: LiveModel,
        dictionary: Autoencoder,
        hooks: tuple[str, ...],
        maxima: torch.Tensor | None,
    ) -> None:
        """Raises the errors of `attach`, and DataError for a model without logits or classes."""
        self.live_model, self.dictionary = live_model, dictionary
        self._attached: dict[str, Any] = {"hook": hooks, "maxima": maxima}
        self._clean: OrderedDict[tuple[Any, ...], torch.Tensor] = OrderedDict()
        with torch.inference_mode(), attach(live_model, dictionary, **self._attached) as live:
            if live_model.modality == "text":
                SteeredText(live_model, "a", Writing())
                return
            # an image model without a head has no logits, whatever its config says
            layout = live_model.image_tokens
            assert layout is not None, "an image model has an image layout"
            blank = torch.zeros(1, layout.channels, *layout.size)
            SteeredImage(live_model, blank, "all", error=True).log_p(live)

    def text(self, question: SteerText, tell: Tell) -> None:
        """Tells {"kind": "clean" | "steered", "text"} whenever there is a token more, then
        {"kind": "figures"} with what `saekit.steer` returns, as the command line writes it, then
        {"kind": "doses"} after each dose (`_doses`)."""
        writing = Writing(
            question.positions, question.chat, question.max_new_tokens, question.temperature
        )
        text = SteeredText(self.live_model, question.prompt, writing, question.error)
        targets = text.tokens(question.targets)
        edit = edit_of(question.strengths, question.ablate, question.raw)
        with (
            torch.inference_mode(),
            attach(self.live_model, self.dictionary, **self._attached) as live,
        ):
            edit(live, question.positions)  # what is wrong with it, before anything is written
            clean_ids = {question.seed: self._written(text, live, question, tell)}
            result = beside(
                text, live, edit, clean_ids, TOP,
                lambda written: tell({"kind": "steered", "text": written}),
            )  # fmt: skip
            tell(_figures(result))
            if not question.dose:
                return
            (latent,) = question.strengths
            for measured in dosed(
                text, live, result, clean_ids, latent, question.dose, targets, question.raw,
                question.seed, TOP, lambda _: tell(None),
            ):  # fmt: skip
                tell(_doses(measured, len(question.dose)))

    def _written(
        self, text: SteeredText, live: Any, question: SteerText, tell: Tell
    ) -> torch.Tensor:
        """The text without edits: written now, or before for another strength."""
        seed = question.seed if question.temperature else 0
        key = (
            question.prompt, question.chat, question.max_new_tokens, question.temperature, seed,
        )  # fmt: skip
        if key not in self._clean:
            self._clean[key] = text.written(
                live, None, question.seed, lambda written: tell({"kind": "clean", "text": written})
            )
            if len(self._clean) > CLEAN_KEPT:
                self._clean.popitem(last=False)
        self._clean.move_to_end(key)
        tell({"kind": "clean", "text": text.decoded(text.new(self._clean[key]))})
        return self._clean[key]

    def image(self, question: SteerImage, image: Image, tell: Tell) -> None:
        """Tells {"kind": "classes"} with what `saekit.steer` returns, as the command line writes
        it, then {"kind": "doses"} after each dose (`_doses`)."""
        layout = self.live_model.image_tokens
        assert layout is not None, "an image model has an image layout"
        mode = "L" if layout.channels == 1 else "RGB"
        pixels = prepared([image.convert(mode)], self.live_model.processor)

        def measured(result: ImageSteerResult) -> None:
            tell(_doses(result, len(question.dose)) if result.doses else _classes(result))

        steer_image(
            self.dictionary, pixels, question.strengths,
            ablate=question.ablate, dose=question.dose, model=self.live_model, raw=question.raw,
            error=question.error, positions=question.positions, targets=question.targets,
            partial=measured, **self._attached,
        )  # fmt: skip


def _figures(result: SteerResult) -> dict[str, Any]:
    return {
        "kind": "figures",
        "edits": result.edits,
        "clean": asdict(result.clean),
        "steered": asdict(result.steered),
        "raised": [asdict(change) for change in result.raised],
        "lowered": [asdict(change) for change in result.lowered],
    }


def _classes(result: ImageSteerResult) -> dict[str, Any]:
    return {
        "kind": "classes",
        "edits": result.edits,
        "classes": [asdict(change) for change in result.classes],
        "kl": result.kl,
        "patches": result.patches,
    }


def _doses(result: SteerResult | ImageSteerResult, of: int) -> dict[str, Any]:
    """The doses so far beside their controls, with the keys of `saekit steer`, `of` how many. The
    verdict, and its `scope`, are of all of them: null before."""
    more = ("perplexity",) if isinstance(result, SteerResult) else ()
    keys = ("strength", "effect", "kl", *more)
    is_whole = len(result.doses) == of
    return {
        "kind": "doses",
        "of": of,
        "targets": result.targets,
        "dose": [{key: getattr(dose, key) for key in keys} for dose in result.doses],
        "controls": control_rows(result.doses),
        "verdict": (result.verdict or None) if is_whole else None,
        "scope": result.scope if is_whole else None,
    }
