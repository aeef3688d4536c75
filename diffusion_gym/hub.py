"""Files of a model hub: from the local cache or downloaded; if neither, an error within seconds that says so."""

import queue
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PATIENCE = 3.0
"""Seconds the hub has to say which files a repository holds."""


class HubError(Exception):
    """The hub cannot be asked, or does not have what it was asked for; the message says why in a few words."""


class NotFoundHereError(FileNotFoundError, ValueError):
    """What an argument names is neither on this machine nor to be had from the hub."""


def split_revision(model: str) -> tuple[str, str | None]:
    """ "owner/name@revision" -> its two parts; the revision is a branch, tag or commit, None without one."""
    name, _, revision = model.partition("@")
    return name, revision or None


def list_files(repository: str, revision: str | None = None) -> set[str]:
    """Names of the files of a hub repository.

    One request without retries, in a thread of its own, because neither a name server nor a socket keeps to a time
    limit; huggingface_hub's own download call would try for half a minute.

    Raises:
        HubError: the hub does not answer within `PATIENCE`, or has no such repository or revision.
        ValueError: `repository` is no hub id.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    answers: queue.Queue[set[str] | Exception] = queue.Queue()

    def ask() -> None:
        try:
            info = HfApi().model_info(repository, revision=revision, timeout=PATIENCE)
            answers.put({file.rfilename for file in info.siblings or ()})
        except Exception as error:  # handed to the caller, whatever it is
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=PATIENCE)
    except queue.Empty:
        raise HubError(f"the hub did not answer within {PATIENCE:g} s") from None
    if isinstance(answer, HFValidationError):
        raise ValueError(f"{repository!r} is no hub id such as owner/name") from answer
    if isinstance(answer, OfflineModeIsEnabled):
        raise HubError("it is not in the hub's cache here, and HF_HUB_OFFLINE forbids asking the hub") from answer
    if isinstance(answer, Exception):
        raise HubError(_reason(answer)) from answer
    return answer


def snapshot(repository: str, *, files: Sequence[str], ignore: Sequence[str] = (), revision: str | None = None) -> Path:
    """The local directory of a model's repository, with the files that match.

    Args:
        repository: "owner/name".
        files: patterns of the files to have, e.g. "unet/*.json".
        ignore: patterns of those among them to leave out.
        revision: branch, tag or commit; None for the main branch.

    Raises:
        ValueError: `repository` is no hub id.
        NotFoundHereError: the hub has no such repository or revision, asks for a login, or cannot be reached, and the
            cache does not hold it.
    """
    from huggingface_hub import snapshot_download

    patterns: dict[str, Any] = {"allow_patterns": list(files), "ignore_patterns": list(ignore)}
    try:
        list_files(repository, revision)
        return Path(snapshot_download(repository, revision=revision, **patterns))
    except (HubError, OSError) as unreachable:
        try:
            return Path(snapshot_download(repository, revision=revision, local_files_only=True, **patterns))
        except OSError:
            at = f" --revision {revision}" if revision else ""
            raise NotFoundHereError(
                f"model {repository + ('@' + revision if revision else '')!r} is neither on this machine nor to be had "
                f"from the hub ({unreachable}). Where there is a network run 'hf download {repository}{at}', and here "
                "give the directory it prints in the place of the id"
            ) from unreachable
    except ValueError as error:
        raise ValueError(f"model: {error}, nor a file or directory on this machine") from error


def in_short(error: Exception) -> str:
    """The kind of an error and the first sentence of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].partition('. ')[0]}" if lines else type(error).__name__


def _reason(error: Exception) -> str:
    """What the hub means, in a few words."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return "its licence must be accepted on its page first, then `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is private: `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return "it has no such revision"
    return in_short(error)
