"""Trains the quality score on pictures spoilt to a known degree: one corruption or two, of random strength."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from ..corruptions import CORRUPTIONS
from ..files import save_weights
from ..images import to_tensor
from ..quality import Quality, QualityNet
from ..scenes import sample_batch
from .autoencoder import load_autoencoder, noisy_round_trip
from .loop import LoopConfig, Progress, StepRandom, train, write_metrics


@dataclass(frozen=True)
class QualityConfig:
    """Data of the quality score.

    Attributes:
        clean: share of pictures that are not spoilt.
        round_trip: share of pictures that go through the autoencoder first, with noise on their latents.
        latent_noise: largest noise on the latents of those, in standard deviations; it counts as spoiling.
        loop: how long and how fast.
    """

    clean: float = 0.25
    round_trip: float = 0.25
    latent_noise: float = 0.8
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=1000, batch_size=64, learning_rate=2e-3, ema_decay=0.995, seed=202, checkpoint_every=50
        )
    )


def spoil(config: QualityConfig, picture: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Spoils a picture, or not. Returns it with what is left of its quality, in [0, 1]."""
    if rng.random() < config.clean:
        return picture, 1.0
    left = 1.0
    names = list(CORRUPTIONS)
    for i in rng.permutation(len(names))[: 1 + int(rng.random() < 0.25)]:
        strength = float(rng.uniform())
        picture = CORRUPTIONS[names[i]](picture, strength, rng)
        left *= 0.85 - 0.75 * strength  # the weakest corruption can already be seen
    return picture, left


def train_quality(config: QualityConfig, autoencoder: AutoencoderKL) -> tuple[QualityNet, Progress]:
    """Trains on fresh scenes: cross-entropy to the quality that is left."""
    torch.manual_seed(config.loop.seed)
    device = config.loop.device
    net = QualityNet().to(device)

    def loss_function(step: int, chance: StepRandom) -> tuple[Tensor, dict[str, float]]:
        pictures, _ = sample_batch(chance.numpy, config.loop.batch_size)
        through = int(config.round_trip * len(pictures))
        images = to_tensor(pictures[:through], device)
        images, strength = noisy_round_trip(autoencoder, images, config.latent_noise, chance.torch)
        pictures[:through] = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        spoilt, left = zip(*(spoil(config, picture, chance.numpy) for picture in pictures), strict=True)
        target = torch.tensor(left, dtype=torch.float32, device=device)
        target[:through] *= 1 - 0.8 * strength
        logits = net(to_tensor(np.stack(spoilt), device))
        error = (logits.sigmoid() - target).abs().mean().item()
        return F.binary_cross_entropy_with_logits(logits, target), {"error": error}

    return net, train("quality", net, loss_function, config.loop)


def run(config: QualityConfig, out: Path) -> None:
    """Trains, measures on unseen pictures, and writes `out/quality.safetensors` and `out/quality.json`."""
    from ..evaluate import evaluate_quality

    net, progress = train_quality(config, load_autoencoder(out, config.loop.device))
    save_weights(net, out / "quality.safetensors")
    figures = evaluate_quality(Quality(net))
    write_metrics(out / "quality.json", figures, progress, config.loop)
    print(figures)
