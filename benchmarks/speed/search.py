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
from benchmarks.speed.candidates import OURS, PEER, SEED
from benchmarks.speed.learning import Side, judged, ours, peer, seconds, train
from benchmarks.speed.peer import INSTALL
from benchmarks.speed.plan import Plan
from benchmarks.speed.same_reward import evaluation

RESULT = "search.json"
PROMPTS = ("a cow on the moon", "a purple bear")
EVALUATIONS, LAST = 8, 3


def candidate(name: str, prompt: str, directory: str) -> Side:
    """What trains a candidate on a prompt."""
    if name in OURS:
        return ours(DPOKConfig(prompts=(prompt,), seed=SEED, device="cpu", **OURS[name]))
    return peer(directory, replace(PEER[name], prompt=prompt))


def score(folder: Path, prompt: str) -> float:
    """The evaluated reward near a training's end."""
    count = len(seconds(folder))
    judge = evaluation(Plan(), prompt)
    return float(np.mean(judged(folder, range(max(0, count - LAST), count), judge)))


def collect(out: Path, budget: float) -> dict[str, Any]:
    """Write and return what was tried so far with this budget: settings and score on each prompt, best first."""
    found: dict[str, Any] = {}
    for name in (*OURS, *PEER):
        folders = {prompt: out / name / prompt for prompt in PROMPTS}
        sides = [candidate(name, prompt, "") for prompt in PROMPTS]
        if all(s.is_done(budget, EVALUATIONS, f) for s, f in zip(sides, folders.values(), strict=True)):
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
            side = candidate(name, prompt, str(given.trl))
            if not side.is_done(given.budget, EVALUATIONS, given.out / name / prompt):
                train(side, given.budget, EVALUATIONS, given.out / name / prompt)
    for name, result in collect(given.out, given.budget).items():
        print(f"{result['mean']:+.3f}  {name}")


if __name__ == "__main__":
    main()
