"""Pictures of the generator for people to look at: the sample sheet of the model card, and the sheets labelled by eye.

python -m diffusion_gym.emoji.sheets samples     # sample_sheet.png
python -m diffusion_gym.emoji.sheets labels      # labels/pictures.npz, labels/prompts.json, labels/sheet_*.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from . import WEIGHTS
from .grammar import PROBES, training_prompts
from .images import to_bytes
from .sampling import load_pipeline, sample

HERE = Path(__file__).parent
SAMPLE_SEED = 5
LABEL_SEED = 7
SAMPLE_PROMPTS = (
    *PROBES,
    "a blue fox on the beach",
    "three penguins in the snow",
    "two red mushrooms",
    "an owl and a frog",
    "a purple elephant on the table",
    "a car and a house in the park",
    "four strawberries on the table",
    "a yellow whale",
)


def captioned_sheet(pictures: np.ndarray, captions: Sequence[str], columns: int, scale: int = 3) -> Image.Image:
    """Lays pictures (B, 64, 64, 3) uint8 out row by row, each enlarged and with its caption below."""
    side, strip, gap = 64 * scale, 16, 6
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + strip + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = gap + (i % columns) * (side + gap), gap + (i // columns) * (side + strip + gap)
        sheet.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST), (x, y))
        pen.text((x, y + side + 2), caption, fill="black")
    return sheet


def write_sample_sheet(weights: Path = WEIGHTS, path: Path = HERE / "sample_sheet.png", each: int = 6) -> None:
    """Writes the first pictures that the model makes of twelve prompts at its defaults; none is chosen."""
    prompts = [prompt for prompt in SAMPLE_PROMPTS for _ in range(each)]
    pictures = to_bytes(sample(load_pipeline(weights / "pipeline"), prompts, seed=SAMPLE_SEED))
    captions = [prompt if i % each == 0 else "" for i, prompt in enumerate(prompts)]
    captioned_sheet(pictures, captions, columns=2 * each, scale=2).save(path, optimize=True)


def write_label_sheets(weights: Path = WEIGHTS, folder: Path = HERE / "labels", a_sheet: int = 20) -> None:
    """Writes 120 pictures to be labelled by eye: 15 a probe, 60 of prompts of the training grammar, shuffled."""
    rng = np.random.default_rng(LABEL_SEED)
    prompts = [*(probe for probe in PROBES for _ in range(15)), *rng.choice(training_prompts(), 60)]
    prompts = [str(prompts[i]) for i in rng.permutation(len(prompts))]
    pictures = to_bytes(sample(load_pipeline(weights / "pipeline"), prompts, seed=LABEL_SEED))
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "pictures.npz", pictures=pictures)
    (folder / "prompts.json").write_text(json.dumps(prompts, indent=1) + "\n")
    for start in range(0, len(prompts), a_sheet):
        part = slice(start, start + a_sheet)
        captions = [f"{start + i}: {prompt}" for i, prompt in enumerate(prompts[part])]
        captioned_sheet(pictures[part], captions, columns=5).save(folder / f"sheet_{start:03d}.png", optimize=True)


def main(argv: list[str] | None = None) -> None:
    """Parses the command line and writes the sheets."""
    parser = argparse.ArgumentParser(
        prog="python -m diffusion_gym.emoji.sheets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=("samples", "labels"))
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the weights")
    args = parser.parse_args(argv)
    {"samples": write_sample_sheet, "labels": write_label_sheets}[args.kind](args.weights)


if __name__ == "__main__":
    main()
