"""File size as a reward (Black et al. 2023, "Training Diffusion Models with Reinforcement Learning", section 5)."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion_gym.rewards.base import Reward

QUALITY = 95


def jpeg_kilobytes(images_B3HW: Tensor) -> Tensor:
    """Size of each picture as a JPEG of quality 95, in units of 1000 bytes, (B,) float32."""
    pixels_BHW3 = images_B3HW.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return torch.tensor([_size(pixels) / 1000.0 for pixels in pixels_BHW3], dtype=torch.float32)


def jpeg_compressibility(device: torch.device) -> Reward:
    """Minus the size: pictures that compress well."""

    def compressibility(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return -jpeg_kilobytes(images)

    return compressibility


def jpeg_incompressibility(device: torch.device) -> Reward:
    """The size: pictures full of detail, in the end of noise."""

    def incompressibility(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return jpeg_kilobytes(images)

    return incompressibility


def _size(pixels_HW3: "np.ndarray[Any, np.dtype[np.uint8]]") -> int:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW3).save(buffer, format="JPEG", quality=QUALITY)
    return buffer.tell()
