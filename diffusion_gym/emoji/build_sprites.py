"""Rebuilds the sprite files from the npm packages that publish the artwork.

    npm pack emoji-datasource-google@16.0.0 @lobehub/fluent-emoji-3d@1.1.0
    for f in *.tgz; do mkdir -p "${f%.tgz}" && tar xzf "$f" -C "${f%.tgz}"; done
    python -m diffusion_gym.emoji.build_sprites --noto emoji-datasource-google-16.0.0/package \
        --fluent lobehub-fluent-emoji-3d-1.1.0/package

Noto is what the world is drawn with. Fluent shows the same nouns in another style; it only ever judges the judges.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from .nouns import NOUNS
from .sprites import ASSETS, SPRITE_SIZE


def read_pictures(folder: Path, suffix: str) -> np.ndarray:
    """Reads one picture a noun from `folder`.

    Returns:
        (len(NOUNS), SPRITE_SIZE, SPRITE_SIZE, 4) uint8, RGBA, the longer side of each noun fills the square.

    Raises:
        FileNotFoundError: a noun has no picture there.
    """
    sprites = np.zeros((len(NOUNS), SPRITE_SIZE, SPRITE_SIZE, 4), np.uint8)
    for i, noun in enumerate(NOUNS):
        path = folder / f"{noun.hexcode}{suffix}"
        if not path.is_file():
            raise FileNotFoundError(f"no picture of {noun.name!r}: {path} is missing")
        picture = Image.open(path).convert("RGBA")
        picture = picture.crop(picture.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox())
        scale = SPRITE_SIZE / max(picture.size)
        width, height = (max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        top, left = SPRITE_SIZE - height, (SPRITE_SIZE - width) // 2  # everything stands on the ground line
        sprites[i, top : top + height, left : left + width] = np.asarray(picture)
    return sprites


def main() -> None:
    """Writes assets/noto.npz and assets/fluent.npz."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noto", type=Path, required=True, help="unpacked package emoji-datasource-google")
    parser.add_argument("--fluent", type=Path, required=True, help="unpacked package @lobehub/fluent-emoji-3d")
    args = parser.parse_args()
    names = np.array([noun.name for noun in NOUNS])
    for name, folder, suffix in (
        ("noto", args.noto / "img/google/64", ".png"),
        ("fluent", args.fluent / "assets", ".webp"),
    ):
        path = ASSETS / f"{name}.npz"
        np.savez_compressed(path, names=names, sprites=read_pictures(folder, suffix))
        print(f"{path}: {len(names)} nouns, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
