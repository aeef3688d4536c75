"""Where a model is: a directory, a single file, a hub id, or a name of this package."""

import os
import pkgutil
from dataclasses import dataclass
from pathlib import Path

from diffusion_gym import hub
from diffusion_gym.hub import NotFoundHereError
from diffusion_gym.pipelines.single_file import unpacked

_NAMED = {"emoji": "diffusion_gym.emoji:pipeline_path"}
"""Models with a name: "module:function" that returns the directory, so that a world can bring its own."""

_CONFIGURATIONS = ("*.json", "*.txt", "*.model")
_VARIANTS = ("*.fp16.*", "*.non_ema.*", "*.ema.*", "*/openvino*", "*/flax*", "*.msgpack", "*.onnx*")
"""Weights that a repository may hold beside the plain ones."""


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
        """The directory of a part, with its weights.

        Raises:
            NotFoundHereError: the hub cannot be reached.
        """
        if self.repository is not None:
            hub.snapshot(self.repository, files=[f"{part}/*"], ignore=_VARIANTS, revision=self.commit)
        return self.directory / part


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
    repository, revision = hub.split_revision(text)
    directory = hub.snapshot(repository, files=_CONFIGURATIONS, ignore=_VARIANTS, revision=revision)
    return ModelSource(text, directory, repository, directory.name)
