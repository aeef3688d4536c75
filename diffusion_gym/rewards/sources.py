"""Where the weights of a reward lie: a file, a directory, or a hub id with an optional "@revision".

Nothing here reads weights, and nothing waits: a hub that does not answer within seconds counts as unreachable.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from diffusion_gym.hub import HubError, in_short, list_files

_HUB_ID = re.compile(r"(?!\.)[\w.-]+(/[\w.-]+)?")
_WEIGHT_SUFFIXES = {".bin", ".pt", ".pth", ".safetensors"}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What an option of a reward must lead to. Its errors say what was expected and how to get it.

    Attributes:
        reward: name of the reward.
        option: the option that says where to look.
        what: what is wanted, in words.
        repo: hub id of a repository that has it.
        layouts: sets of file names, each of them enough, the preferred one first.
        extras: files that are taken along from the hub where there are any.
    """

    reward: str
    what: str
    repo: str
    layouts: tuple[tuple[str, ...], ...]
    option: str = "source"
    extras: tuple[str, ...] = ()

    def missing(self, why: str) -> FileNotFoundError:
        """The error for weights that are not there or cannot be reached."""
        return FileNotFoundError(f"{self._name}: {why}. Wanted is {self.what}: {self.files}. {self._advice}")

    def wrong(self, place: str | Path, why: str) -> ValueError:
        """The error for weights that are there, but of another kind or damaged."""
        return ValueError(f"{self._name}: {place} is not {self.what}: {why}. {self._advice}")

    @property
    def files(self) -> str:
        """The files in words: those of the first layout, and what may take their places."""
        first = self.layouts[0]
        others = dict.fromkeys(name for layout in self.layouts[1:] for name in layout if name not in first)
        return ", ".join(first) + (f" (in their place also {', '.join(others)})" if others else "")

    @property
    def _name(self) -> str:
        return f"reward {self.reward!r}, {self.option}"

    @property
    def _advice(self) -> str:
        key = self.reward if self.option == "source" else f"{self.reward}.{self.option}"
        return (
            f"Get it with `hf download {self.repo} {' '.join(self.layouts[0])}` where the hub can be reached, "
            f"then pass --reward-sources {key}=PATH"
        )


def find_files(source: str | os.PathLike[str], wanted: Wanted) -> tuple[Path, ...]:
    """The files that a source leads to, in the order of the layout found; a hub's are downloaded if not cached.

    Args:
        source: a file, a directory that holds the files of a layout, or a hub id ("owner/name" or
            "owner/name@revision").
        wanted: what is looked for.

    Raises:
        FileNotFoundError: there is no such file, directory or repository, it lacks the files, or the hub is out of
            reach.
    """
    text = os.fspath(source)
    path = Path(text).expanduser()
    if text and path.is_dir():
        layout = _first_layout(wanted, {entry.name for entry in path.iterdir()})
        if layout is None:
            raise wanted.missing(f"the directory {text!r} does not have the files")
        return tuple(path / name for name in layout)
    if path.is_file():
        if all(len(layout) > 1 for layout in wanted.layouts):
            raise wanted.missing(f"{text!r} is one file, not a directory with all of them")
        return (path,)
    repo, _, revision = text.partition("@")
    if not _HUB_ID.fullmatch(repo) or Path(repo).suffix in _WEIGHT_SUFFIXES:
        raise wanted.missing(f"{text!r} does not exist")
    return _from_hub(repo, revision or "main", wanted)


def _from_hub(repo: str, revision: str, wanted: Wanted) -> tuple[Path, ...]:
    """The files from the hub's cache, or else from the hub."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    for names in wanted.layouts:
        cached = [try_to_load_from_cache(repo, name, revision=revision) for name in names]
        if all(isinstance(file, str) for file in cached):
            return tuple(Path(str(file)) for file in cached)
    try:
        present = list_files(repo, revision)
    except HubError as error:
        raise wanted.missing(f"{repo!r} is neither a path here nor to be had from the hub ({error})") from error
    layout = _first_layout(wanted, present)
    if layout is None:
        raise wanted.missing(f"the hub's {repo!r} (revision {revision!r}) does not have the files")
    try:
        found = [
            Path(hf_hub_download(repo, name, revision=revision))
            for name in (*layout, *sorted(present.intersection(wanted.extras)))
        ]
    except Exception as error:  # the HTTP client's classes are no OSErrors, and not the same in all versions
        raise wanted.missing(f"{repo!r} could not be downloaded from the hub ({in_short(error)})") from error
    return tuple(found[: len(layout)])


def _first_layout(wanted: Wanted, names: set[str]) -> tuple[str, ...] | None:
    return next((layout for layout in wanted.layouts if names.issuperset(layout)), None)
