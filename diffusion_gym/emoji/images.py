"""Between pictures as bytes and as tensors in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def to_tensor(images_BHWC: np.ndarray, device: str | torch.device = "cpu") -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(images_BHWC).to(device).permute(0, 3, 1, 2).float() / 255


def to_bytes(images_BCHW: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [0, 1] -> (B, H, W, 3) uint8, rounded."""
    return (images_BCHW.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def check_images(images: Tensor) -> None:
    """Refuses what is not a batch of pictures.

    Raises:
        TypeError: not a floating tensor.
        ValueError: not of shape (B, 3, 64, 64), or not finite.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = f"a tensor of {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a float tensor (B, 3, 64, 64) in [0, 1], got {kind}")
    if images.ndim != 4 or images.shape[1:] != (3, 64, 64):
        raise ValueError(f"images must have shape (B, 3, 64, 64), got {tuple(images.shape)}")
    if not bool(torch.isfinite(images).all()):
        raise ValueError("images must be finite, got NaN or infinity")


def check_prompts(prompts: Sequence[str], images: Tensor) -> None:
    """Refuses prompts that do not go with the pictures.

    Raises:
        TypeError: `prompts` is one string, or holds something else than strings.
        ValueError: there are not as many prompts as pictures.
    """
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise TypeError(f"prompts must be a list of strings, one a picture, got {prompts!r}")
    if len(prompts) != len(images):
        raise ValueError(f"prompts has {len(prompts)} entries for {len(images)} images; one a picture is needed")
