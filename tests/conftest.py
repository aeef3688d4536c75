"""A tiny Stable-Diffusion-format model with random weights, made on the spot; nothing is downloaded."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import pytest
import torch
import transformers
from tokenizers import pre_tokenizers

from diffusion_gym.pipelines import Pipeline, load_pipeline

torch.set_num_threads(1)
transformers.logging.disable_progress_bar()
diffusers.utils.logging.disable_progress_bar()

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}


def save_tiny_model(path: Path, seed: int = 0, **scheduler: object) -> Path:
    """Save a random pipeline: 16x16 pictures, latents (4, 8, 8), embeddings (12, 16)."""
    torch.manual_seed(seed)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [BOS, EOS, *letters, *(letter + "</w>" for letter in letters)]
    tokenizer = transformers.CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[],
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=12,
    )
    text_encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=12,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=16,
        attention_head_dim=8,
    )
    vae = diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
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
        tokenizer=tokenizer,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(**{**SCHEDULE, **scheduler}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def make_tiny_model() -> Callable[..., Path]:
    """`save_tiny_model`, for tests that need a model of their own."""
    return save_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_model: Path) -> Pipeline:
    """The tiny model's pipeline, kept alive for the session, so that every environment shares it."""
    return load_pipeline(tiny_model, device="cpu")


@pytest.fixture(scope="session")
def env_arguments(tiny_model: Path, tiny_pipeline: Pipeline) -> dict[str, Any]:
    """Arguments of a small environment: three steps, four prompts, a reward that depends on picture and prompt."""
    return {
        "model": str(tiny_model),
        "reward": [("jpeg_compressibility", 2.0), brightness],
        "prompts": ["a cat", "two dogs", "a green rabbit", "four wolves"],
        "num_inference_steps": 3,
        "device": "cpu",
    }


def brightness(images: torch.Tensor, prompts: Sequence[str], metadata: Sequence[object]) -> torch.Tensor:
    """Mean of the picture plus a tenth of the prompt's length."""
    return images.mean((1, 2, 3)) + 0.1 * torch.tensor([len(prompt) for prompt in prompts])
