"""Small models of the Stable Diffusion formats with random weights, of any latent size; tests use them too."""

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
    guidance_width: int | None = None,
    seed: int = 0,
    **scheduler: Any,
) -> Path:
    """Save a pipeline directory of Stable Diffusion 1.x's format; its pictures are twice as high and wide as latents.

    Args:
        path: the directory to write.
        sample_size: height and width of a latent, which has 4 channels.
        text_length: L, tokens of a prompt.
        text_width: D, width of its embedding.
        channels: of the UNet, at full and at half resolution.
        guidance_width: width of the guidance scale's features in a UNet that takes it as an input (LCM); None without.
        seed: of the weights.
        **scheduler: settings of the DDIM scheduler beyond Stable Diffusion's.

    Returns:
        `path`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text_encoder = transformers.CLIPTextModel(_text_config(text_length, text_width))
        unet = _unet(sample_size, channels, text_width, time_cond_proj_dim=guidance_width)
        vae = _vae()
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


def save_random_sdxl(
    path: Path,
    *,
    sample_size: int = 8,
    text_length: int = 12,
    text_widths: tuple[int, int] = (16, 24),
    channels: tuple[int, int] = (16, 32),
    zeros_for_empty_prompt: bool = True,
    seed: int = 0,
    **scheduler: Any,
) -> Path:
    """Save a pipeline directory of the SDXL format: two text encoders, pooled embedding and size conditioning.

    Args:
        path: the directory to write.
        sample_size: height and width of a latent, which has 4 channels.
        text_length: L, tokens of a prompt.
        text_widths: of the embeddings of the two text encoders; the second's is also that of the pooled one.
        channels: of the UNet, at full and at half resolution.
        zeros_for_empty_prompt: whether the unconditional embedding is zero, as SDXL base has it.
        seed: of the weights.
        **scheduler: settings of the Euler scheduler beyond SDXL's.

    Returns:
        `path`.
    """
    size_width = 4
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first = transformers.CLIPTextModel(_text_config(text_length, text_widths[0]))
        second = transformers.CLIPTextModelWithProjection(_text_config(text_length, text_widths[1]))
        unet = _unet(
            sample_size,
            channels,
            sum(text_widths),
            addition_embed_type="text_time",
            addition_time_embed_dim=size_width,
            projection_class_embeddings_input_dim=text_widths[1] + 6 * size_width,
            use_linear_projection=True,
        )
        vae = _vae()
    schedule = {k: v for k, v in SCHEDULE.items() if k.startswith("beta") or k == "steps_offset"}
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=_tokenizer(text_length),
        tokenizer_2=_tokenizer(text_length),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(**{"timestep_spacing": "leading", **schedule, **scheduler}),
        force_zeros_for_empty_prompt=zeros_for_empty_prompt,
        add_watermarker=False,
    )
    pipe.save_pretrained(path)
    return path


def _unet(sample_size: int, channels: tuple[int, int], text_width: int, **options: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=sample_size,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=text_width,
        **options,
    )


def _vae() -> Any:
    return diffusers.AutoencoderKL(
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(8, 16),
        norm_num_groups=4,
        scaling_factor=0.5,
    )


def _vocabulary() -> dict[str, int]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return {token: i for i, token in enumerate([BOS, EOS, *letters, *(letter + "</w>" for letter in letters)])}


def _tokenizer(length: int) -> Any:
    return transformers.CLIPTokenizer(
        vocab=_vocabulary(), merges=[], bos_token=BOS, eos_token=EOS, pad_token=EOS, model_max_length=length
    )


def _text_config(length: int, width: int) -> Any:
    return transformers.CLIPTextConfig(
        vocab_size=len(_vocabulary()),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
