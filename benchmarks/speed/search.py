"""Each side's best settings, looked for on prompts and a seed that nothing is reported on.

    python -m benchmarks.speed.search --trl DIR [--out runs/speed/search] [--budget 160] [--names first lr_3e-4]

Every candidate trains on each tuning prompt for the same CPU time. A score is the evaluated reward near the end: the
mean of the last three evaluations. What is done is not done again, so that the search can be stopped, gone on with and
made longer. `search.json` in `--out` says what was tried and found.
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
EVALUATIONS, LAST = 8, 3
FIRST = PeerSettings(seed=SEED)
FAST = replace(FIRST, learning_rate=3e-3)
PEER: dict[str, PeerSettings] = {
    "first": FIRST,
    "lr_3e-4": replace(FIRST, learning_rate=3e-4),
    "lr_3e-3": FAST,
    "lr_1e-2": replace(FIRST, learning_rate=1e-2),
    "fraction_0.5": replace(FAST, fraction=0.5),
    "unguided": replace(FAST, guided=False),
    "unguided_fraction_0.5": replace(FAST, guided=False, fraction=0.5),
    "unguided_steps_5": replace(FAST, guided=False, steps=5),
    "steps_5": replace(FAST, steps=5),
    "clip_1e-2": replace(FAST, clip_range=1e-2),
    "own_adapters": replace(FAST, adapters="attention", rank=4),
    "two_passes": replace(FAST, inner_epochs=2),
    "six_updates": replace(FAST, train_batch=8),
    "pictures_32": replace(FAST, pictures=32, sample_batch=32),
    "tracking": replace(FAST, tracking=96),
    "clip_1e-4": replace(FAST, clip_range=1e-4),
    "steps_20": replace(FAST, steps=20),
}
"""The peer's, by name. `first` is our own defaults, as far as the peer has the same settings; the rest was tried with
the learning rate that was found with them."""
OUR_FAST: dict[str, Any] = {"learning_rate": 3e-3}
OUR_UNGUIDED: dict[str, Any] = {**OUR_FAST, "guided_training": False, "kl_fraction": 0.25}
OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours_lr_3e-3": OUR_FAST,
    "ours_unguided": OUR_UNGUIDED,
    "ours_unguided_kl_fraction_1": {**OUR_UNGUIDED, "kl_fraction": 1.0},
    "ours_unguided_steps_5": {**OUR_UNGUIDED, "steps": 5},
    "ours_unguided_pictures_24": {**OUR_UNGUIDED, "pictures": 24},
    "ours_unguided_passes_2": {**OUR_UNGUIDED, "passes": 2},
    "ours_unguided_fraction_0.3": {**OUR_UNGUIDED, "timestep_fraction": 0.3},
    "ours_unguided_kl_0.005": {**OUR_UNGUIDED, "kl_weight": 0.005},
    "ours_unguided_kl_0.01": {**OUR_UNGUIDED, "kl_weight": 0.01},
    "ours_unguided_kl_0.05": {**OUR_UNGUIDED, "kl_weight": 0.05},
    "ours_unguided_lr_6e-3": {**OUR_UNGUIDED, "learning_rate": 6e-3},
    "ours_unguided_uniform": {**OUR_UNGUIDED, "step_weights": "uniform"},
    "ours_half_gradient": {**OUR_FAST, "unconditional_gradient": False, "kl_fraction": 0.25},
}
"""Our own, by name: what differs from the defaults of DPOK."""


def train(name: str, prompt: str, directory: str, budget: float, folder: Path) -> None:
    """Train a candidate, unless that is done."""
    if name in OURS:
        config = DPOKConfig(prompts=(prompt,), seed=SEED, device="cpu", **OURS[name])
        train_ours(config, budget, EVALUATIONS, folder)
    else:
        train_peer(directory, replace(PEER[name], prompt=prompt), budget, EVALUATIONS, folder)


def score(folder: Path, prompt: str) -> float:
    """The evaluated reward near a training's end."""
    count = len(seconds(folder))
    judge = evaluation(replace(Plan(), evaluated=48), prompt)
    return float(np.mean(judged(folder, range(max(0, count - LAST), count), judge)))


def collect(out: Path) -> dict[str, Any]:
    """Write and return what was tried so far: settings and score on each prompt, best first."""
    found: dict[str, Any] = {}
    for name in (*OURS, *PEER):
        folders = {prompt: out / name / prompt for prompt in PROMPTS}
        if all(seconds(folder) for folder in folders.values()):
            scores = {prompt: round(score(folder, prompt), 4) for prompt, folder in folders.items()}
            settings = asdict(PEER[name]) if name in PEER else OURS[name]
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
    parser.add_argument("--names", nargs="+", choices=[*OURS, *PEER], default=[*OURS, *PEER])
    given = parser.parse_args(arguments)
    for name in given.names:
        for prompt in PROMPTS:
            train(name, prompt, str(given.trl), given.budget, given.out / name / prompt)
    for name, result in collect(given.out).items():
        print(f"{result['mean']:+.3f}  {name}")


if __name__ == "__main__":
    main()
