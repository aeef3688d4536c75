"""What lies in a model directory: its parts, their configurations, and the sampling it recommends."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from diffusion_gym.pipelines.model_source import ModelSource, find_model
from diffusion_gym.pipelines.sampling import SamplingDefaults, kernel_scheduler, sampling_defaults

Family = Literal["stable_diffusion", "sdxl"]

_SHARED_PARTS = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
}
_PARTS: dict[Family, dict[str, str]] = {
    "stable_diffusion": _SHARED_PARTS,
    "sdxl": {**_SHARED_PARTS, "text_encoder_2": "CLIPTextModelWithProjection", "tokenizer_2": "CLIPTokenizer"},
}
_FOREIGN_PARTS = {
    "transformer": "it denoises with a transformer under flow matching (SD3, Flux), which has another policy",
    "text_encoder_3": "it has three text encoders (SD3)",
    "prior": "it denoises image embeddings first (unCLIP, Kandinsky, Cascade)",
}


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The configurations of a Stable-Diffusion-format model, read without loading any weights.

    Attributes:
        source: where the model is.
        family: "stable_diffusion" (1.x, 2.x) or "sdxl".
        index: `model_index.json`.
        scheduler: configuration of its scheduler.
        unet: configuration of its UNet.
        vae: configuration of its autoencoder.
        text_encoder: configuration of its (first) text encoder.
        sampling: the sampling it recommends.
    """

    source: ModelSource
    family: Family
    index: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    sampling: SamplingDefaults

    @property
    def model(self) -> str:
        """The model's name in messages."""
        return self.source.name

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a latent."""
        size = self.unet["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return int(self.unet["in_channels"]), int(height), int(width)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, H, W) of a picture."""
        scale = 2 ** (len(self.vae["block_out_channels"]) - 1)
        _, height, width = self.latent_shape
        return int(self.vae.get("out_channels", 3)), height * scale, width * scale

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that are used, the scheduler apart."""
        return tuple(_PARTS[self.family])

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """Names of the parts that encode prompts."""
        return tuple(part for part in self.parts if part.startswith("text_encoder"))


def read_model_files(model: str | os.PathLike[str]) -> ModelFiles:
    """Read and check the configurations of a model: a directory, a single .safetensors file, or a hub id.

    Raises:
        TypeError: `model` is not a string or path.
        ValueError: it is not of the Stable Diffusion format; the message says why.
        NotFoundHereError: it is not on this machine and cannot be had from the hub.
    """
    source = find_model(model)
    name = source.name
    index = _read_json(source, "model_index.json")
    family = _check_parts(name, index)
    unet = _read_json(source, "unet/config.json")
    vae = _read_json(source, "vae/config.json")
    _check_unet(name, family, unet, vae)
    _check_tokenizers(source, family)
    scheduler = _read_json(source, "scheduler/scheduler_config.json")
    return ModelFiles(
        source=source,
        family=family,
        index=index,
        scheduler=kernel_scheduler(name, scheduler, corrected=family == "stable_diffusion"),
        unet=unet,
        vae=vae,
        text_encoder=_read_json(source, "text_encoder/config.json"),
        sampling=sampling_defaults(
            name,
            source.directory,
            scheduler,
            guidance_is_input=unet.get("time_cond_proj_dim") is not None,
            guidance_scale=5.0 if family == "sdxl" else 7.5,
        ),
    )


def _check_parts(name: str, index: Mapping[str, Any]) -> Family:
    """The family of a `model_index.json`; ValueError if it is of none."""
    cls = index.get("_class_name", "an unnamed pipeline")
    for part, reason in _FOREIGN_PARTS.items():
        if index.get(part) and index[part] != [None, None]:
            raise ValueError(
                f"model {name!r} is a {cls}: {reason}. Only the formats of Stable Diffusion 1.x, 2.x and XL work"
            )
    family: Family = "sdxl" if (index.get("text_encoder_2") or [None, None])[1] else "stable_diffusion"
    for part, wanted in _PARTS[family].items():
        found = (index.get(part) or [None, None])[1]
        if found is None or found.removesuffix("Fast") != wanted:
            raise ValueError(
                f"model {name!r} is a {cls} whose {part} is {found or 'missing'}; the format of "
                f"{'SDXL' if family == 'sdxl' else 'Stable Diffusion'} has a {wanted} there"
            )
    return family


def _check_unet(name: str, family: Family, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Raise ValueError if the UNet takes something that this package does not give it."""
    if unet.get("in_channels", 4) != vae.get("latent_channels", 4):
        raise ValueError(
            f"model {name!r}: its UNet takes {unet.get('in_channels')} channels and its latents have "
            f"{vae.get('latent_channels')}; models that take a mask or a picture as well are not supported"
        )
    given = {"addition_embed_type": "text_time"} if family == "sdxl" else {}
    for key in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type"):
        if unet.get(key) != given.get(key):
            raise ValueError(
                f"model {name!r}: its UNet asks for {key}={unet.get(key)!r}, an input beyond latent, timestep and "
                f"prompt that this pipeline does not give it (it gives {given.get(key)!r})"
            )
    if not isinstance(unet.get("sample_size"), int | list | tuple):
        raise ValueError(f"model {name!r}: its UNet has no sample_size, so its latents have no shape")


def _check_tokenizers(source: ModelSource, family: Family) -> None:
    """Raise ValueError if a text encoder has no tokenizer."""
    for part in _PARTS[family]:
        directory = source.directory / part
        if part.startswith("tokenizer") and not (
            (directory / "tokenizer.json").is_file()
            or ((directory / "vocab.json").is_file() and (directory / "merges.txt").is_file())
        ):
            raise ValueError(
                f"model {source.name!r} has neither {part}/tokenizer.json nor {part}/vocab.json and merges.txt: "
                f"{source.advice}"
            )


def _read_json(source: ModelSource, name: str) -> dict[str, Any]:
    try:
        found = json.loads((source.directory / name).read_text())
    except FileNotFoundError as error:
        raise ValueError(f"model {source.name!r} has no {name}: {source.advice}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"model {source.name!r}: its {name} is damaged ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"model {source.name!r}: its {name} is damaged (not a JSON object)")
    return found
