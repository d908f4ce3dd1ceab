"""What a dictionary says about the rows that it was trained on, in saekit's terms.

Both kinds of config.json are read: that of saekit's own training, whose spec says everything, and
that of a published dictionary, whose settings have the words of the package that wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saekit.types import Scope

# settings of a spec that its rows depend on, besides model, hook, context and scope
_OF_ROWS = ("layout", "pack", "max_norm")


@dataclass(frozen=True)
class Provenance:
    """None and (): it does not say."""

    model: str | None
    revision: str | None
    hooks: tuple[str, ...]
    """Those that it reads, several for a crosscoder, in the words of the package."""
    target_hook: str | None
    """Of a transcoder."""
    context: int | None
    scope: Scope | None
    rows: dict[str, Any]
    """The other settings of our own training's store that are not the defaults."""
    notes: tuple[str, ...]
    """What it says that saekit cannot follow."""


def provenance(config: Mapping[str, Any]) -> Provenance:
    """Of a checkpoint's config.json."""
    spec, origin = config["spec"], config.get("published")
    hook: str | None = spec["hook"]
    hooks = tuple(hook.split("+")) if hook else ()
    if spec["modality"] == "array":  # rows in memory say nothing about themselves
        return Provenance(None, None, (), None, None, None, {}, ())
    if origin is None:
        rows = {name: spec.get(name) for name in _OF_ROWS if spec.get(name)}
        if rows.get("layout") == "flat":
            del rows["layout"]
        return Provenance(
            spec["model"],
            spec["revision"],
            hooks,
            None,
            spec["context"],
            spec["scope"],
            rows,
            (),
        )
    scope, notes = rule(origin["format"], origin.get("special_tokens") or {})
    context = origin["context"] if (origin["context"] or 0) > 0 else None
    return Provenance(
        origin["base_model"],
        origin.get("revision"),
        hooks,
        origin.get("target_hook"),
        context,
        scope,
        {},
        notes,
    )


NO_BOS = (
    "it was trained on contexts without a BOS; saekit begins every context with the model's, whose"
    " row is not stored"
)


def rule(format: str, settings: Mapping[str, Any]) -> tuple[Scope | None, tuple[str, ...]]:
    """(scope, what saekit cannot follow) of a format's own settings for special tokens.

    SAELens trains on the BOS row unless `exclude_special_tokens`; settings of before that option
    do not have it. dictionary_learning does unless `remove_bos`.
    """
    scope: Scope | None = None
    notes = []
    # SAELens, and formats that have its settings.
    if "prepend_bos" in settings or "exclude_special_tokens" in settings:
        excludes = settings.get("exclude_special_tokens", False if format == "saelens" else None)
        if settings.get("prepend_bos") is False:
            scope = "content"
            notes.append(NO_BOS)
        elif excludes is not None:
            scope = "content" if excludes else "all"
        if isinstance(excludes, list):
            notes.append(f"it leaves out the tokens {excludes}; saekit leaves out the special ones")
    if any(settings.get("seqpos_slice") or ()):
        notes.append(f"it reads the positions {settings['seqpos_slice']} of a context only")
    # dictionary_learning.
    if settings.get("add_special_tokens") is False:
        scope = "content"
        notes.append(NO_BOS)
    elif isinstance(settings.get("remove_bos"), bool):
        scope = "content" if settings["remove_bos"] else "all"
    # ViT-Prisma, and saev, whose earlier versions call them patches.
    if settings.get("cls_token_only"):
        scope = "cls"
    elif settings.get("use_patches_only"):
        scope = "content"
    elif settings.get("cls_token_only") is False and settings.get("use_patches_only") is False:
        scope = "all"
    tokens = settings.get("tokens", settings.get("patches"))
    if isinstance(tokens, str):
        scope = _SAEV.get(tokens)
    return scope, tuple(notes)


_SAEV: dict[str, Scope] = {
    "cls": "cls",
    "image": "content",
    "patches": "content",
    "content": "content",
    "all": "all",
}
