"""Does the quickstart keep its word, on every seed?

    python -m benchmarks.quickstart [--seeds 0 1 2] [--out runs/quickstart-seeds]

Runs `diffusion-gym quickstart` for each seed, one after the other, and checks each summary: reward up with 95%
intervals that do not overlap, the reader (not trained on) at least 15 points more pictures all right, quality not below
0.95 of the pretrained model's, at most six minutes. Prints JSON; exit code 1 if a seed fails. Seeds that are done are
not run again.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from agents.run_directory import SUMMARY

MINUTES, POINTS, QUALITY = 6.0, 0.15, 0.95


def verdicts(summary: dict[str, Any]) -> dict[str, bool]:
    """What is promised, and whether a summary shows it."""
    gain = summary["reader_after"]["mean"] - summary["reader_before"]["mean"]
    return {
        "reward_up": summary["reward_after"]["low"] > summary["reward_before"]["high"],
        "reader_up": gain >= POINTS,
        "quality_kept": summary["quality_after"]["mean"] >= QUALITY * summary["quality_before"]["mean"],
        "in_time": summary["seconds"] <= 60 * MINUTES,
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart-seeds"))
    given = parser.parse_args()
    results: dict[str, Any] = {}
    for seed in given.seeds:
        out = given.out / str(seed)
        if not (out / SUMMARY).is_file():
            command = [sys.executable, "-m", "agents.cli", "quickstart", "--out", str(out), "--seed", str(seed)]
            subprocess.run(command, check=True, stdout=sys.stderr)
        summary = json.loads((out / SUMMARY).read_text())
        results[str(seed)] = {**summary, "kept": verdicts(summary)}
    result = {
        "command": "python -m benchmarks.quickstart --seeds " + " ".join(map(str, given.seeds)),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU in use",
        "seeds": results,
    }
    print(json.dumps(result, indent=2))
    raise SystemExit(0 if all(all(r["kept"].values()) for r in results.values()) else 1)


if __name__ == "__main__":
    main()
