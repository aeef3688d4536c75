"""The pictures of the BRISQUE golden test, by a formula that `tools/record_brisque.py` and the test share."""

import numpy as np


def waves(height: int, width: int, roughness: int) -> np.ndarray:
    """Waves with a rough surface, 8-bit (H, W, 3)."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [
        128 + 50 * np.sin(x / (5 + c)) + 40 * np.cos(y / 7 + c) + (x * x * 3 + y * y * (5 + c) + x * y) % roughness
        for c in range(3)
    ]
    return np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8)
