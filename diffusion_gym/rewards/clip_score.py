"""CLIPScore (Hessel et al. 2021, "CLIPScore: A Reference-free Evaluation Metric for Image Captioning")."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_gym.rewards.base import Reward
from diffusion_gym.rewards.clip_model import (
    MODEL_AND_TOKENIZER_FILES,
    TOKENIZER_EXTRAS,
    Clip,
    load_clip_tokenizer,
    load_network,
)
from diffusion_gym.rewards.sources import Wanted, find_files

REPO = "openai/clip-vit-large-patch14"
SCALE = 100.0
"""torchmetrics' factor; the paper's is 2.5."""


def clip_score(device: torch.device, *, source: str = REPO, dtype: torch.dtype = torch.float32) -> Reward:
    """100 * max(cosine, 0) of picture and prompt, 0 to 100; good matches reach 25 to 35.

    Args:
        device: where CLIP lies.
        source: directory or hub id of a CLIP model with its tokenizer, in transformers' format.
        dtype: what CLIP runs in.

    Raises:
        FileNotFoundError: there is no such model, or the hub is out of reach.
        ValueError: it is damaged or not a CLIP model.
    """
    wanted = Wanted(
        reward="clip_score",
        what="a CLIP model with its tokenizer",
        repo=REPO,
        layouts=MODEL_AND_TOKENIZER_FILES,
        extras=TOKENIZER_EXTRAS,
    )
    files = find_files(source, wanted)
    network = load_network(files, wanted)
    tokenizer = load_clip_tokenizer(files[0].parent, wanted, network)
    clip = Clip(network, tokenizer=tokenizer, device=device, dtype=dtype)

    def score(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return SCALE * clip.cosine(images, prompts).clamp(min=0)

    return score
