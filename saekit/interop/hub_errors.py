"""What the hub refuses, in the user's words. No text holds the token: the client sends it in a
header only, and what it says is shortened to a line without it."""

from __future__ import annotations

import errno
import re

from saekit.errors import MissingError, SaekitError
from saekit.store.oserrors import user_error

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
CREDENTIALS = re.compile(r"//[^/@\s]*@")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def unreachable(error: Exception) -> bool:
    """Whether the hub gave no answer: no network, a timeout, a failure of its own."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import httpx

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    return isinstance(error, (httpx.HTTPError, LocalEntryNotFoundError, ConnectionError))


def explained(
    error: Exception, repo: str, revision: str | None = None, file: str | None = None
) -> SaekitError:
    """The error for the user: what is missing and what to do. An exception that is not the hub's is
    raised again."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{endpoint()}/{repo}"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    if isinstance(error, GatedRepoError):
        return MissingError(
            f"{repo} is gated ({status}): its owners ask for terms to be accepted first"
            f" ({_token()})",
            f"accept the terms at {page}, then {LOG_IN}",
        )
    if isinstance(error, RevisionNotFoundError):
        return MissingError(f"{repo} has no revision {revision}", _revisions(repo))
    if status == 401:
        return MissingError(
            f"{repo} is private or does not exist: the hub answers 401 ({_token()})",
            f"check the name; for a private repo {LOG_IN}",
        )
    if isinstance(error, RepositoryNotFoundError):
        return MissingError(
            f"there is no {repo} on {endpoint()}, or it is private ({_token()})",
            f"check the name; for a private repo {LOG_IN}",
        )
    if status == 403:
        return MissingError(
            f"{repo}: the hub does not allow this ({status}; {_token()}): {line_of(error)}",
            "use a token that may do this",
        )
    if "Consistency check failed" in str(error):
        return MissingError(
            f"the download of {file} of {repo} was cut off: {line_of(error)}",
            "fetch it again; nothing of it was kept",
        )
    if isinstance(error, OSError) and error.errno in _DISK:
        return user_error(error, None if error.filename else constants.HF_HUB_CACHE)
    if status or unreachable(error):
        return MissingError(
            f"{endpoint()} gives no {file or repo}: {line_of(error)}",
            "check the network and HF_ENDPOINT, and try again",
        )
    raise error


def endpoint() -> str:
    """The hub's address, without a name and password that HF_ENDPOINT may hold."""
    from huggingface_hub import constants

    return CREDENTIALS.sub("//", constants.ENDPOINT)


def line_of(error: Exception) -> str:
    """The first line of what the client says, without the token or other credentials."""
    from huggingface_hub import get_token

    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    token = get_token()
    return CREDENTIALS.sub("//", line.replace(token, "***") if token else line)


def _token() -> str:
    from huggingface_hub import get_token

    return "a token is set" if get_token() else "no token is set"


def _revisions(repo: str) -> str:
    """A hint with the branches and tags; without them where the hub does not list them."""
    from huggingface_hub import HfApi

    try:
        refs = HfApi().list_repo_refs(repo)
    except Exception:  # the hint of an error that is raised anyway
        return "give a branch, a tag or a commit"
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    return f"it has: {', '.join(names)}" if names else "give a branch, a tag or a commit"
