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

from benchmarks.random_model import save_random_model
from diffusion_gym.pipelines import Pipeline, load_pipeline

torch.set_num_threads(1)
transformers.logging.disable_progress_bar()
diffusers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def make_tiny_model() -> Callable[..., Path]:
    """Saves a model of the test's own: 16x16 pictures, latents (4, 8, 8), embeddings (12, 16)."""
    return save_random_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("models") / "tiny")


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
