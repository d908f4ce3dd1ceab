"""SAELens' registry of published dictionaries, pretrained_saes.yaml: names -> places on the hub.

The file comes from an installed sae-lens, which is not imported, or is the one that SAEKIT_REGISTRY
names; saekit ships none.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from saekit.errors import DataError, MissingError, UsageError, unreadable
from saekit.interop.hub import near_names
from saekit.options import Doc
from saekit.store.oserrors import reading
from saekit.typed import as_type

if TYPE_CHECKING:
    from saekit.interop.dictionary import Origin

PREFIX = "saelens:"
VARIABLE, FILE = "SAEKIT_REGISTRY", "pretrained_saes.yaml"
# SAELens' loader -> our format
FORMAT_OF = {
    "sae_lens": "saelens",
    "connor_rob_hook_z": "hook_z",
    "sparsify": "sparsify",
    "dictionary_learning_1": "dictionary_learning",
    "gemma_2": "gemma_scope",
    "gemma_2_transcoder": "gemma_scope",
    "gemma_3": "gemma_scope_2",
    "llama_scope": "llama_scope",
    "llama_scope_r1_distill": "llamascopium",
    "qwen_scope": "qwen_scope",
    "goodfire": "goodfire",
    "deepseek_r1": "deepseek_r1",
    "mwhanna_transcoder": "circuit_tracer",
    "temporal": "temporal",
}
# SAELens' loader -> what to do instead
INSTEAD = {
    "mntss_clt_layer_transcoder": "SAELens adds up the decoders of a layer, which saekit does not;"
    " open the layer with all of them: hf:{repo}/W_enc_{path}.safetensors",
}
# (loader, part of the repo or path) -> hook of layer L, where the name does not say it
_HOOKS = (
    ("gemma_2", "embedding/", "hook_embed"),
    ("gemma_2", "-res/", "blocks.{}.hook_resid_post"),
    ("gemma_2", "-mlp/", "blocks.{}.hook_mlp_out"),
    ("gemma_2", "-att/", "blocks.{}.attn.hook_z"),
    ("gemma_2_transcoder", "", "blocks.{}.ln2.hook_normalized"),
    ("gemma_3", "/resid_post", "blocks.{}.hook_resid_post"),
    ("gemma_3", "/attn_out", "blocks.{}.attn.hook_z"),
    ("gemma_3", "/mlp_out", "blocks.{}.hook_mlp_out"),
    ("gemma_3", "/transcoder", "blocks.{}.hook_mlp_in"),
    ("llama_scope", "-LXR-", "blocks.{}.hook_resid_post"),
    ("llama_scope", "-LXM-", "blocks.{}.hook_mlp_out"),
    ("llama_scope", "-LXA-", "blocks.{}.hook_attn_out"),
    ("llama_scope_r1_distill", "", "blocks.{}.hook_resid_post"),
    ("dictionary_learning_1", "resid_post", "blocks.{}.hook_resid_post"),
    ("qwen_scope", "", "blocks.{}.hook_resid_post"),
    ("goodfire", "", "blocks.{}.hook_resid_post"),
    ("mwhanna_transcoder", "", "blocks.{}.mlp.hook_in"),
)


@dataclass(frozen=True)
class Listed:
    name: str
    """What `load` and every CKPT argument take."""
    model: str
    hook: str | None
    """None, as below: the registry does not say."""
    latents: int | None
    l0: float | None
    """Mean number of active latents, as its authors published it."""


@dataclass(frozen=True)
class Entry:
    """One dictionary of the registry."""

    release: str
    id: str
    repo: str
    path: str
    """Folder or file in the repo."""
    loader: str
    """SAELens' name for the format."""
    model: str
    neuronpedia: str | None
    l0: float | None
    overrides: dict[str, Any]
    """Settings of SAELens that replace those of the files. `norm_scaling_factor` is one that it
    moves into the weights as it loads."""

    @property
    def name(self) -> str:
        return f"{PREFIX}{self.release}/{self.id}"

    @property
    def hook(self) -> str | None:
        """In TransformerLens' words; None where neither name nor path says it."""
        if named := re.search(r"blocks\.(\d+)\.(?:attn\.)?(hook_[a-z]+(?:_[a-z]+)*)", self.id):
            attention = "attn." if named[2] == "hook_z" else ""
            return f"blocks.{named[1]}.{attention}{named[2]}"
        place = f"{self.repo}/{self.path}"
        layer = re.search(r"(?:layer_?|-L|/L)(\d+)", f"/{self.path}") or re.match(
            r"layer_?(\d+)", self.id
        )
        for loader, part, hook in _HOOKS:
            if loader == self.loader and part in place and ("{}" not in hook or layer):
                return hook.format(layer[1]) if layer else hook
        return None

    @property
    def latents(self) -> int | None:
        """Number of latents, where a name says it: `width_16k`, `2pow14`, `W80K`, `_24576`."""
        place = f"{self.repo}/{self.path} {self.id}"
        if power := re.search(r"2pow(\d+)", place):
            return 2 ** int(power[1])
        if thousands := re.search(r"-W(\d+)K-", place):
            return int(thousands[1]) * 1024
        if exact := re.search(r"(?:hook_[a-z_]+|_ds)_?(\d{3,6})(?=$|[ _:])", place):
            return int(exact[1])
        rounded = re.search(r"width_(\d+)([km])|[-_](\d+)(k)(?=[-_]l)", place) or re.search(
            r"[-_](\d+)(k)(?=$|[-_])", self.neuronpedia or ""
        )
        if rounded is None:
            return None
        count, unit = [text for text in rounded.groups() if text]
        return 2 ** round(math.log2(int(count) * {"k": 1e3, "m": 1e6}[unit]))

    @property
    def listed(self) -> Listed:
        l0 = re.search(r"average_l0_(\d+)", self.path)
        return Listed(
            self.name,
            self.model,
            self.hook,
            self.latents,
            float(l0[1]) if self.l0 is None and l0 else self.l0,
        )


