"""LAION's aesthetic predictor (Schuhmann 2022, "Improved Aesthetic Predictor"), the aesthetic reward of DDPO."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_gym.rewards.base import Reward
from diffusion_gym.rewards.clip_model import MODEL_FILES, Clip, load_network
from diffusion_gym.rewards.linear_stack import load_linear_stack
from diffusion_gym.rewards.preprocess import by_chunks
from diffusion_gym.rewards.sources import Wanted, find_files
from diffusion_gym.rewards.weights import load_checkpoint

REPO = "trl-lib/ddpo-aesthetic-predictor"
CLIP_REPO = "openai/clip-vit-large-patch14"
FILES = (("aesthetic-model.pth",), ("sac+logos+ava1-l14-linearMSE.pth",), ("aesthetic-model.safetensors",))


def aesthetic(
    device: torch.device, *, source: str = REPO, clip: str = CLIP_REPO, dtype: torch.dtype = torch.float32
) -> Reward:
    """How well people would rate a picture's looks, whatever the prompt; about 1 to 10.

    Args:
        device: where the networks lie.
        source: file, directory or hub id of the predictor, five linear layers on CLIP's unit vector of a picture.
        clip: directory or hub id of CLIP ViT-L/14, in transformers' format.
        dtype: what CLIP runs in; the predictor runs in float32.

    Raises:
        FileNotFoundError: there is no such predictor or CLIP model, or the hub is out of reach.
        ValueError: one of them is damaged, of another kind, or does not fit the other.
    """
    wanted = Wanted(reward="aesthetic", what="LAION's aesthetic predictor", repo=REPO, layouts=FILES)
    wanted_clip = Wanted(
        reward="aesthetic", option="clip", what="the CLIP ViT-L/14 model", repo=CLIP_REPO, layouts=MODEL_FILES
    )
    (file,) = find_files(source, wanted)
    clip_files = find_files(clip, wanted_clip)
    checkpoint = load_checkpoint(file, wanted)
    model = Clip(load_network(clip_files, wanted_clip), device=device, dtype=dtype)
    head = load_linear_stack(checkpoint, device, width=model.width)

    def score(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return by_chunks(head, model.embed_images(images), device)

    return score
