"""Scenes in the generator's own hand: it draws them again from part of the way (SDEdit, Meng et al. 2022).

What such a picture shows is known, though not quite always, and it looks like what the judges will be asked about
later: rough where the generator is rough.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from ..images import to_bytes, to_tensor
from .loop import StepRandom, save_atomically

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

STEPS = 10
"""Denoising steps of a whole way; a strength of 0.5 takes half of them."""

_CHUNK = 64
_CHUNKS_A_SAVE = 8


def redraw(
    pipeline: StableDiffusionPipeline,
    pictures: np.ndarray,
    captions: Sequence[str],
    strength: float,
    guidance_scale: float,
    generator: torch.Generator,
) -> np.ndarray:
    """Noises pictures and lets the generator denoise them under their captions.

    Args:
        pipeline: the generator.
        pictures: (B, 64, 64, 3) uint8.
        captions: B captions.
        strength: share of the way that is gone back, at least 1 / STEPS and at most 1.
        guidance_scale: weight of the captions.
        generator: where the noise comes from.

    Returns:
        (B, 64, 64, 3) uint8.
    """
    from diffusers import StableDiffusionImg2ImgPipeline

    again = StableDiffusionImg2ImgPipeline.from_pipe(pipeline)
    again.set_progress_bar_config(disable=True)
    images = again(
        list(captions),
        to_tensor(pictures, pipeline.device),
        strength=strength,
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        eta=1.0,
        generator=generator,
        output_type="pt",
    ).images
    return to_bytes(images)


def redraw_all(
    pipeline: StableDiffusionPipeline,
    pictures: np.ndarray,
    captions: Sequence[str],
    strengths: tuple[float, float],
    guidance_scale: float,
    seed: int,
    cache: Path,
) -> np.ndarray:
    """Redraws many pictures, once; what is done is kept in `cache`, and a killed run goes on from there.

    Args:
        pipeline: the generator.
        pictures: (B, 64, 64, 3) uint8; 64 after each other share one strength.
        captions: B captions.
        strengths: least and largest.
        guidance_scale: weight of the captions.
        seed: of strengths and noise.
        cache: a file; one of other pictures, settings or weights is made anew.

    Returns:
        (B, 64, 64, 3) uint8.
    """
    digest = hashlib.sha256(repr((list(captions), strengths, guidance_scale, seed, STEPS)).encode())
    digest.update(pictures.tobytes())
    for value in pipeline.unet.state_dict().values():
        digest.update(value.detach().cpu().numpy().tobytes())
    done: list[np.ndarray] = []
    if cache.is_file():
        saved = torch.load(cache, weights_only=True)
        if saved["digest"] == digest.hexdigest():
            done = [part.numpy() for part in saved["pictures"].split(_CHUNK)]
    starts = range(len(done) * _CHUNK, len(pictures), _CHUNK)
    for start in tqdm(starts, desc=cache.stem, unit_scale=_CHUNK, disable=not starts):
        chance = StepRandom.at(seed, 5 * 10**9 + start, str(pipeline.device))
        part = slice(start, start + _CHUNK)
        strength = float(chance.numpy.uniform(*strengths))
        done.append(redraw(pipeline, pictures[part], captions[part], strength, guidance_scale, chance.torch))
        if len(done) % _CHUNKS_A_SAVE == 0 or start == starts[-1]:
            cache.parent.mkdir(parents=True, exist_ok=True)
            kept = torch.from_numpy(np.concatenate(done))
            save_atomically(cache, {"digest": digest.hexdigest(), "pictures": kept})
    return np.concatenate(done)
