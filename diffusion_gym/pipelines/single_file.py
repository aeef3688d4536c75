"""Checkpoints in one file, as web interfaces use them, unpacked once into a directory in diffusers' format."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from diffusion_gym.hub import NotFoundHereError
from diffusion_gym.pipelines.quiet import quiet

CACHE = "DIFFUSION_GYM_CACHE"
"""Environment variable: where unpacked checkpoints go; by default ~/.cache/diffusion_gym."""


def unpacked(file: Path) -> Path:
    """The directory of a single-file checkpoint; made on the first call, found by later ones.

    The pipeline's configuration is read from a directory of the same name beside the file without ".safetensors"
    (a model_index.json and the parts' config.json, with tokenizers; no weights are needed), else diffusers finds out
    the architecture from the weights and takes the configuration from the hub.

    Args:
        file: a .safetensors file of Stable Diffusion 1.x, 2.x or XL.

    Raises:
        NotFoundHereError: there is no such file, or its configuration cannot be had.
        ValueError: it is no such checkpoint, is damaged, or is a pickle.
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
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from safetensors import safe_open

    try:
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
    except Exception as error:  # safetensors raises its own class
        raise ValueError(f"model {str(file)!r} is damaged or no safetensors file ({error})") from error
    if not any(name.startswith("model.diffusion_model.") for name in names):
        raise ValueError(
            f"model {str(file)!r} is no checkpoint of Stable Diffusion 1.x, 2.x or XL: it has no "
            f"'model.diffusion_model.*' (its first tensor is {names[0] if names else None!r}). Adapters (LoRA) and "
            "single parts are not models"
        )
    xl = any(name.startswith("conditioner.embedders.1.") for name in names)
    cls: Any = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
    beside = file.with_suffix("")
    options: dict[str, Any] = {"config": str(beside)} if (beside / "model_index.json").is_file() else {}
    if not xl:
        options |= {"safety_checker": None}
    try:
        with quiet():
            pipe = cls.from_single_file(str(file), **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NotFoundHereError(
            f"model {str(file)!r}: cannot be unpacked ({reason}). Its configuration comes from the hub, or from "
            f"{str(beside)!r} if that directory holds one (hf download OWNER/NAME --include '*.json' '*.txt' "
            f"--local-dir {str(beside)!r}, of the model it is derived from)"
        ) from error
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with quiet():
            pipe.save_pretrained(partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _cache() -> Path:
    given = os.environ.get(CACHE)
    return Path(given).expanduser() if given else Path.home() / ".cache" / "diffusion_gym"


def _fingerprint(file: Path) -> str:
    """Of path, size and time: reading gigabytes at every start would take longer than the rest of it."""
    stat = file.stat()
    return hashlib.sha256(f"{file}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()[:12]
