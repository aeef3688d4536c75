"""Where a model is: a directory, a single file, a hub id, or a name of this package."""

import os
import pkgutil
from dataclasses import dataclass
from pathlib import Path

from diffusion_gym import hub
from diffusion_gym.hub import (
    Choose,
    HubError,
    NotFoundHereError,
    NotInRepositoryError,
    download_command,
    split_revision,
)
from diffusion_gym.pipelines.part_files import (
    CONFIGURATION_PATTERNS,
    PARTS,
    configurations,
    part_files,
    weight_patterns,
)
from diffusion_gym.pipelines.single_file import unpacked

_NAMED = {"emoji": "diffusion_gym.emoji:pipeline_path"}
"""Models with a name: "module:function" that returns the directory, so that a world can bring its own."""

_ALL_PATTERNS = (*CONFIGURATION_PATTERNS, *(f"{part}/*.safetensors*" for part in PARTS))


@dataclass(frozen=True)
class ModelSource:
    """A model's directory, and the hub repository behind it if there is one.

    Attributes:
        name: what messages call it: the absolute path, or the hub id with its revision.
        directory: in diffusers' format. Of a hub model it holds the configurations, and each part once it was asked
            for.
        repository: hub id; None for a model of this machine.
        commit: of the repository; all parts come from the same.
    """

    name: str
    directory: Path
    repository: str | None = None
    commit: str | None = None

    def part(self, part: str) -> Path:
        """The directory of a part, with its weights; a tokenizer is there from the beginning.

        Raises:
            NotFoundHereError: its weights are not in the hub's cache and cannot be had from the hub.
        """
        if self.repository is not None and part in PARTS:
            _fetch(
                f"the {part} of model {self.name!r}",
                self.repository,
                self.commit,
                lambda names: part_files(part, names),
                weight_patterns(part),
            )
        return self.directory / part

    @property
    def advice(self) -> str:
        """What to do where a file of the directory is missing."""
        if self.repository is None:
            return (
                "it must be a directory in diffusers format (as pipe.save_pretrained writes it), a .safetensors file, "
                'a hub id, or "emoji"'
            )
        return f"try: {download_command(self.repository, _ALL_PATTERNS, revision=self.commit)}"


def find_model(model: str | os.PathLike[str]) -> ModelSource:
    """Find a model; of one on the hub the configurations are downloaded.

    Args:
        model: a directory in diffusers' format; a .safetensors file as web interfaces use them; a hub id, with
            "@revision" behind it for a branch, tag or commit; or "emoji", the embedded model.

    Raises:
        TypeError: it is not a string or path.
        ValueError: it is none of these.
        NotFoundHereError: it is not on this machine and cannot be had from the hub.
    """
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f"model must be a directory, a .safetensors file or a hub id (a string or path), got {model!r}")
    text = os.fspath(model)
    if not text:
        raise ValueError("model must be a directory, a .safetensors file or a hub id, got an empty string")
    if text in _NAMED:
        text = str(pkgutil.resolve_name(_NAMED[text])())
    path = Path(text).expanduser()
    if path.is_dir():
        return ModelSource(str(path.resolve()), path.resolve())
    if path.suffix in (".safetensors", ".ckpt", ".pt", ".bin"):
        file = path.absolute()  # not resolved: files of the hub's cache are links to names without a suffix
        return ModelSource(str(file), unpacked(file))
    if path.is_absolute() or text.startswith((".", "~")):
        raise NotFoundHereError(f"model {text!r}: there is no such directory or file")
    repository, revision = split_revision(text)
    try:
        directory = _fetch(f"model {text!r}", repository, revision, configurations, _ALL_PATTERNS)
    except NotFoundHereError:
        raise
    except ValueError as error:
        raise ValueError(f"model: {error}, nor a file or directory on this machine") from error
    return ModelSource(text, directory, repository, directory.name)


def _fetch(what: str, repository: str, revision: str | None, choose: Choose, patterns: tuple[str, ...]) -> Path:
    """Files of the hub; NotFoundHereError, with the command that gets them elsewhere, if they cannot be had."""
    try:
        return hub.fetch(repository, choose, revision)
    except NotInRepositoryError as error:
        raise NotFoundHereError(
            f"{what}: the repository does not hold it in diffusers' format, with a model_index.json and the parts' "
            "config.json and weights in .safetensors or .bin files. A single .safetensors file in it can be downloaded "
            "and given as a file"
        ) from error
    except HubError as error:
        raise NotFoundHereError(
            f"{what} is neither on this machine nor to be had from the hub ({error}). Where there is a network run "
            f"`{download_command(repository, patterns, revision=revision)}`, and here give the directory it prints in "
            "the place of the id"
        ) from error
