"""The harvest that a dictionary needs: model, hooks, context and scope as it says, to be overridden
by what the caller gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from torch import nn

from saekit.errors import DataError, UsageError, opt
from saekit.harvesting.config import HarvestConfig
from saekit.harvesting.hooks import resolve_hook
from saekit.harvesting.keywords import HarvestKeywords
from saekit.harvesting.models import LiveModel
from saekit.options import Doc
from saekit.store.manifest import Manifest

Dictionary = Annotated[
    str | Path | None,
    Doc(
        "Take hook, context and scope from this checkpoint or published dictionary, and the model"
        " unless MODEL is given.",
        metavar="CKPT",
        flag="for",
    ),
]


@dataclass(frozen=True)
class Source:
    """What a dictionary said, and what of it is used."""

    name: str
    model: str | None
    revision: str | None
    hooks: tuple[str, ...]
    """Those that it reads, in its own words."""
    widths: tuple[int, ...]
    """Of these."""
    target_hooks: tuple[str, ...]
    settings: dict[str, Any]
    """Fields of HarvestConfig by name."""
    given: tuple[str, ...]
    """Those that the caller gave instead: `hook` and names of settings."""
    unsaid: tuple[str, ...]
    notes: tuple[str, ...]

    def check(self, widths: dict[str, int], live: LiveModel, config: HarvestConfig) -> None:
        """Raise DataError where a hook's rows have another width than the dictionary reads."""
        if "hook" in self.given:
            return
        for hook, wanted in zip(self.hooks, self.widths):
            width = widths[resolve_hook(live.module, hook, live.name)]
            if width != wanted:
                raise DataError(
                    f"{self.name} takes {wanted} values per row of {hook}; {live.name} gives"
                    f" {width} there",
                    f"give the model that it was trained on, {self.model or 'not said'}",
                )

    def messages(self, live: LiveModel, config: HarvestConfig) -> list[str]:
        """What came from the dictionary, what it does not say, and what cannot be followed."""
        text = live.modality == "text"
        names = [name for name in self.settings if name != "ctx" or text]
        taken = [opt(name, getattr(config, name)) for name in names if name not in self.given]
        if "hook" not in self.given:
            taken = [*(opt("hook", hook) for hook in config.hooks), *taken]
        lines = [f"from {self.name}: {live.name}, {', '.join(taken)}"]
        unsaid = [n for n in self.unsaid if n not in self.given and (n != "ctx" or text)]
        if unsaid:
            values = ", ".join(opt(name, getattr(config, name)) for name in unsaid)
            lines.append(f"{self.name} does not say {' and '.join(unsaid)}: {values}")
        if self.revision and live.revision and self.revision != live.revision:
            lines.append(
                f"{self.name} was trained on the revision {self.revision}, and this is"
                f" {live.revision}"
            )
        return lines + [f"{self.name}: {note}" for note in self.notes]


@dataclass(frozen=True)
class Request:
    """What is to be harvested."""

    model: str | LiveModel | nn.Module
    config: HarvestConfig
    revision: str | None = None
    """Of a model on the hub."""
    source: Source | None = None


def requested(
    model: str | LiveModel | nn.Module | None,
    hook: str | Sequence[str],
    options: HarvestKeywords,
    dictionary: str | Path | None,
) -> Request:
    """The arguments of `harvest` with what `dictionary` adds. Raises UsageError where neither says
    which model and hook, and the errors of opening it."""
    hooks = (hook,) if isinstance(hook, str) else tuple(hook)
    if dictionary is None:
        if model is None:
            raise UsageError("harvest needs a model", f"give one, or {opt('dictionary')}")
        return Request(model, HarvestConfig(hooks=hooks, **options))
    source = _source(str(dictionary), hooks, options)
    # The model, by the caller's word or the dictionary's.
    if model is None and source.model is None:
        raise UsageError(f"{source.name} does not say which model it was trained on", "give MODEL")
    if not hooks and not source.hooks:
        raise UsageError(
            f"{source.name} does not say which hook it reads", f"give it as {opt('hook')}"
        )
    named = model is None
    settings: dict[str, Any] = source.settings | dict(options)
    config = HarvestConfig(hooks=hooks or (*source.hooks, *source.target_hooks), **settings)
    return Request(
        source.model if model is None and source.model else model or "",
        config,
        _on_hub(source.revision) if named else None,
        source,
    )


def _on_hub(revision: str | None) -> str | None:
    """A commit, branch or tag; digests of local weights (`files:`) are not on the hub."""
    return None if revision is None or ":" in revision else revision


def _source(name: str, hooks: tuple[str, ...], options: HarvestKeywords) -> Source:
    # opens every format, which takes a while to import
    from saekit.interop.base_models import hub_id
    from saekit.interop.opening import open_checkpoint
    from saekit.interop.provenance import provenance

    config = open_checkpoint(name).config
    said = provenance(config)
    values = {"ctx": said.context, "scope": said.scope}
    targets = tuple(said.target_hook.split("+")) if said.target_hook else ()
    if recorded := config["training"].get("target_store"):
        targets = (Manifest.read(Path(recorded)).spec.hook,)
    widths = tuple(config["config"].get("parts") or (config["config"]["d_in"],))
    return Source(
        name=name,
        model=said.model and hub_id(said.model),
        revision=said.revision,
        hooks=said.hooks,
        widths=widths if len(widths) == len(said.hooks) else (),
        target_hooks=targets,
        settings={name: value for name, value in values.items() if value} | said.rows,
        given=(*(("hook",) if hooks else ()), *options),
        unsaid=tuple(name for name, value in values.items() if not value),
        notes=said.notes,
    )
