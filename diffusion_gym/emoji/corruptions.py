"""Ways in which a picture is spoilt, each with a strength in [0, 1]: what the judges of quality learn to mind."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

Corruption = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
"""((H, W, 3) uint8, strength, chance) -> (H, W, 3) uint8."""


def blur(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur, up to a radius of 2.5 pixels."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(0.5 + 2.0 * strength)))


def noise(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise, up to a standard deviation of 55 grey levels."""
    return (image + rng.normal(0, 10 + 45 * strength, image.shape)).clip(0, 255).astype(np.uint8)


def color_cast(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Mixes one random saturated colour into the whole picture, up to 55 percent."""
    share = 0.12 + 0.43 * strength
    cast = np.roll(np.array([1.0, rng.uniform(), 0.0]), rng.integers(3)) * 255
    return (image * (1 - share) + cast * share).clip(0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """JPEG compression, from quality 35 down to 4."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=round(35 - 31 * strength))
    return np.asarray(Image.open(buffer))


def artefacts(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Patches that were displaced or repeat themselves, three to ten of them."""
    spoilt = image.copy()
    for _ in range(3 + round(7 * strength)):
        size = int(rng.integers(6, 13))
        (y, x), (v, u) = rng.integers(0, image.shape[0] - size, (2, 2))
        spoilt[y : y + size, x : x + size] = image[v : v + size, u : u + size]
    return spoilt


CORRUPTIONS: dict[str, Corruption] = {
    "blur": blur,
    "noise": noise,
    "color_cast": color_cast,
    "jpeg": jpeg,
    "artefacts": artefacts,
}
