"""Loading the weights of a part: safetensors, or what torch reads without running code; complete, or an error."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffusion_gym.hub import NotFoundHereError
from diffusion_gym.pipelines.part_files import find_weights
from diffusion_gym.pipelines.quiet import quiet

if TYPE_CHECKING:
    from diffusion_gym.pipelines.model_source import ModelSource

_LOGGER = logging.getLogger(__name__)


def load_part(cls: Any, source: "ModelSource", part: str, dtype: torch.dtype) -> Any:
    """A diffusers or transformers model with the weights of a part, on the CPU.

    Raises:
        NotFoundHereError: the weights are not there and cannot be had.
        ValueError: they are damaged, of another architecture than the part's configuration says, or a pickle that
            holds more than tensors.
    """
    module = load_weights(cls, source.part(part), source.name, part, dtype)
    _LOGGER.debug("loaded the %s of %s", part, source.name)
    return module


def load_weights(cls: Any, directory: Path, name: str, part: str, dtype: torch.dtype) -> Any:
    """The same from a part's directory, which is there; `name` is the model's in messages."""
    what = f"model {name!r}: cannot load its {part} from {directory}"
    weights = find_weights(part, [path.name for path in directory.iterdir()] if directory.is_dir() else [])
    if weights is None:
        raise NotFoundHereError(
            f"{what}: there are no weights, neither .safetensors nor .bin (of shards all), beside its config.json"
        )
    try:
        with quiet():
            module, info = cls.from_pretrained(
                directory, torch_dtype=dtype, variant=weights.variant, output_loading_info=True
            )
    except Exception as error:  # safetensors, pickle, torch, diffusers and transformers each raise classes of their own
        raise ValueError(
            f"{what}: the weights are damaged, not of the architecture in its config.json, or hold more than tensors "
            f"({_first_line(error)}). Get them anew; only .safetensors and pickles of plain tensors are read"
        ) from error
    wrong = sorted(info["missing_keys"]) + [str(key) for key in info.get("mismatched_keys", ())]
    if wrong:
        raise ValueError(
            f"{what}: the weights are not of the architecture in its config.json: {len(wrong)} tensors are missing or "
            f"of another shape, the first is {wrong[0]}"
        )
    return module


def _first_line(error: BaseException) -> str:
    """The first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
