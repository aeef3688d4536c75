"""The composer: draws a scene as a 64x64 picture, in a fraction of a millisecond."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .grammar import Scene, sample_scene
from .nouns import PLAIN, drawn_color
from .sprites import sprite

IMAGE_SIZE = 64

_Y, _X = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32)


# Where stars and snowflakes hang: always at the same places, which a small autoencoder can learn.
_SPECKS = ((4, 6), (14, 20), (24, 4), (34, 14), (42, 26), (50, 8), (58, 18), (6, 30))


def _color(rng: np.random.Generator, rgb: tuple[int, int, int], spread: float = 12) -> np.ndarray:
    return (np.array(rgb, np.float32) + rng.uniform(-spread, spread, 3).astype(np.float32)).clip(0, 255)


def _ellipse(canvas: np.ndarray, x: float, y: float, rx: float, ry: float, rgb: np.ndarray) -> None:
    canvas[((_X - x) / rx) ** 2 + ((_Y - y) / ry) ** 2 < 1] = rgb


def _plain(rng: np.random.Generator) -> np.ndarray:
    canvas = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
    canvas[:] = rng.uniform(165, 250, 3)
    return canvas


def _ground(sky: np.ndarray, ground: np.ndarray, horizon: float, bulge: float = 0.0) -> np.ndarray:
    below = horizon + bulge * ((_X - IMAGE_SIZE / 2) / (IMAGE_SIZE / 2)) ** 2 < _Y
    return np.where(below[..., None], ground, sky).astype(np.float32)


def _park(rng: np.random.Generator) -> np.ndarray:
    horizon = rng.uniform(30, 38)
    canvas = _ground(_color(rng, (170, 215, 245)), _color(rng, (135, 200, 105)), horizon)
    bush = _color(rng, (85, 150, 75))
    for x in rng.uniform(0, IMAGE_SIZE, 3):
        _ellipse(canvas, x, horizon - 3, rng.uniform(8, 12), rng.uniform(7, 10), bush)
    canvas[horizon < _Y] = canvas[-1, 0]
    return canvas


def _moon(rng: np.random.Generator) -> np.ndarray:
    ground = _color(rng, (175, 175, 180))
    canvas = _ground(_color(rng, (22, 24, 48)), ground, rng.uniform(38, 44), bulge=5)
    for x, y in _SPECKS:
        canvas[y : y + 2, x : x + 2] = (235, 235, 215)
    for x in rng.uniform(4, 60, 3):
        _ellipse(canvas, x, rng.uniform(51, 60), rng.uniform(4, 8), rng.uniform(2, 3.5), ground * 0.82)
    return canvas


def _beach(rng: np.random.Generator) -> np.ndarray:
    canvas = _ground(_color(rng, (150, 210, 250)), _color(rng, (240, 215, 150)), rng.uniform(37, 42))
    sea = (rng.uniform(22, 27) < _Y) & (canvas[:, :, 0] < canvas[-1, 0, 0])
    canvas[sea] = _color(rng, (35, 125, 190))
    return canvas


def _snow(rng: np.random.Generator) -> np.ndarray:
    canvas = _ground(_color(rng, (165, 185, 205)), _color(rng, (246, 248, 252), 5), rng.uniform(34, 42), bulge=6)
    for x, y in _SPECKS:
        canvas[y : y + 2, x : x + 2] = 250
    return canvas


def _table(rng: np.random.Generator) -> np.ndarray:
    horizon = rng.uniform(38, 44)
    wood = _color(rng, (160, 100, 55))
    canvas = _ground(_color(rng, (235, 205, 190)), wood, horizon)
    canvas[(horizon < _Y) & (horizon + 3 > _Y)] = wood * 1.25
    return canvas.clip(0, 255)


_GROUNDS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    PLAIN: _plain,
    "park": _park,
    "moon": _moon,
    "beach": _beach,
    "snow": _snow,
    "table": _table,
}

# Number of objects -> centres of the cells they stand in (one arrangement is drawn), and their sides in pixels.
_LAYOUTS: dict[int, tuple[tuple[tuple[tuple[float, float], ...], ...], tuple[int, ...]]] = {
    0: (((),), (1,)),
    1: ((((32, 33),),), (38, 46)),
    2: ((((16, 34), (48, 34)),), (29,)),
    3: ((((32, 17), (16, 47), (48, 47)), ((16, 17), (48, 17), (32, 47))), (27,)),
    4: ((((16, 17), (48, 17), (16, 47), (48, 47)),), (27,)),
}
GRID = 2
"""Objects stand on a grid of so many pixels: fewer positions leave a small autoencoder more to spend on the drawing."""


def draw(scene: Scene, rng: np.random.Generator, *, style: str = "noto") -> np.ndarray:
    """Draws a scene.

    Args:
        scene: what to draw; a colour or place of None is drawn natural or plain, and no groups leave the ground bare.
        rng: ground, sizes and positions.
        style: of the sprites, "noto" or "fluent".

    Returns:
        (64, 64, 3) uint8, RGB.
    """
    canvas = _GROUNDS[scene.place or PLAIN](rng)
    things = [(group.noun, drawn_color(group.noun, group.color)) for group in scene.groups for _ in range(group.count)]
    layouts, sizes = _LAYOUTS[len(things)]
    cells = layouts[int(rng.integers(len(layouts)))]
    size = sizes[int(rng.integers(len(sizes)))]
    room = 6.0 if len(things) == 1 else (31 - size) / 2 + 0.5
    for (noun, color), (x, y) in zip(things, cells, strict=True):
        dx, dy = rng.uniform(-room, room, 2)
        left = int(np.clip(GRID * round((x + dx - size / 2) / GRID), 0, IMAGE_SIZE - size))
        top = int(np.clip(GRID * round((y + dy - size / 2) / GRID), 0, IMAGE_SIZE - size))
        premultiplied, through = sprite(noun, color, size, style)
        window = canvas[top : top + size, left : left + size]
        window *= through
        window += premultiplied
    return (canvas + 0.5).clip(0, 255).astype(np.uint8)


def sample_batch(
    rng: np.random.Generator, size: int, *, split: str = "all", style: str = "noto"
) -> tuple[np.ndarray, list[Scene]]:
    """Draws `size` random scenes.

    Returns:
        (size, 64, 64, 3) uint8 pictures, and their ground truth.
    """
    scenes = [sample_scene(rng, split=split) for _ in range(size)]
    return np.stack([draw(scene, rng, style=style) for scene in scenes]), scenes
