"""Pictures as pretrained image networks take them."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def to_uint8(images_B3HW: Tensor) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Pictures in [0, 1] as 8-bit pixels (B, H, W, 3) on the CPU, rounded to the nearest level."""
    pixels = images_B3HW.detach().float().clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
    return pixels.permute(0, 2, 3, 1).numpy()


def clip_pixels(images_B3HW: Tensor, size: int = 224, *, odd_margin: Literal["floor", "even"] = "floor") -> Tensor:
    """CLIP's preprocessing: 8 bits, short side to `size` (PIL bicubic), centre crop, CLIP's mean and deviation.

    Args:
        images_B3HW: pictures in [0, 1].
        size: height and width of the result.
        odd_margin: where the crop lies when an odd number of pixels is to go: the half pixel is rounded down, as
            transformers' CLIPImageProcessor does, or to the even pixel, as torchvision's CenterCrop does.

    Returns:
        (B, 3, size, size) float32 on the CPU, equal to that of transformers' PIL image processor.
    """
    half = (lambda margin: margin // 2) if odd_margin == "floor" else (lambda margin: round(margin / 2))
    cropped = []
    for pixels_HW3 in to_uint8(images_B3HW):
        height, width = pixels_HW3.shape[:2]
        short = min(height, width)
        height, width = (int(size * side / short) for side in (height, width))
        resized = Image.fromarray(pixels_HW3).resize((width, height), Image.Resampling.BICUBIC)
        top, left = half(height - size), half(width - size)
        cropped.append(np.asarray(resized)[top : top + size, left : left + size])
    return normalize(unit_range(np.stack(cropped)))


def unit_range(pixels_BHW3: "np.ndarray[Any, np.dtype[np.uint8]]") -> Tensor:
    """8-bit pixels as (B, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels_BHW3)).permute(0, 3, 1, 2).float() / 255


def normalize(images_B3HW: Tensor) -> Tensor:
    """Less CLIP's mean, by CLIP's standard deviation, channel by channel."""
    mean, std = (torch.tensor(values, device=images_B3HW.device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (images_B3HW - mean) / std


def chunk_size(device: torch.device) -> int:
    """Pictures judged at a time: one on the CPU, so that no score depends on its neighbours in the last bit."""
    return 1 if device.type == "cpu" else 32


def by_chunks(function: Callable[[Tensor], Tensor], rows: Tensor, device: torch.device) -> Tensor:
    """The results of a function for all rows, found for `chunk_size` of them at a time."""
    return torch.cat([function(chunk) for chunk in rows.split(chunk_size(device))])
