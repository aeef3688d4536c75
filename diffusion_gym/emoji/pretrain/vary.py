"""Changes that leave what a picture shows as it is, so that a judge does not cling to one way of drawing."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def vary(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrors, turns, scales, bends, lights and colours pictures a little, each in its own way.

    Hues stay, for they are an attribute; left and right are none.

    Args:
        images: (B, 3, H, W) in [0, 1].
        generator: where the chance comes from, on the pictures' device.

    Returns:
        The same shape, in [0, 1].
    """
    size, device = len(images), images.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(size, *shape, generator=generator, device=device)

    angle, zoom = uniform(-1, 1) * math.radians(10), uniform(0.9, 1.1)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    cos, sin, none = angle.cos() / zoom, angle.sin() / zoom, torch.zeros_like(angle)
    shear = uniform(-0.12, 0.12)
    rows = [torch.stack([cos * mirror, -sin + shear, none], 1), torch.stack([sin * mirror, cos, none], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    bend = uniform(-1, 1, 2, 5, 5) * uniform(0, 0.07, 1, 1, 1)
    grid = grid + F.interpolate(bend, size=images.shape[2:], mode="bicubic").permute(0, 2, 3, 1)
    varied = F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    grey = varied.mean(1, keepdim=True)
    varied = grey + uniform(0.75, 1.25, 1, 1, 1) * (varied - grey)
    light = F.interpolate(uniform(-1, 1, 1, 4, 4), size=images.shape[2:], mode="bicubic")
    varied = varied * (uniform(0.85, 1.15, 1, 1, 1) + uniform(0, 0.25, 1, 1, 1) * light)
    return varied.clamp(0, 1)
