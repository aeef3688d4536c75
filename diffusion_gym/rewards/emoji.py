"""The judges of the embedded emoji world as rewards. Each loads its weights when the reward is made."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_gym.rewards.base import Reward


def emoji_preference(device: torch.device) -> Reward:
    """The learned preference model: how well a picture suits its prompt."""
    from diffusion_gym.emoji.preference import Preference

    judge = Preference.load(device)

    def preference(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return judge.score(images, prompts, chunk=_chunk(device))

    return preference


def emoji_reader(device: torch.device) -> Reward:
    """The reader: the fraction of what the prompt asks for that it finds in the picture, 0 to 1."""
    from diffusion_gym.emoji.reader import Reader

    judge = Reader.load(device)

    def reader(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return judge.accuracy(images, prompts, chunk=_chunk(device)).fraction

    return reader


def emoji_quality(device: torch.device) -> Reward:
    """The quality judge: how clean the picture is, whatever the prompt."""
    from diffusion_gym.emoji.quality import Quality

    judge = Quality.load(device)

    def quality(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return judge.score(images, chunk=_chunk(device))

    return quality


def _chunk(device: torch.device) -> int:
    """Pictures judged at a time: one on the CPU, so that no score depends on its neighbours in the last bit."""
    return 1 if device.type == "cpu" else 256
