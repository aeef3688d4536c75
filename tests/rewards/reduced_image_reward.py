"""A small ImageReward for the golden test: sizes, weights by a rule, pictures by a formula, prompts, a vocabulary.

`tools/record_image_reward.py` gives these to the authors' code and records what it answers; the test gives them to
ours.
"""

import zlib
from collections.abc import Mapping, Sequence
from math import prod, sqrt

import numpy as np
import torch

IMAGE_SIZE = 48
PATCH_SIZE = 16
VISION_WIDTH, VISION_DEPTH = 128, 2
TEXT_WIDTH, TEXT_DEPTH = 64, 2
POSITIONS = 40
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NOUNS = ["cat", "dog", "##s", "moon", "park", "snow", "##ing", "rabbit"]
WORDS = [*SPECIAL, *NOUNS, "a", "red", "blue", "and", "on", "the", "in", ",", "."]
VOCABULARY = len(WORDS) + 2  # the authors add two tokens of BLIP's
PROMPTS = (
    "A red cat",
    "two blue dogs and a rabbit on the moon, snowing in the park.",
    "the " + "rabbit and the cat and the dog and " * 6 + "the moon",  # longer than 35 tokens
)


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """Weights that depend on a tensor's name and shape alone, float32.

    Embeddings are small, as in trained networks, so that the epsilon of the first layer norms shows.
    """
    return {name: _weight(name, tuple(shape)) for name, shape in shapes.items()}


def pictures() -> list[np.ndarray]:
    """Three 8-bit pictures (H, W, 3): two square ones, and one whose centre crop leaves out an odd number of pixels."""
    return [_picture(48, 48, 0), _picture(90, 90, 1), _picture(64, 68, 2)]


def _weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    uniform = np.random.default_rng(zlib.crc32(name.encode())).random(shape) * 2 - 1
    if "norm" in name.lower():
        values = 0.2 * uniform + (1 if name.endswith("weight") else 0)
    elif "embed" in name or "cls_token" in name:
        values = 0.02 * uniform
    elif len(shape) == 1:
        values = 0.2 * uniform
    else:
        values = uniform * sqrt(3 / prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


def _picture(height: int, width: int, kind: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    channels = [(x * (5 + kind) + y * (3 + 2 * c) + (x * y * (c + 1)) // (7 + kind)) % 256 for c in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)
