"""A folder of files -> a repo on the hub, with a model card. Nothing is made public unless the
caller says so, and nothing is sent before `confirm` agrees."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saekit.errors import MissingError, UsageError, opt
from saekit.interop.hub_errors import LOG_IN, endpoint, explained
from saekit.interop.outgoing import without_folders
from saekit.types import Progress

CARD = "README.md"
HUB_MODEL = re.compile(r"[\w.-]+(?:/[\w.-]+)?")


@dataclass(frozen=True)
class PushResult:
    repo: str
    url: str
    commit: str
    private: bool
    files: tuple[str, ...]


def push(
    folder: str | Path,
    repo: str,
    *,
    path: str = "",
    public: bool = False,
    card: str | None = None,
    confirm: Callable[[str], bool] = lambda question: True,
    progress: Callable[[Progress], None] = lambda _: None,
) -> PushResult:
    """Upload every file of a folder in one commit, into OWNER/REPO, which is created where it does
    not exist.

    Parameters
        path: folder in the repo for the files, as a repo of several dictionaries has them; "": the
            root.
        public: False: a new repo is private, and an existing public one is refused. An existing
            repo keeps its visibility.
        card: text of the repo's README.md.
        confirm: gets one question; unless it returns True, nothing is sent.

    Raises MissingError where the folder has no files, no token is set or the hub refuses;
    UsageError for a malformed repo name, a public repo without `public` and a no.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    # what is to be sent, and where
    try:
        validate_repo_id(repo)
        is_name = "/" in repo
    except HFValidationError:
        is_name = False
    if not is_name:
        raise UsageError(f"{opt('push', repo)} is not a repo name", "give OWNER/REPO")
    if constants.HF_HUB_OFFLINE:
        raise MissingError("offline mode is on (HF_HUB_OFFLINE)", "unset HF_HUB_OFFLINE to push")
    paths = {
        posixpath.join(path, file.relative_to(folder).as_posix()): file
        for file in _files(Path(folder))
    }
    if not get_token():
        raise MissingError(f"pushing to {repo} needs a token, and none is set", LOG_IN)
    content: dict[str, str | bytes] = {name: str(path) for name, path in paths.items()}
    content |= {} if card is None else {CARD: card.encode()}
    size = sum(
        len(data) if isinstance(data, bytes) else Path(data).stat().st_size
        for data in content.values()
    )

    # an existing repo keeps its visibility
    api = HfApi()
    private = _is_private(api, repo)
    if private is False and not public:
        raise UsageError(f"{repo} exists and is public", f"{opt('public', True)}, or another repo")
    is_new, private = private is None, (not public if private is None else private)
    kind = f"{'a new' if is_new else 'the'} {'private' if private else 'PUBLIC'} repo"
    question = f"upload {len(content)} files, {size:,} bytes, to {kind} {endpoint()}/{repo}?"
    if not confirm(question):
        raise UsageError(f"nothing was sent to {repo}: it was not confirmed", opt("yes", True))

    # one commit
    progress(Progress("upload", 0, size, "bytes"))
    try:
        if is_new:
            api.create_repo(repo, private=private)
        done = api.create_commit(
            repo,
            [CommitOperationAdd(name, data) for name, data in content.items()],
            commit_message="Upload a dictionary with saekit",
        )
    except Exception as error:
        raise explained(error, repo) from None
    progress(Progress("upload", size, size, "bytes"))
    return PushResult(repo, f"{endpoint()}/{repo}", done.oid, private, tuple(sorted(content)))


def _files(folder: Path) -> list[Path]:
    """Of the folder and those below it, without hidden ones, which are not a dictionary's."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not files:
        raise MissingError(f"there are no files in {folder}", "give the folder of an export")
    return files


def _is_private(api: Any, repo: str) -> bool | None:
    """None: it does not exist."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return bool(api.model_info(repo).private)
    except GatedRepoError as error:
        raise explained(error, repo) from None
    except RepositoryNotFoundError as error:
        if error.response.status_code == 401:  # the token is not accepted
            raise explained(error, repo) from None
        return None
    except Exception as error:
        raise explained(error, repo) from None


def model_card(
    repo: str,
    description: dict[str, Any],
    *,
    format: str,
    path: str = "",
    metrics: Mapping[str, float | None] | None = None,
) -> str:
    """README.md of a dictionary: what it is, how it was measured, how it is loaded.

    Parameters
        description: config.json of its checkpoint.
        format: of the files, a name of `saekit export --format`; saelens adds how sae_lens loads
            them.
        path: its folder in the repo; "": the root.
        metrics: of `saekit.evaluate`, by name; None: no table.
    """
    from saekit.models.metrics import METRICS

    config, spec = description["config"], description["spec"]
    model = without_folders(spec.get("model"))
    facts = {
        "base model": model,
        "hook": spec.get("hook"),
        "kind": config.get("sparsity") or description["model"],
        "values per row": config.get("d_in"),
        "latents": config.get("latents"),
        "context": spec.get("context"),
        "dataset": without_folders(spec.get("dataset")),
        "files": format,
    }
    # not the folder of a local model; and a name from a file cannot add lines to the front matter
    is_local = model != spec.get("model") and "/" not in (model or "")
    is_hub_model = not is_local and HUB_MODEL.fullmatch(model or "")
    name = f"hf:{repo}/{path}".rstrip("/")
    sections = [
        "---",
        *([f"base_model: {model}"] if is_hub_model else ()),
        "library_name: saekit",
        "tags:",
        *(f"- {tag}" for tag in ("sparse-autoencoder", "mechanistic-interpretability", "saekit")),
        "---",
        "",
        f"# {repo.partition('/')[2]}",
        "",
        *_table(("", ""), [(name, str(value)) for name, value in facts.items() if value]),
    ]
    if metrics:
        figures = [
            (name, METRICS[name].text(value))
            for name, value in metrics.items()
            if name in METRICS and isinstance(value, (int, float))
        ]
        sections += ["", "## Evaluation", "", *_table(("metric", "value"), figures)]
    sections += [
        "",
        "## Load",
        "",
        "```python",
        "import saekit",
        "",
        f'sae = saekit.load("{name}")',
    ]
    if format == "saelens":
        sections += ["```", "", "```python", "from sae_lens import SAE", ""]
        sections += [f'sae = SAE.from_pretrained("{repo}", "{path or "."}")']
    return "\n".join([*sections, "```", ""])


def _table(header: tuple[str, str], rows: list[tuple[str, str]]) -> list[str]:
    lines = [header, ("---", "---"), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
