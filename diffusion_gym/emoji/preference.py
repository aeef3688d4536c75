"""The preference model: how well a picture answers a prompt, in the manner of ImageReward (Xu et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import WEIGHTS
from .files import load_weights
from .images import check_images, check_prompts
from .tokenizer import MAX_LENGTH, build_tokenizer


class PreferenceNet(nn.Module):
    """The words of a prompt look at the picture: text tokens attend to 8x8 picture tokens, and the first one is scored.

    Args:
        width: of all tokens.
        layers: transformer layers in which text attends to the picture.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int = 128, layers: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 48, 4, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(48, 96, 3, stride=2, padding=1),
            nn.GroupNorm(8, 96),
            nn.GELU(),
            nn.Conv2d(96, 96, 3, padding=1),
            nn.GroupNorm(8, 96),
            nn.GELU(),
            nn.Conv2d(96, width, 3, stride=2, padding=1),
            nn.GroupNorm(8, width),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.where = nn.Parameter(torch.randn(64, width) * 0.02)
        layer: dict[str, Any] = {
            "nhead": 4,
            "dim_feedforward": 2 * width,
            "dropout": 0.0,
            "activation": "gelu",
            "batch_first": True,
        }
        self.look = nn.TransformerEncoderLayer(width, norm_first=True, **layer)
        self.image_norm = nn.LayerNorm(width)
        self.words = nn.Embedding(len(build_tokenizer()), width)
        self.order = nn.Parameter(torch.randn(MAX_LENGTH, width) * 0.02)
        self.compare = nn.ModuleList(nn.TransformerDecoderLayer(width, norm_first=True, **layer) for _ in range(layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        # Scores are reported with mean 0 and deviation 1 over pictures right, wrong and spoilt.
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def encode_images(self, images_BCHW: Tensor) -> Tensor:
        """Pictures in [0, 1] -> picture tokens (B, 64, width)."""
        tokens = self.stem(images_BCHW * 2 - 1).flatten(2).transpose(1, 2) + self.where
        return self.image_norm(self.look(tokens))

    def compare_with(self, tokens_BL: Tensor, pictures_BND: Tensor) -> Tensor:
        """Token ids (B, L) and picture tokens (B, 64, width) -> raw scores (B,)."""
        padding = tokens_BL.eq(1).cumsum(1) > 1  # all that follows the first end of text
        hidden = self.words(tokens_BL) + self.order
        for layer in self.compare:
            hidden = layer(hidden, pictures_BND, tgt_key_padding_mask=padding)
        return self.head(hidden[:, 0]).squeeze(-1)

    def forward(self, images_BCHW: Tensor, tokens_BL: Tensor) -> Tensor:
        """Pictures in [0, 1] and token ids (B, L) -> standardised scores (B,)."""
        return (self.compare_with(tokens_BL, self.encode_images(images_BCHW)) - self.mean) / self.std


def tokenize(prompts: Sequence[str]) -> Tensor:
    """Prompts -> token ids (B, MAX_LENGTH) int64."""
    return build_tokenizer()(
        list(prompts), padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


class Preference:
    """Scores pictures for prompts.

    Args:
        net: the network, on the device where it is to run.
    """

    def __init__(self, net: PreferenceNet) -> None:
        self.net = net.eval().requires_grad_(False)

    @classmethod
    def load(cls, device: str | torch.device = "cpu", path: Path = WEIGHTS / "preference.safetensors") -> Preference:
        """Loads the shipped model.

        Raises:
            FileNotFoundError: the weights are missing; the message says how to make them.
            ValueError: they are damaged.
        """
        net = PreferenceNet()
        load_weights(net, path, "preference")
        return cls(net.to(device))

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str], chunk: int = 256) -> Tensor:
        """Scores pictures for prompts.

        Args:
            images: (B, 3, 64, 64) float in [0, 1].
            prompts: B prompts; words that the grammar does not know are spelled out and mean little.
            chunk: pictures a forward pass.

        Returns:
            (B,) float32 on the CPU; higher is better, about 0 on average over right, wrong and spoilt pictures.
        """
        check_images(images)
        check_prompts(prompts, images)
        device = next(self.net.parameters()).device
        parts = zip(images.split(chunk), tokenize(prompts).split(chunk), strict=True)
        return torch.cat([self.net(i.to(device).float(), t.to(device)).cpu() for i, t in parts])
