"""The autoencoder: 64x64 pictures to 8x8 latents of 8 channels and back (diffusers' `AutoencoderKL`, f8).

First encoder and decoder learn together; then the encoder, and with it the latent space, stands still and the decoder
alone goes on. So the generator can be trained on the latents while the decoder still learns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ..files import check_safetensors, require
from ..images import to_tensor
from ..scenes import sample_batch
from .loop import LoopConfig, Progress, StepRandom, train, write_metrics


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes and weights of the loss.

    Attributes:
        block_out_channels: channels from 64x64 down to 8x8.
        latent_channels: channels of the latent.
        encoder_steps: after so many steps the encoder stands still.
        mse_weight: weight of the squared error beside the absolute one; pictures lie in [-1, 1].
        kl_weight: weight of the KL to N(0, I), in nats a latent dimension; it keeps the latent space smooth.
        loop: how long and how fast.
    """

    block_out_channels: tuple[int, ...] = (16, 32, 64, 128)
    latent_channels: int = 8
    encoder_steps: int = 8000
    mse_weight: float = 4.0
    kl_weight: float = 5e-4
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=18_000, batch_size=8, learning_rate=1.5e-3, ema_decay=0.998, beta2=0.99
        )
    )


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderKL:
    """Makes an untrained autoencoder."""
    torch.manual_seed(config.loop.seed)
    levels = len(config.block_out_channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=config.latent_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_out_channels,
        layers_per_block=1,
        norm_num_groups=1,  # more groups would take the flat colours away
        sample_size=64,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
    )


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture; (B, 3, H, W) in [0, 1] -> (B,)."""
    return -10 * (images - others).square().flatten(1).mean(1).clamp_min(1e-10).log10()


@torch.no_grad()
def round_trip(autoencoder: AutoencoderKL, images: Tensor, chunk: int = 64) -> Tensor:
    """Encodes and decodes (B, 3, H, W) pictures in [0, 1]."""
    return torch.cat(
        [
            (autoencoder.decode(autoencoder.encode(part * 2 - 1).latent_dist.mode()).sample / 2 + 0.5).clamp(0, 1)
            for part in images.split(chunk)
        ]
    )


def train_autoencoder(config: AutoencoderConfig) -> tuple[AutoencoderKL, Progress]:
    """Trains on scenes of all combinations, and sets `scaling_factor` so that latents have unit variance."""
    model = build_autoencoder(config).to(config.loop.device, memory_format=torch.channels_last).train()

    def loss_function(step: int, chance: StepRandom) -> tuple[Tensor, dict[str, float]]:
        pictures, _ = sample_batch(chance.numpy, config.loop.batch_size)
        images = (to_tensor(pictures, config.loop.device) * 2 - 1).contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(step < config.encoder_steps):
            posterior = model.encode(images).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=chance.torch, device=images.device)
            latents = posterior.mean + posterior.std * noise
        difference = model.decode(latents).sample - images
        loss = difference.abs().mean() + config.mse_weight * difference.square().mean()
        if step < config.encoder_steps:
            loss = loss + config.kl_weight * posterior.kl().mean() / posterior.mean[0].numel()
        with torch.no_grad():
            db = -10 * (difference / 2).square().flatten(1).mean(1).log10().mean().item()
        return loss, {"dB": db}

    progress = train("autoencoder", model, loss_function, config.loop)
    model = model.eval()
    model.register_to_config(scaling_factor=latent_scale(model, config.loop))
    return model, progress


@torch.no_grad()
def latent_scale(model: AutoencoderKL, loop: LoopConfig) -> float:
    """One over the standard deviation of the latents of 512 scenes."""
    pictures, _ = sample_batch(StepRandom.at(loop.seed, 10**9).numpy, 512)
    images = to_tensor(pictures, loop.device) * 2 - 1
    latents = torch.cat([model.encode(part).latent_dist.mode() for part in images.split(64)])
    return round(1 / latents.std().item(), 4)


def load_autoencoder(out: Path, device: str) -> AutoencoderKL:
    """Loads the autoencoder under `out` in float32.

    Raises:
        FileNotFoundError: it was not trained yet.
    """
    folder = require(out / "pipeline" / "vae" / "config.json", "autoencoder").parent
    check_safetensors(folder / "diffusion_pytorch_model.safetensors", "autoencoder")
    model = AutoencoderKL.from_pretrained(folder)
    return model.to(device, torch.float32).eval().requires_grad_(False)


@torch.no_grad()
def noisy_round_trip(
    autoencoder: AutoencoderKL, images: Tensor, most: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Round trip with noise on the latents, as a stand-in for what a generator gets wrong.

    Args:
        autoencoder: encodes and decodes.
        images: (B, 3, H, W) in [0, 1].
        most: largest noise, in standard deviations of the latents.
        generator: where the chance comes from.

    Returns:
        The pictures, and the strength (B,) of each one's noise as a uniform share of `most`.
    """
    latents = autoencoder.encode(images * 2 - 1).latent_dist.mode()
    strength_B = torch.rand(len(images), generator=generator, device=images.device)
    noise = torch.randn(latents.shape, generator=generator, device=images.device)
    latents = latents + most / autoencoder.config.scaling_factor * strength_B.view(-1, 1, 1, 1) * noise
    return (autoencoder.decode(latents).sample / 2 + 0.5).clamp(0, 1), strength_B


def run(config: AutoencoderConfig, out: Path) -> None:
    """Trains, measures, and writes `out/pipeline/vae` and `out/autoencoder.json`."""
    model, progress = train_autoencoder(config)
    pictures, _ = sample_batch(StepRandom.at(config.loop.seed + 1, 0).numpy, 512)
    images = to_tensor(pictures, config.loop.device)
    figures = {"psnr_db": psnr(images, round_trip(model, images)).mean().item()}
    model.to(torch.float16).save_pretrained(out / "pipeline" / "vae")
    write_metrics(out / "autoencoder.json", figures, progress, config.loop)
    print(figures)
