"""How far the other judges fall away from the trained reward as training goes on, with little and much KL.

    python -m benchmarks.reward_hacking [--quick] [--processes 2] [--out runs/reward_hacking]

DPOK on DPOK's four prompts together, rewarded by `emoji_preference`, long enough to be overdone, with KL weights from 0
to large. The models on the way are judged at several points, so that each weight draws a path of reward against KL,
reader and quality.

Writes `reward_hacking.json` and `.png` into `benchmarks/results` (with `--quick` into `--out`).
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.config import DPOKConfig, EvaluateConfig
from agents.run_directory import SCORES
from benchmarks.command import Benchmark, write_result
from benchmarks.intervals import Floats, bootstrap, change, of_pairs
from benchmarks.jobs import Job
from benchmarks.settings import DPOK

MEASURES = ("reward", "kl", "reader", "quality", "diversity")
FRONTS = {
    "reward against kl": {"reward": 1, "kl": -1},
    "reader against reward": {"reward": 1, "reader": 1},
    "quality against reward": {"reward": 1, "quality": 1},
    "diversity against reward": {"reward": 1, "diversity": 1},
}
"""What is traded against what; 1 where more is better."""


@dataclass(frozen=True)
class Plan:
    """How much is done.

    Attributes:
        seeds: of the trainings.
        kl_weights: from none to large.
        stages: iterations after which the model is judged, rising.
        pictures: pictures an iteration.
        evaluated: pictures a model in an evaluation.
        steps: denoising steps.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    kl_weights: tuple[float, ...] = (0.0, 0.01, 0.03, 0.1, 0.3)
    stages: tuple[int, ...] = (8, 16, 32)
    pictures: int = 48
    evaluated: int = 64
    steps: int = 10


QUICK = Plan(seeds=(0,), kl_weights=(0.0, 0.05), stages=(2, 4), pictures=16, evaluated=16)


def jobs(plan: Plan, stage: int) -> list[Job]:
    """The trainings up to one stage; those of the next stage go on from them."""
    config = DPOKConfig(prompts=("emoji/probes",), iterations=stage, pictures=plan.pictures, steps=plan.steps, **DPOK)
    return [
        Job(
            f"{weight}/{seed}",
            replace(config, kl_weight=weight, seed=seed),
            {str(stage): EvaluateConfig(pictures=plan.evaluated)},
        )
        for seed in plan.seeds
        for weight in plan.kl_weights
    ]


def measured(plan: Plan, out: Path, weight: float, stage: int) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Each measure of the pretrained model and of the one at a stage, (S, B): a row a seed, a column a picture."""
    files = [out / f"{weight}/{seed}" / str(stage) / SCORES for seed in plan.seeds]
    read = [json.loads(path.read_text()) for path in files]
    before, after = (
        {m: np.array([found[when][m] for found in read]) for m in MEASURES} for when in ("before", "after")
    )
    for groups in (before, after):
        groups["diversity"] = of_pairs(groups["diversity"])
    return before, after


def paths(plan: Plan, out: Path) -> dict[str, list[dict[str, Any]]]:
    """For each KL weight, what each measure was at each stage, and its change; stage 0 is the pretrained model."""
    found: dict[str, list[dict[str, Any]]] = {}
    for weight in plan.kl_weights:
        before, _ = measured(plan, out, weight, plan.stages[0])
        path: list[dict[str, Any]] = [{"iterations": 0, "pictures": 0, **{m: bootstrap([before[m]]) for m in MEASURES}}]
        for stage in plan.stages:
            before, after = measured(plan, out, weight, stage)
            point = {measure: bootstrap([after[measure]]) for measure in MEASURES}
            changes = {
                measure: bootstrap([before[measure], after[measure]], change, paired=True) for measure in MEASURES
            }
            path.append({"iterations": stage, "pictures": stage * plan.pictures, **point, "change": changes})
        found[str(weight)] = path
    return found


def pareto_front(points: list[dict[str, Any]], signs: dict[str, int]) -> list[dict[str, Any]]:
    """The points that no other beats, by rising reward.

    Args:
        points: each with the mean of every measure.
        signs: by measure, 1 where more is better and -1 where less is.
    """
    values = np.array([[sign * p[measure]["mean"] for measure, sign in signs.items()] for p in points])
    beaten = [bool(((values >= own).all(1) & (values > own).any(1)).any()) for own in values]
    front = (p for p, out in zip(points, beaten, strict=True) if not out)
    return sorted(front, key=lambda p: float(p["reward"]["mean"]))


def plot(result: dict[str, Any], path: Path) -> None:
    """Each weight's path, and dotted the front, of reward against KL and of the other judges against reward."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.4), layout="constrained")
    axes = figure.subplots(1, 4)
    pairs = (("kl", "reward"), ("reward", "reader"), ("reward", "quality"), ("reward", "diversity"))
    for axis, (x, y) in zip(axes, pairs, strict=True):
        for weight, points in result["paths"].items():
            means = np.array([[p[x]["mean"], p[y]["mean"]] for p in points])
            axis.plot(means[:, 0], means[:, 1], marker="o", markersize=4, label=f"KL weight {weight}")
        front = result["fronts"][f"{y} against {x}"]
        axis.plot([p[x] for p in front], [p[y] for p in front], color="black", linewidth=1, linestyle=":")
        axis.set_xlabel({"kl": "KL, nats a picture"}.get(x, x))
        axis.set_ylabel(y)
        axis.grid(alpha=0.25)
    axes[0].set_xscale("symlog", linthresh=30)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def write(plan: Plan, out: Path, results: Path) -> dict[str, Any]:
    """Collect finished trainings into `results`; returns the fronts."""
    found = paths(plan, out)
    base = {"kl_weight": None, **found[str(plan.kl_weights[0])][0]}
    points = [base, *({"kl_weight": weight, **point} for weight, path in found.items() for point in path[1:])]
    fronts = {
        name: [
            {key: p[key]["mean"] if key in MEASURES else p[key] for key in ("kl_weight", "pictures", *MEASURES)}
            for p in pareto_front(points, signs)
        ]
        for name, signs in FRONTS.items()
    }
    result = {"paths": found, "fronts": fronts}
    write_result(results / "reward_hacking.json", plan, result)
    plot(result, results / "reward_hacking.png")
    return fronts


BENCHMARK = Benchmark("reward_hacking", Plan(), QUICK, lambda plan: [jobs(plan, stage) for stage in plan.stages], write)

if __name__ == "__main__":
    BENCHMARK.main(str(__doc__))
