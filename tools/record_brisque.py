"""Record the BRISQUE features of the package `brisque` for the pictures in tests/rewards/brisque_pictures.py.

Its code needs OpenCV and fails with NumPy 2.4, so it needs an environment of its own:

    python -m venv genuine
    genuine/bin/pip install brisque==0.2.0 opencv-python-headless "numpy<2.4"
    genuine/bin/python tools/record_brisque.py

writes tests/rewards/golden/brisque.json.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
from brisque import BRISQUE
from skimage.color import rgb2gray

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests/rewards/golden/brisque.json"
PACKAGES = ("brisque", "numpy", "opencv-python-headless", "scikit-image", "scipy")
sys.path.insert(0, str(ROOT / "tests/rewards"))

from brisque_pictures import waves  # noqa: E402


def features(judge: BRISQUE, pixels: np.ndarray) -> list[float]:
    """The 36 features, as the package's `score` computes them."""
    grey = rgb2gray(pixels)
    half = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC)
    return [float(np.squeeze(value)) for image in (grey, half) for value in judge.calculate_brisque_features(image)]


def main() -> None:
    """Judge the pictures and write the golden file."""
    judge = BRISQUE()
    cases = []
    for size in ([64, 64, 7], [80, 96, 31]):
        pixels = waves(*size)
        cases.append({"waves": size, "score": float(judge.score(pixels)), "features": features(judge, pixels)})
    lines = (f"  {json.dumps(case)}" for case in cases)
    versions = json.dumps({name: version(name) for name in PACKAGES})
    GOLDEN.write_text('{\n "versions": ' + versions + ',\n "cases": [\n' + ",\n".join(lines) + "\n ]\n}\n")
    print([case["score"] for case in cases])


if __name__ == "__main__":
    main()
