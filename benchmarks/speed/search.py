"""The peer's best settings, looked for on prompts and a seed that nothing is reported on.

    python -m benchmarks.speed.search --trl DIR [--out runs/speed/search] [--budget 160] [--names first lr_3e-4]

Every candidate trains on each tuning prompt for the same CPU time; so do our own defaults, for comparison. A score is
the evaluated reward near the end: the mean of the last three evaluations. What is done is not done again, so that the
search can be stopped, gone on with and made longer. `search.json` in `--out` says what was tried and found.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.config import DPOKConfig
from benchmarks.speed.learning import judged, seconds, train_ours, train_peer
from benchmarks.speed.peer import INSTALL, PeerSettings
from benchmarks.speed.plan import Plan
from benchmarks.speed.same_reward import evaluation

RESULT = "search.json"
PROMPTS = ("a cow on the moon", "a purple bear")
SEED = 100
OURS = "ours"
EVALUATIONS, LAST = 8, 3
FIRST = PeerSettings(seed=SEED)
CANDIDATES: dict[str, PeerSettings] = {
    "first": FIRST,
    "lr_3e-4": replace(FIRST, learning_rate=3e-4),
    "lr_3e-3": replace(FIRST, learning_rate=3e-3),
    "clip_1e-4": replace(FIRST, clip_range=1e-4),
    "clip_1e-2": replace(FIRST, clip_range=1e-2),
    "fraction_0.5": replace(FIRST, fraction=0.5),
    "own_adapters": replace(FIRST, adapters="attention", rank=4, learning_rate=3e-3),
    "six_updates": replace(FIRST, train_batch=8),
    "two_passes": replace(FIRST, inner_epochs=2),
    "pictures_32": replace(FIRST, pictures=32, sample_batch=32),
    "tracking": replace(FIRST, tracking=96),
    "steps_20": replace(FIRST, steps=20),
    "steps_5": replace(FIRST, steps=5),
}
"""By name. `first` is what suits our own trainings of this model, as far as the peer has the same settings."""


def train(name: str, prompt: str, directory: str, budget: float, folder: Path) -> None:
    """Train a candidate, or by our defaults, unless that is done."""
    if name == OURS:
        train_ours(DPOKConfig(prompts=(prompt,), seed=SEED, device="cpu"), budget, EVALUATIONS, folder)
    else:
        train_peer(directory, replace(CANDIDATES[name], prompt=prompt), budget, EVALUATIONS, folder)


def score(folder: Path, prompt: str) -> float:
    """The evaluated reward near a training's end."""
    count = len(seconds(folder))
    judge = evaluation(replace(Plan(), evaluated=48), prompt)
    return float(np.mean(judged(folder, range(max(0, count - LAST), count), judge)))


def collect(out: Path) -> dict[str, Any]:
    """Write and return what was tried so far: settings and score on each prompt, best first."""
    found: dict[str, Any] = {}
    for name in (OURS, *CANDIDATES):
        folders = {prompt: out / name / prompt for prompt in PROMPTS}
        if all(seconds(folder) for folder in folders.values()):
            scores = {prompt: round(score(folder, prompt), 4) for prompt, folder in folders.items()}
            settings = asdict(CANDIDATES[name]) if name in CANDIDATES else "defaults of DPOKConfig"
            found[name] = {"mean": float(np.mean(list(scores.values()))), "scores": scores, "settings": settings}
    found = dict(sorted(found.items(), key=lambda item: -item[1]["mean"]))
    (out / RESULT).write_text(json.dumps(found, indent=1) + "\n")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", type=Path, required=True, help=f"where TRL is: {INSTALL}")
    parser.add_argument("--out", type=Path, default=Path("runs/speed/search"))
    parser.add_argument("--budget", type=float, default=160.0, help="CPU seconds a training")
    parser.add_argument("--names", nargs="+", choices=[OURS, *CANDIDATES], default=[OURS, *CANDIDATES])
    given = parser.parse_args(arguments)
    for name in given.names:
        for prompt in PROMPTS:
            train(name, prompt, str(given.trl), given.budget, given.out / name / prompt)
    for name, result in collect(given.out).items():
        print(f"{result['mean']:+.3f}  {name}")


if __name__ == "__main__":
    main()
