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
from benchmarks.intervals import bootstrap, of_pairs
from benchmarks.jobs import Job
from benchmarks.settings import DPOK

MEASURES = ("reward", "kl", "reader", "quality", "diversity")


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
    stages: tuple[int, ...] = (8, 16, 32, 48)
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


def paths(plan: Plan, out: Path) -> dict[str, list[dict[str, Any]]]:
    """For each KL weight, what each measure was at each stage; stage 0 is the pretrained model."""
    found: dict[str, list[dict[str, Any]]] = {}
    for weight in plan.kl_weights:
        found[str(weight)] = []
        for stage, source, when in [(0, plan.stages[0], "before"), *((s, s, "after") for s in plan.stages)]:
            files = [out / f"{weight}/{seed}" / str(source) / SCORES for seed in plan.seeds]
            scores = [json.loads(path.read_text())[when] for path in files]
            groups = {measure: np.array([s[measure] for s in scores]) for measure in MEASURES}
            groups["diversity"] = of_pairs(groups["diversity"])
            point = {measure: bootstrap([group]) for measure, group in groups.items()}
            found[str(weight)].append({"iterations": stage, "pictures": stage * plan.pictures, **point})
    return found


def pareto_front(points: list[dict[str, Any]], low: str, high: str) -> list[dict[str, Any]]:
    """The points that no other beats in both: less of `low` and more of `high`."""
    values = [(p[low]["mean"], p[high]["mean"]) for p in points]
    beaten = [any(a <= x and b >= y and (a, b) != (x, y) for a, b in values) for x, y in values]
    return sorted((p for p, out in zip(points, beaten, strict=True) if not out), key=lambda p: float(p[low]["mean"]))


def plot(result: dict[str, Any], path: Path) -> None:
    """Paths of reward against KL, and of reader and quality against reward."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.4), layout="constrained")
    axes = figure.subplots(1, 4)
    pairs = (("kl", "reward"), ("reward", "reader"), ("reward", "quality"), ("reward", "diversity"))
    for axis, (x, y) in zip(axes, pairs, strict=True):
        for weight, points in result["paths"].items():
            means = np.array([[p[x]["mean"], p[y]["mean"]] for p in points])
            axis.plot(means[:, 0], means[:, 1], marker="o", markersize=4, label=f"KL weight {weight}")
        axis.set_xlabel({"kl": "KL, nats a picture"}.get(x, x))
        axis.set_ylabel(y)
        axis.grid(alpha=0.25)
    front = result["front_of_reward_against_kl"]
    axes[0].plot([p["kl"] for p in front], [p["reward"] for p in front], color="black", linewidth=1, linestyle=":")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def write(plan: Plan, out: Path, results: Path) -> list[dict[str, Any]]:
    """Collect finished trainings into `results`; returns the front of reward against KL."""
    found = paths(plan, out)
    points = [{"kl_weight": weight, **point} for weight, path in found.items() for point in path]
    front = [
        {key: p[key]["mean"] if key in MEASURES else p[key] for key in ("kl_weight", "pictures", *MEASURES)}
        for p in pareto_front(points, "kl", "reward")
    ]
    result = {"paths": found, "front_of_reward_against_kl": front}
    write_result(results / "reward_hacking.json", plan, result)
    plot(result, results / "reward_hacking.png")
    return front


BENCHMARK = Benchmark("reward_hacking", Plan(), QUICK, lambda plan: [jobs(plan, stage) for stage in plan.stages], write)

if __name__ == "__main__":
    BENCHMARK.main(str(__doc__))
