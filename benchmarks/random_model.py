"""A small Stable-Diffusion-format model with random weights, of any latent and embedding size; tests use it too."""

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import pre_tokenizers

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}


def save_random_model(
    path: Path,
    *,
    sample_size: int = 8,
    text_length: int = 12,
    text_width: int = 16,
    channels: tuple[int, int] = (16, 32),
    seed: int = 0,
    **scheduler: Any,
) -> Path:
    """Save a pipeline directory; its pictures have twice the height and width of its latents.

    Args:
        path: the directory to write.
        sample_size: height and width of a latent, which has 4 channels.
        text_length: L, tokens of a prompt.
        text_width: D, width of its embedding.
        channels: of the UNet, at full and at half resolution.
        seed: of the weights.
        **scheduler: settings of the DDIM scheduler beyond Stable Diffusion's.

    Returns:
        `path`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text_encoder = _text_encoder(text_length, text_width)
        unet = diffusers.UNet2DConditionModel(
            sample_size=sample_size,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=channels,
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=text_width,
        )
        vae = diffusers.AutoencoderKL(
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            block_out_channels=(8, 16),
            norm_num_groups=4,
            scaling_factor=0.5,
        )
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=_tokenizer(text_length),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(**{**SCHEDULE, **scheduler}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(path)
    return path


def _vocabulary() -> dict[str, int]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return {token: i for i, token in enumerate([BOS, EOS, *letters, *(letter + "</w>" for letter in letters)])}


def _tokenizer(length: int) -> Any:
    return transformers.CLIPTokenizer(
        vocab=_vocabulary(), merges=[], bos_token=BOS, eos_token=EOS, pad_token=EOS, model_max_length=length
    )


def _text_encoder(length: int, width: int) -> Any:
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(_vocabulary()),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=length,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
