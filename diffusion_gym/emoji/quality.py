"""The quality score: how clean a picture is, whatever it shows. It plays the part of an aesthetic predictor."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from . import WEIGHTS
from .files import load_weights
from .images import check_images


class DepthwiseBlock(nn.Module):
    """A 5x5 depthwise convolution and a two-layer perceptron at each pixel, around a shortcut (Liu et al. 2022)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.pixel = nn.Sequential(
            nn.GroupNorm(1, channels),
            nn.Conv2d(channels, 2 * channels, 1),
            nn.GELU(),
            nn.Conv2d(2 * channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return x + self.pixel(self.spatial(x))


class QualityNet(nn.Module):
    """A small network of depthwise convolutions that looks at texture first.

    Args:
        widths: channels at 32x32, 16x16 and 8x8.
    """

    def __init__(self, widths: tuple[int, int, int] = (24, 48, 96)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in widths:
            layers += [nn.Conv2d(channels, width, 2, stride=2), DepthwiseBlock(width), DepthwiseBlock(width)]
            channels = width
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(2 * channels, 64), nn.GELU(), nn.Linear(64, 1))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Pictures in [0, 1] -> logits (B,)."""
        features = self.trunk(images_BCHW * 2 - 1).flatten(2)
        return self.head(torch.cat([features.mean(-1), features.std(-1)], dim=1)).squeeze(-1)


class Quality:
    """Scores pictures between 0 (spoilt) and 1 (clean).

    Args:
        net: the network, on the device where it is to run.
    """

    def __init__(self, net: QualityNet) -> None:
        self.net = net.eval().requires_grad_(False)

    @classmethod
    def load(cls, device: str | torch.device = "cpu", path: Path = WEIGHTS / "quality.safetensors") -> Quality:
        """Loads the shipped model.

        Raises:
            FileNotFoundError: the weights are missing; the message says how to make them.
            ValueError: they are damaged.
        """
        net = QualityNet()
        load_weights(net, path, "quality")
        return cls(net.to(device))

    @torch.no_grad()
    def score(self, images: Tensor, chunk: int = 256) -> Tensor:
        """Scores pictures.

        Args:
            images: (B, 3, 64, 64) float in [0, 1].
            chunk: pictures a forward pass.

        Returns:
            (B,) float32 in (0, 1), on the CPU; higher is better.
        """
        check_images(images)
        device = next(self.net.parameters()).device
        return torch.cat([self.net(part.to(device).float()).sigmoid().cpu() for part in images.split(chunk)])
