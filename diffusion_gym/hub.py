"""Files of a model hub: from the local cache or downloaded; if neither, an error within seconds that says so."""

import queue
import shlex
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

Choose = Callable[[set[str]], Collection[str]]
"""From the names of the files that a repository holds to those to have; none of them if one that is needed lacks."""

PATIENCE = 3.0
"""Seconds the hub has to say which files a repository holds."""


class HubError(Exception):
    """The hub cannot be asked, or does not have what it was asked for; the message says why in a few words."""


class NotInRepositoryError(HubError):
    """The hub's repository does not hold what it was asked for."""


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


def fetch(repository: str, choose: Choose, revision: str | None = None) -> Path:
    """The local directory of a model's repository, with the files that were chosen and no others downloaded.

    Args:
        repository: "owner/name".
        choose: chooses among the files of the repository; where the hub cannot be asked, among those of the cache.
        revision: branch, tag or commit; None for the main branch.

    Raises:
        ValueError: `repository` is no hub id.
        HubError: the hub has no such repository or revision, asks for a login, cannot be reached, or the download
            breaks off; and the cache does not hold the files. NotInRepositoryError: none of these, but the repository
            lacks them.
    """
    chosen: Collection[str] = ()
    try:
        chosen = choose(list_files(repository, revision))
        if not chosen:
            raise NotInRepositoryError("the repository does not hold it")
        return _download(repository, chosen, revision)
    except HubError:
        cached = _cached(repository, revision)
        names = set() if cached is None else _names(cached)
        if cached is None or not (names.issuperset(chosen) if chosen else choose(names)):
            raise
        return cached


def download_command(
    repository: str, include: Sequence[str], *, revision: str | None = None, to: Path | None = None
) -> str:
    """What to type where there is a network: the files that match, into the hub's cache or the directory `to`."""
    words = ["hf", "download", repository]
    words += ["--revision", revision] if revision else []
    words += [word for pattern in include for word in ("--include", pattern)]
    words += ["--local-dir", str(to)] if to else []
    return shlex.join(words)


def in_short(error: Exception) -> str:
    """The kind of an error and the first sentence of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].partition('. ')[0]}" if lines else type(error).__name__


def _download(repository: str, names: Collection[str], revision: str | None) -> Path:
    """The directory of a snapshot, with the files of these names."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=sorted(names)))
    except Exception as error:  # the HTTP client's classes are no OSErrors, and not the same in all versions
        raise HubError(f"the download broke off ({in_short(error)}); what has arrived is kept, try again") from error


def _cached(repository: str, revision: str | None) -> Path | None:
    """The directory of a snapshot in the cache, whatever it holds; None if there is none."""
    from huggingface_hub import snapshot_download

    try:  # without patterns, a snapshot that lacks any file of the repository would be refused
        return Path(snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=[]))
    except OSError:
        return None


def _names(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


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
