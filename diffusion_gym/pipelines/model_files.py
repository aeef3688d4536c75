"""What lies in a model directory: its parts, their configurations, and the sampling it recommends."""

import json
import os
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NAMED = {"emoji": "diffusion_gym.emoji:pipeline_path"}
"""Models with a name: "module:function" that returns the directory, so that a world can bring its own."""

_PARTS = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
}
_FOREIGN_PARTS = {
    "transformer": "it denoises with a transformer under flow matching (SD3, Flux), which has another policy",
    "text_encoder_2": "it has a second text encoder and size conditioning (SDXL)",
    "prior": "it denoises image embeddings first (unCLIP, Kandinsky, Cascade)",
}


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """How a model is meant to be sampled; from `sampling.json` beside `model_index.json` if there is one.

    Attributes:
        guidance_scale: classifier-free guidance, 1 or more; 1 is no guidance.
        num_inference_steps: T.
        eta: noise level of DDIM, 0 < eta <= 1.
    """

    guidance_scale: float = 7.5
    num_inference_steps: int = 20
    eta: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The configurations of a Stable-Diffusion-format model, read without loading any weights.

    Attributes:
        model: directory or hub id, as diffusers takes it.
        scheduler: configuration of its scheduler.
        unet: configuration of its UNet.
        vae: configuration of its autoencoder.
        sampling: the sampling it recommends.
    """

    model: str
    scheduler: Mapping[str, Any]
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    sampling: SamplingDefaults


def read_model_files(model: str | os.PathLike[str]) -> ModelFiles:
    """Read and check the configurations of a model directory or hub id.

    Raises:
        TypeError: `model` is not a string or path.
        ValueError: there is no such model, or it is not of the Stable Diffusion format; the message says why.
    """
    name = model_name(model)
    index = _load_config("DiffusionPipeline", name, None)
    _check_parts(name, index)
    unet = _load_config("UNet2DConditionModel", name, "unet")
    vae = _load_config("AutoencoderKL", name, "vae")
    if unet.get("in_channels", 4) != vae.get("latent_channels", 4):
        raise ValueError(
            f"model {name!r}: its UNet takes {unet.get('in_channels')} channels and its latents have "
            f"{vae.get('latent_channels')}; models that take a mask or a picture as well are not supported"
        )
    for key in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim"):
        if unet.get(key) is not None:
            raise ValueError(
                f"model {name!r}: its UNet asks for {key}={unet[key]!r}, an input beyond latent, timestep and prompt "
                "that this pipeline does not give it"
            )
    if not isinstance(unet.get("sample_size"), int | list | tuple):
        raise ValueError(f"model {name!r}: its UNet has no sample_size, so its latents have no shape")
    scheduler = dict(_load_config("DDIMScheduler", name, "scheduler"))
    # StableDiffusionPipeline corrects old scheduler files in these two settings; so must we, to sample alike.
    scheduler.update(steps_offset=1, clip_sample=False)
    return ModelFiles(model=name, scheduler=scheduler, unet=unet, vae=vae, sampling=_read_sampling(name))


def model_name(model: str | os.PathLike[str]) -> str:
    """The absolute path of a directory or of a named model ("emoji"), or a hub id as it is."""
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f"model must be a directory or a hub id (a string or path), got {model!r}")
    text = os.fspath(model)
    if text in _NAMED:
        text = str(pkgutil.resolve_name(_NAMED[text])())
    if not text:
        raise ValueError("model must be a directory or a hub id, got an empty string")
    return str(Path(text).resolve()) if Path(text).is_dir() else text


def _check_parts(name: str, index: Mapping[str, Any]) -> None:
    """Raise ValueError if `model_index.json` is not that of a Stable Diffusion model."""
    cls = index.get("_class_name", "an unnamed pipeline")
    for part, reason in _FOREIGN_PARTS.items():
        if index.get(part) and index[part] != [None, None]:
            raise ValueError(f"model {name!r} is a {cls}: {reason}. Only the Stable Diffusion 1.x and 2.x format works")
    for part, wanted in _PARTS.items():
        found = (index.get(part) or [None, None])[1]
        if found is None or found.removesuffix("Fast") != wanted:
            raise ValueError(
                f"model {name!r} is a {cls} whose {part} is {found or 'missing'}; the Stable Diffusion format has a "
                f"{wanted} there"
            )


def _load_config(class_name: str, name: str, subfolder: str | None) -> dict[str, Any]:
    """One JSON configuration of a model, from disk or hub."""
    import diffusers

    cls = getattr(diffusers, class_name)
    try:
        return dict(cls.load_config(name, subfolder=subfolder) if subfolder else cls.load_config(name))
    except (OSError, ValueError) as error:
        what = f"{subfolder}/" if subfolder else "model_index.json"
        raise ValueError(
            f"model must be a directory in diffusers format or a hub id, got {name!r}: cannot read its {what} "
            f"({_first_line(error)})"
        ) from error


def _read_sampling(name: str) -> SamplingDefaults:
    """The contents of `sampling.json`, checked; the defaults where there is none (hub ids have none)."""
    path = Path(name) / "sampling.json"
    if not path.is_file():
        return SamplingDefaults()
    try:
        values = json.loads(path.read_text())
        defaults = SamplingDefaults(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"model {name!r}: sampling.json must hold guidance_scale, num_inference_steps and eta ({error})"
        ) from error
    return defaults


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
