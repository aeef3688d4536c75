"""Sampling the embedded model through diffusers, for pretraining and evaluation; agents go through the environment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .files import require_pipeline

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def load_pipeline(folder: Path, device: str = "cpu") -> StableDiffusionPipeline:
    """Loads the model in float32, without a progress bar.

    Raises:
        FileNotFoundError: a file of it is missing.
        ValueError: a file of it is damaged.
    """
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(require_pipeline(folder), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device, torch.float32)


def sampling_defaults(folder: Path) -> dict[str, float]:
    """Returns the model's own num_inference_steps, guidance_scale and eta."""
    return json.loads((folder / "sampling.json").read_text())


def sample(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    *,
    seed: int,
    num_inference_steps: int = 20,
    guidance_scale: float | None = None,
    eta: float = 1.0,
    batch_size: int = 64,
) -> Tensor:
    """Samples one picture a prompt.

    Args:
        pipeline: from `load_pipeline`.
        prompts: B prompts.
        seed: of the noise.
        num_inference_steps: denoising steps.
        guidance_scale: weight of the prompt; None for the model's own.
        eta: 1 draws fresh noise at each step, 0 is deterministic.
        batch_size: pictures at a time.

    Returns:
        (B, 3, 64, 64) float32 in [0, 1].
    """
    if guidance_scale is None:
        guidance_scale = sampling_defaults(Path(pipeline.config._name_or_path))["guidance_scale"]
    generator = torch.Generator(pipeline.device).manual_seed(seed)
    parts = [
        pipeline(
            list(prompts[start : start + batch_size]),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            eta=eta,
            generator=generator,
            output_type="pt",
        ).images
        for start in range(0, len(prompts), batch_size)
    ]
    return torch.cat(parts).float().cpu()
