"""Files of a model hub: in the local cache, else downloaded; if neither, an error within seconds that says so."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

TIMEOUT = 3.0
"""Seconds to wait for the hub's first answer."""


class NotFoundHereError(FileNotFoundError, ValueError):
    """What an argument names is neither on this machine nor to be had from the hub."""


def split_revision(model: str) -> tuple[str, str | None]:
    """ "owner/name@revision" -> its two parts; the revision is a branch, tag or commit, None without one."""
    name, _, revision = model.partition("@")
    return name, revision or None


def snapshot(
    model: str, *, files: Sequence[str], ignore: Sequence[str] = (), revision: str | None = None, what: str = "model"
) -> Path:
    """The local directory of a hub repository, with the files that match.

    Args:
        model: "owner/name".
        files: patterns of the files to have, e.g. "unet/*.json".
        ignore: patterns of those among them to leave out.
        revision: branch, tag or commit; None for the main branch.
        what: the argument that the user gave, for messages.

    Raises:
        ValueError: `model` is no hub id.
        NotFoundHereError: the hub has no such repository or revision, asks for a login, or cannot be reached.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError

    shown = f"{model}@{revision}" if revision else model
    patterns: dict[str, Any] = {"allow_patterns": list(files), "ignore_patterns": list(ignore)}
    here = constants.HF_HUB_OFFLINE or not _answers(constants.ENDPOINT)
    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=here, **patterns))
    except HFValidationError as error:
        raise ValueError(
            f"{what} {shown!r} is neither a file or directory on this machine nor a hub id such as owner/name"
        ) from error
    except (OSError, ValueError) as error:
        name, _, at = shown.partition("@")
        raise NotFoundHereError(
            f"{what} {shown!r} is neither on this machine nor to be had from the hub ({_reason(error)}). Where there "
            f"is a network run 'hf download {name}{at and f' --revision {at}'}', and here give the directory it prints "
            "in the place of the id"
        ) from error


def _answers(endpoint: str) -> bool:
    """Whether the hub says anything at all within the time: a download would wait for a silent one for minutes."""
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=TIMEOUT)
    except Exception:  # no network, a proxy, a timeout: each with a class of its own
        return False
    return True


def _reason(error: BaseException) -> str:
    """What went wrong, in a few words."""
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, GatedRepoError):
            return "its licence must be accepted on its page first, then `hf auth login`"
        if isinstance(chain, RepositoryNotFoundError):
            return "there is no such repository, or it is private: `hf auth login`"
        if isinstance(chain, RevisionNotFoundError):
            return "it has no such revision"
        chain = chain.__cause__
    if isinstance(error, LocalEntryNotFoundError):
        return "the hub cannot be reached, and the cache does not hold it"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
