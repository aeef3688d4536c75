"""How fast is training, against the bare UNet calls and against TRL's DDPOTrainer?

    python -m benchmarks.speed [--quick] [--trl DIR] [--only overhead,options,trl,scaling,memory]

overhead: an iteration (sampling, decoding, reward, update) over its UNet calls alone; DPOK's KL term.
options: what the options that make training cheaper save of an iteration.
trl: an iteration over one of TRL's that does the same; CPU time to the reward that TRL ends at, each side with its best
    settings (from `python -m benchmarks.speed.search`). Needs TRL in a directory of its own, see --trl.
scaling: cost a picture by pictures, steps, micro-batch and size of the latents.
memory: growth of the peak with pictures.

All of it is CPU time of one thread. What is compared runs in turn, and the two sides' trainings at the same time; use a
machine that does nothing else. Parts that are done are not done again unless their settings have changed; when the code
has, delete `--out`. Writes `speed.json`, `.csv` and `.png` into `benchmarks/results`
(with `--quick` into `--out`).
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.command import RESULTS, write_result
from benchmarks.speed import candidates, memory, options, overhead, report, same_reward, same_work, scaling, search
from benchmarks.speed.parts import kept, known_of
from benchmarks.speed.peer import INSTALL, is_installed
from benchmarks.speed.plan import QUICK, Plan

PARTS = ("overhead", "options", "trl", "scaling", "memory")


def settings(plan: Plan) -> dict[str, dict[str, Any]]:
    """What each part's result depends on, beside the code."""
    whole = asdict(plan)
    cases = {"cases": {name: asdict(case) for name, case in same_work.CASES.items()}}
    best = {"ours": candidates.OURS[candidates.BEST_OURS], "peer": asdict(candidates.PEER[candidates.BEST_PEER])}
    return {
        **dict.fromkeys(PARTS, whole),
        "options": {**whole, "options": options.OPTIONS},
        "same_work": whole | cases,
        "trl": whole | cases | best,
    }


def measure(plan: Plan, out: Path, parts: Sequence[str], trl: Path | None) -> dict[str, Any]:
    """What the parts found; one that is not asked for is there if it was done before."""
    keys = settings(plan)
    runs: dict[str, Callable[[], Any]] = {
        "overhead": lambda: overhead.measure(plan),
        "options": lambda: options.measure(plan),
        "scaling": lambda: scaling.measure(plan),
        "memory": lambda: memory.measure(plan),
    }
    if trl is not None:
        runs["trl"] = lambda: {
            "same_work": kept(out / "same_work.json", keys["same_work"], lambda: same_work.measure(plan, str(trl))),
            "same_reward": same_reward.measure(plan, str(trl), out / "trainings"),
        }
    found: dict[str, Any] = {}
    for name in PARTS:
        path = out / f"{name}.json"
        if name in parts and name in runs:
            print(f"--- {name}", file=sys.stderr, flush=True)
            found[name] = kept(path, keys[name], runs[name])
        elif (known := known_of(path, keys[name])) is not None:
            found[name] = known
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="everything in miniature, to see that it runs")
    parser.add_argument("--trl", type=Path, default=None, help=f"where TRL is: {INSTALL}")
    parser.add_argument("--only", default=",".join(PARTS), help="some of the parts, separated by commas")
    parser.add_argument("--out", type=Path, default=None, help="directory of the parts that are done")
    given = parser.parse_args(arguments)
    parts = given.only.split(",")
    if not set(parts) <= set(PARTS):
        parser.error(f"--only takes some of {','.join(PARTS)}, got {given.only!r}")
    if given.trl is not None and not is_installed(given.trl):
        parser.error(f"--trl: {given.trl} has no TRL of this version; install it: {INSTALL}")
    if "trl" in parts and given.trl is None:
        print("part trl is left out: it needs --trl DIR", file=sys.stderr)
    plan = QUICK if given.quick else Plan()
    out = given.out or Path("runs") / ("speed-quick" if given.quick else "speed")
    found = measure(plan, out, parts, given.trl)
    tried = out / "search" / search.RESULT
    if tried.is_file():
        found["search"] = json.loads(tried.read_text())
    results = out if given.quick else RESULTS
    results.mkdir(parents=True, exist_ok=True)
    write_result(results / "speed.json", plan, found)
    report.write_csv(found, results / "speed.csv")
    report.plot(found, results / "speed.png")
    print((results / "speed.csv").read_text(), end="")


if __name__ == "__main__":
    main()
