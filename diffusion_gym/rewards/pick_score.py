"""PickScore (Kirstain et al. 2023, "Pick-a-Pic: An Open Dataset of User Preferences for Text-to-Image Generation")."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_gym.rewards.base import Reward
from diffusion_gym.rewards.clip_model import (
    MODEL_FILES,
    Clip,
    find_tokenizer,
    load_clip_tokenizer,
    load_network,
    tokenizer_wanted,
)
from diffusion_gym.rewards.sources import Wanted, find_files

REPO = "yuvalkirstain/PickScore_v1"
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


def pick_score(
    device: torch.device, *, source: str = REPO, processor: str | None = None, dtype: torch.dtype = torch.float32
) -> Reward:
    """exp(logit_scale) * cosine of picture and prompt, about 16 to 24.

    Args:
        device: where the network lies.
        source: directory or hub id of the model, in transformers' CLIP format.
        processor: directory or hub id of its tokenizer. Without it, the one in the source's directory if there is
            one, else that of `PROCESSOR`, as the model's page prescribes.
        dtype: what the network runs in.

    Raises:
        FileNotFoundError: there is no such model or tokenizer, or the hub is out of reach.
        ValueError: one of them is damaged, of another kind, or does not belong to the other.
    """
    wanted = Wanted(reward="pick_score", what="the PickScore model", repo=REPO, layouts=MODEL_FILES)
    wanted_tokenizer = tokenizer_wanted("pick_score", "processor", PROCESSOR)
    files = find_files(source, wanted)
    directory = find_tokenizer(processor, files[0].parent, wanted_tokenizer)
    network = load_network(files, wanted)
    tokenizer = load_clip_tokenizer(directory, wanted_tokenizer, network)
    clip = Clip(network, tokenizer=tokenizer, device=device, dtype=dtype)

    def score(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return clip.logit_scale * clip.cosine(images, prompts)

    return score
