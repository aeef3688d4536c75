"""The generator: a UNet and a text encoder, trained together to denoise the latents of scenes under their alt texts.

Epsilon prediction (Ho et al. 2020) with the min-SNR weight (Hang et al. 2023); a share of captions is empty, for
classifier-free guidance (Ho & Salimans 2022).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel

from ..grammar import AltTextNoise, Scene, alt_text
from ..images import to_tensor
from ..scenes import sample_batch
from ..tokenizer import MAX_LENGTH, build_tokenizer
from .autoencoder import load_autoencoder
from .loop import LoopConfig, Progress, StepRandom, save_atomically, train, write_metrics


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes, data and loss of the generator.

    Attributes:
        unet_channels: of the UNet at 8x8 and at 4x4; attention is at 4x4 alone.
        text_width: width of the text encoder and of its output.
        text_layers: its layers.
        scenes: how many pictures are composed and encoded once; captions are written anew at every visit.
        noise: how the captions err.
        empty_captions: share of captions left empty.
        min_snr_gamma: ceiling of the signal-to-noise ratio in the loss weight.
        loop: how long and how fast.
    """

    unet_channels: tuple[int, int] = (96, 160)
    text_width: int = 128
    text_layers: int = 2
    scenes: int = 60_000
    noise: AltTextNoise = field(default_factory=AltTextNoise)
    empty_captions: float = 0.1
    min_snr_gamma: float = 5.0
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=3200, batch_size=64, learning_rate=1e-3, ema_decay=0.999, checkpoint_every=50
        )
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule; with `set_alpha_to_one=False` the last step keeps a density."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def build_unet(channels: tuple[int, int], latent_channels: int, text_width: int) -> UNet2DConditionModel:
    """Makes an untrained UNet for 8x8 latents."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=text_width,
        attention_head_dim=8,
    )


def build_text_encoder(width: int, layers: int) -> CLIPTextModel:
    """Makes an untrained text encoder over the project's own vocabulary."""
    tokenizer = build_tokenizer()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


@torch.no_grad()
def encode_scenes(
    autoencoder: AutoencoderKL, count: int, seed: int, cache: Path, device: str
) -> tuple[Tensor, list[Scene]]:
    """Composes `count` training scenes and encodes them; kept in `cache` for the next run with the same encoder.

    Returns:
        latents (count, C, 8, 8) float16 of unit variance, and the scenes.
    """
    digest = hashlib.sha256(str((count, seed, float(autoencoder.config.scaling_factor))).encode())
    for value in autoencoder.encoder.state_dict().values():
        digest.update(value.detach().cpu().half().numpy().tobytes())
    kept: Tensor | None = None
    if cache.is_file():
        saved = torch.load(cache, weights_only=True)
        kept = saved["latents"] if saved["digest"] == digest.hexdigest() else None
    latents, scenes = [], []
    chunk = 100
    for start in tqdm(range(0, count, chunk), desc="scenes", unit_scale=chunk, disable=kept is not None):
        rng = StepRandom.at(seed, 2 * 10**9 + start).numpy
        pictures, drawn = sample_batch(rng, min(chunk, count - start), split="training")
        scenes += drawn
        if kept is None:
            mode = autoencoder.encode(to_tensor(pictures, device) * 2 - 1).latent_dist.mode()
            latents.append((mode * autoencoder.config.scaling_factor).half().cpu())
    if kept is not None:
        return kept, scenes
    cache.parent.mkdir(parents=True, exist_ok=True)
    save_atomically(cache, {"digest": digest.hexdigest(), "latents": torch.cat(latents)})
    return torch.cat(latents), scenes


def train_generator(
    config: GeneratorConfig, latents: Tensor, scenes: list[Scene]
) -> tuple[UNet2DConditionModel, CLIPTextModel, Progress]:
    """Trains on latents (N, C, 8, 8) of unit variance and the scenes that they show."""
    torch.manual_seed(config.loop.seed)
    device = config.loop.device
    unet = build_unet(config.unet_channels, latents.shape[1], config.text_width).to(memory_format=torch.channels_last)
    text_encoder = build_text_encoder(config.text_width, config.text_layers)
    model = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder}).to(device)
    tokenizer = build_tokenizer()
    abar_T = build_scheduler().alphas_cumprod.to(device)
    snr_T = abar_T / (1 - abar_T)
    weight_T = snr_T.clamp(max=config.min_snr_gamma) / snr_T

    def loss_function(step: int, chance: StepRandom) -> tuple[Tensor, dict[str, float]]:
        rows = chance.numpy.integers(len(scenes), size=config.loop.batch_size)
        captions = [
            "" if chance.numpy.random() < config.empty_captions else alt_text(scenes[row], chance.numpy, config.noise)
            for row in rows
        ]
        tokens = tokenizer(captions, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt")
        text_BLD = text_encoder(tokens.input_ids.to(device)).last_hidden_state
        latent_BCHW = latents[torch.from_numpy(rows)].to(device).float()
        noise = torch.randn(latent_BCHW.shape, generator=chance.torch, device=device)
        t_B = torch.randint(len(abar_T), (len(rows),), generator=chance.torch, device=device)
        abar = abar_T[t_B].view(-1, 1, 1, 1)
        noisy = abar.sqrt() * latent_BCHW + (1 - abar).sqrt() * noise
        predicted = unet(noisy, t_B, encoder_hidden_states=text_BLD).sample
        error_B = (predicted - noise).square().flatten(1).mean(1)
        return (weight_T[t_B] * error_B).mean(), {"mse": error_B.mean().item()}

    progress = train("generator", model, loss_function, config.loop)
    model.eval()
    return unet, text_encoder, progress


SAMPLING = {"num_inference_steps": 20, "guidance_scale": 1.5, "eta": 1.0}
"""The model's own defaults, written beside it as sampling.json."""


def write_pipeline(unet: UNet2DConditionModel, text_encoder: CLIPTextModel, vae: AutoencoderKL, folder: Path) -> None:
    """Writes a StableDiffusionPipeline directory in float16, with the defaults of its sampling."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=build_tokenizer(),
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder)
    # transformers would load the text encoder in the type it is stored in, and diffusers loads the rest in float32.
    edit_config(folder / "text_encoder" / "config.json", dtype="float32")
    edit_config(folder / "vae" / "config.json", _name_or_path=None)  # where it was read from concerns nobody
    (folder / "sampling.json").write_text(json.dumps(SAMPLING, indent=2) + "\n")


def edit_config(path: Path, **changes: str | None) -> None:
    """Sets keys of a JSON file; None removes one."""
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in changes or v is not None}, indent=2) + "\n")


def run(config: GeneratorConfig, out: Path) -> None:
    """Trains on the latents of `out/pipeline/vae`; writes the rest of `out/pipeline` and `out/generator.json`."""
    vae = load_autoencoder(out, config.loop.device)
    cache = config.loop.runs / "generator-latents.pt"
    latents, scenes = encode_scenes(vae, config.scenes, config.loop.seed, cache, config.loop.device)
    unet, text_encoder, progress = train_generator(config, latents, scenes)
    # Loaded again: the decoder may have learned on while the generator was trained.
    vae = load_autoencoder(out, "cpu")
    write_pipeline(unet, text_encoder, vae, out / "pipeline")
    figures = {"loss": float(np.mean([loss for _, loss in progress.losses[-10:]]))}
    write_metrics(out / "generator.json", figures, progress, config.loop)
    print(figures)