def dictionaries(
    query: Annotated[
        str | None,
        Doc("Words that must be in the name, model or hook.", metavar="QUERY", positional=True),
    ] = None,
    *,
    model: Annotated[
        str | None, Doc("Only dictionaries of this base model (part of its name).", metavar="M")
    ] = None,
) -> list[Listed]:
    """The dictionaries that SAELens' registry names; `saekit.load` takes each by its name.

    >>> saekit.dictionaries("res 16k", model="gemma-2-2b")[0].name
    'saelens:gemma-scope-2b-pt-res/layer_0/width_16k/average_l0_105'

    Needs an installed sae-lens, or a copy of its pretrained_saes.yaml that the environment variable
    SAEKIT_REGISTRY names. Raises MissingError where there is neither, DataError for a damaged file.
    """
    words = (query or "").lower().split()
    result = []
    for entry in entries():
        text = f"{entry.name} {entry.model} {entry.hook or ''}".lower()
        if all(word in text for word in words) and (model or "").lower() in entry.model.lower():
            result.append(entry.listed)
    return result


def resolve(name: str) -> Entry:
    """The entry of `saelens:RELEASE/SAE_ID`. Raises UsageError for another form, MissingError for
    an unknown name, with near ones."""
    release, slash, id = name.removeprefix(PREFIX).partition("/")
    if not release:
        raise UsageError(
            f"{name} is not a name in SAELens' registry",
            "write saelens:RELEASE/SAE_ID; `saekit dictionaries` lists them",
        )
    path = registry_file()
    releases = _releases(str(path), path.stat().st_mtime_ns)
    if release not in releases:
        raise MissingError(
            f"SAELens' registry has no release {release} ({path})", near_names(release, releases)
        )
    of_release = list(_of_release(path, release, releases[release]))
    for entry in of_release:
        if entry.id == id:
            return entry
    ids = [entry.id for entry in of_release]
    if not slash or not id:
        raise UsageError(
            f"{release} is a release of {len(ids)} dictionaries",
            f"name one, such as saelens:{release}/{ids[0]}" if ids else "choose another release",
        )
    raise MissingError(f"{release} has no dictionary {id}", near_names(id, ids))


def completed(origin: Origin, entry: Entry) -> Origin:
    """With what the registry knows and the files do not say."""
    known = {
        "base_model": entry.overrides.get("model_name") or entry.model,
        "hook": entry.overrides.get("hook_name") or entry.hook,
        "dataset": entry.overrides.get("dataset_path"),
        "neuronpedia": entry.neuronpedia,
    }
    return replace(origin, **{n: value for n, value in known.items() if getattr(origin, n) is None})


def registry_file() -> Path:
    """Raises MissingError where there is none."""
    if copy := os.environ.get(VARIABLE):
        path = Path(copy).expanduser()
        if not path.is_file():
            raise MissingError(f"{VARIABLE} names {path}, which is not a file", f"a copy of {FILE}")
        return path
    package = find_spec("sae_lens")  # finds the folder and imports nothing
    for folder in (package.submodule_search_locations or ()) if package else ():
        if (path := Path(folder) / FILE).is_file():
            return path
    raise MissingError(
        f"saelens: names need SAELens' registry, and sae-lens is not installed here ({VARIABLE} is"
        " not set)",
        f"pip install sae-lens, or set {VARIABLE} to a copy of its {FILE}",
    )


def entries() -> Iterator[Entry]:
    """All of them, in the order of the file."""
    path = registry_file()
    for release, value in _releases(str(path), path.stat().st_mtime_ns).items():
        yield from _of_release(path, release, value)


@lru_cache(maxsize=1)
def _releases(path: str, changed: int) -> dict[str, Any]:
    """The file as it is now; reading it takes a second."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # five times faster, not always there
    with reading(Path(path)), unreadable(f"{path} is damaged", f"a copy of SAELens' {FILE}"):
        releases = yaml.load(Path(path).read_text(), Loader=loader)
    if not isinstance(releases, dict):
        raise DataError(f"{path} is not SAELens' registry", f"a copy of its {FILE}")
    return {str(release): value for release, value in releases.items()}


def _of_release(path: Path, release: str, value: Any) -> Iterable[Entry]:
    with unreadable(f"{path}: release {release} is not as SAELens writes it", f"a copy of {FILE}"):
        return [
            Entry(
                release=release,
                id=str(sae["id"]),
                repo=as_type(value["repo_id"], str, "repo_id"),
                path=str(sae["path"]),
                loader=as_type(value.get("conversion_func") or "sae_lens", str, "loader"),
                model=as_type(value["model"], str, "model"),
                neuronpedia=as_type(sae.get("neuronpedia"), str | None, "neuronpedia"),
                l0=as_type(sae.get("l0"), float | None, "l0"),
                overrides=as_type(value.get("config_overrides") or {}, dict[str, Any], "overrides")
                | {name: sae[name] for name in ("norm_scaling_factor",) if name in sae},
            )
            for sae in value["saes"]
        ]
