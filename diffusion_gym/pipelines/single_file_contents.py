"""What a single-file checkpoint holds, from its header: parts, dtypes, kind of model; no weights are read."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_UNET, _VAE = "model.diffusion_model.", ("first_stage_model.", "vae.")
_PREFIXES: dict[bool, dict[str, tuple[str, ...]]] = {
    False: {"unet": (_UNET,), "vae": _VAE, "text_encoder": ("cond_stage_model.",)},
    True: {
        "unet": (_UNET,),
        "vae": _VAE,
        "text_encoder": ("conditioner.embedders.0.",),
        "text_encoder_2": ("conditioner.embedders.1.",),
    },
}
_TEXT_MARKS: dict[bool, dict[str, tuple[str, ...]]] = {
    False: {
        "text_encoder": (
            "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
            "cond_stage_model.model.token_embedding.weight",
        )
    },
    True: {
        "text_encoder": ("conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight",),
        "text_encoder_2": ("conditioner.embedders.1.model.positional_embedding",),
    },
}
"""Tensors one of which diffusers knows a text encoder by."""

_DTYPES = {
    "F64": torch.float32,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float16,
    "F8_E5M2": torch.float16,
}
"""What tensors are kept as: without loss, but for float64, in which no model runs."""


@dataclass(frozen=True)
class Contents:
    """The header of a checkpoint.

    Attributes:
        file: the checkpoint.
        tensors: each tensor without its values, by name; float64 and float8 ones as what they are kept as.
        metadata: what its writer noted.
    """

    file: Path
    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str]

    @functools.cached_property
    def is_sdxl(self) -> bool:
        """Whether it is of SDXL's format."""
        if any(name.startswith("conditioner.") for name in self.tensors):
            return True
        # A UNet alone, or with an autoencoder.
        return f"{_UNET}label_emb.0.0.weight" in self.tensors and not self._has(("cond_stage_model.",))

    @property
    def lacking(self) -> dict[str, tuple[str, ...]]:
        """Parts of which there is no tensor, with the beginnings of the names they would have."""
        return {part: prefixes for part, prefixes in _PREFIXES[self.is_sdxl].items() if not self._has(prefixes)}

    def dtypes(self) -> dict[str, torch.dtype]:
        """Of each part, the dtype that holds all of its tensors."""
        found = {}
        for part, prefixes in _PREFIXES[self.is_sdxl].items():
            own = {t.dtype for name, t in self.tensors.items() if name.startswith(prefixes) and t.is_floating_point()}
            found[part] = functools.reduce(torch.promote_types, own) if own else torch.float32
        return found

    def missing(self, configuration: Path) -> dict[str, list[str]]:
        """Tensors that parts lack under a configuration, by part; of text encoders those alone that mark them."""
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

        found = {}
        converters = {
            "unet": (UNet2DConditionModel, convert_ldm_unet_checkpoint),
            "vae": (AutoencoderKL, convert_ldm_vae_checkpoint),
        }
        for part, (cls, convert) in converters.items():
            if part not in self.lacking:
                config = cls.load_config(str(configuration / part))
                with torch.device("meta"):
                    wanted = cls.from_config(config).state_dict()
                try:
                    converted = convert(dict(self.tensors), config=config)
                    found[part] = sorted(name for name in wanted if converted.get(name) is None)
                except KeyError as error:  # the converters take some tensors for granted
                    found[part] = [str(error.args[0])]
        for part, marks in _TEXT_MARKS[self.is_sdxl].items():
            if part not in self.lacking and not any(mark in self.tensors for mark in marks):
                found[part] = [" or ".join(marks)]
        return {part: names for part, names in found.items() if names}

    @property
    def schedule(self) -> dict[str, Any]:
        """Settings of the scheduler that the file states itself.

        Checkpoints trained to predict v are marked by an empty tensor "v_pred", as ComfyUI and others write it, or in
        the metadata of the ModelSpec standard; "ztsnr" marks a schedule rescaled to end in pure noise.
        """
        settings: dict[str, Any] = {}
        if "v_pred" in self.tensors or self.metadata.get("modelspec.prediction_type") == "v":
            settings["prediction_type"] = "v_prediction"
        if "ztsnr" in self.tensors:
            settings |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return settings

    def _has(self, prefixes: tuple[str, ...]) -> bool:
        return any(name.startswith(prefixes) for name in self.tensors)


def read_contents(file: Path) -> Contents:
    """Read the header of a checkpoint.

    Raises:
        ValueError: it is damaged, or no checkpoint of a whole model.
    """
    from safetensors import safe_open

    try:
        with safe_open(file, "pt") as opened:
            tensors, metadata = {}, opened.metadata() or {}
            for name in opened.keys():  # noqa: SIM118 - it is no dict
                part = opened.get_slice(name)
                dtype = _DTYPES.get(part.get_dtype(), torch.int64)
                tensors[name] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
    except Exception as error:  # safetensors raises its own class
        raise ValueError(f"model {str(file)!r} is damaged or no safetensors file ({error})") from error
    if not any(name.startswith(_UNET) for name in tensors):
        raise ValueError(
            f"model {str(file)!r} is no checkpoint of Stable Diffusion 1.x, 2.x or XL: it has no {_UNET + '*'!r} "
            f"(its first tensor is {next(iter(tensors), None)!r}). Adapters (LoRA) and single parts are not models"
        )
    return Contents(file, tensors, metadata)
