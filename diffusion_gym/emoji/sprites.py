"""The artwork: one sprite a noun, in two drawing styles, tinted and scaled."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from .nouns import NATURAL, NOUN_INDEX, NOUN_NAMES, TINTS

ASSETS = Path(__file__).parent / "assets"
SPRITE_SIZE = 64
STYLES = ("noto", "fluent")


@lru_cache
def load_sprites(style: str = "noto") -> np.ndarray:
    """Returns the sprites of a style, (nouns, 64, 64, 4) uint8 RGBA, in the order of `NOUNS`.

    Args:
        style: "noto" (what the world is drawn with) or "fluent" (never trained on: it judges the judges).

    Raises:
        ValueError: unknown style, or a file that does not hold the nouns of this version.
    """
    if style not in STYLES:
        raise ValueError(f"style={style!r} is unknown; choose one of {', '.join(STYLES)}")
    path = ASSETS / f"{style}.npz"
    with np.load(path) as data:
        if tuple(data["names"]) != NOUN_NAMES:
            raise ValueError(f"{path} holds other nouns; rebuild it with python -m diffusion_gym.emoji.build_sprites")
        return data["sprites"]


@lru_cache(maxsize=8192)
def sprite(noun: str, color: str, size: int, style: str = "noto") -> tuple[np.ndarray, np.ndarray]:
    """Returns a sprite ready to be drawn: premultiplied colour and what shows through.

    A tint keeps the shading: the grey value of the sprite, lifted so that dark fur shows it too, times the tint.

    Args:
        noun: one of `NOUN_NAMES`.
        color: "natural" or one of `COLORS`.
        size: side in pixels.
        style: "noto" or "fluent".

    Returns:
        (size, size, 3) float32 in [0, 255], colour times alpha; (size, size, 1) float32 in [0, 1], one minus alpha.
    """
    rgba = load_sprites(style)[NOUN_INDEX[noun]].astype(np.float32)
    color_HWC, alpha_HW1 = rgba[..., :3], rgba[..., 3:] / 255
    if color != NATURAL:
        grey_HW1 = (color_HWC @ np.array([0.299, 0.587, 0.114], np.float32))[..., None] / 255
        color_HWC = (0.4 + 0.6 * grey_HW1) * np.array(TINTS[color], np.float32)
    # Premultiplied before it is scaled, so that no dark rim appears.
    planes = np.concatenate([color_HWC * alpha_HW1, alpha_HW1 * 255], axis=-1)
    scaled = np.stack(
        [np.asarray(Image.fromarray(planes[..., c]).resize((size, size), Image.Resampling.BOX)) for c in range(4)],
        axis=-1,
    )
    return scaled[..., :3].clip(0, 255), 1 - scaled[..., 3:].clip(0, 255) / 255
