"""Every agent on every reward, from the same number of pictures.

    python -m benchmarks.agents_by_rewards [--quick] [--processes 2] [--out runs/agents_by_rewards]

Trains on DPOK's four prompts together. A cell is the gain over the pretrained model, in its standard deviations, from
the same noise. Each agent's interquartile mean over rewards and seeds comes from rliable (Agarwal et al. 2021), with
its stratified bootstrap.

Writes `agents_by_rewards.json`, `.png` (heat map) and `-pictures.png` into `benchmarks/results` (with `--quick` into
`--out`). Needs `pip install diffusion-gym[bench]`.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.config import (
    A2CConfig,
    DDPOConfig,
    DPOKConfig,
    EvaluateConfig,
    PPOConfig,
    ReinforceConfig,
    SFTConfig,
    TrainConfig,
)
from agents.run_directory import PICTURE, SCORES
from benchmarks.command import Benchmark, write_result
from benchmarks.intervals import Floats, bootstrap
from benchmarks.jobs import Job
from benchmarks.settings import DPOK, POLICY_GRADIENT

REWARDS = {
    "compressibility": "jpeg_compressibility",
    "incompressibility": "jpeg_incompressibility",
    "preference": "emoji_preference",
    "reader": "emoji_reader",
    "quality": "emoji_quality",
    "preference+quality": "emoji_preference=1,emoji_quality=2",
}


@dataclass(frozen=True)
class Plan:
    """How much is done.

    Attributes:
        seeds: of the trainings.
        rewards: by their names in the table.
        iterations: rollouts and updates.
        pictures: pictures an iteration.
        evaluated: pictures a model in an evaluation.
        steps: denoising steps.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    rewards: tuple[str, ...] = tuple(REWARDS)
    iterations: int = 12
    pictures: int = 48
    evaluated: int = 64
    steps: int = 10


QUICK = Plan(seeds=(0,), rewards=("compressibility", "preference"), iterations=4, pictures=16, evaluated=16)


def agents(plan: Plan) -> dict[str, TrainConfig]:
    """The agents at their defaults, but for what `benchmarks.settings` says."""
    common: dict[str, Any] = {
        "prompts": ("emoji/probes",),
        "iterations": plan.iterations,
        "pictures": plan.pictures,
        "steps": plan.steps,
    }
    return {
        "reinforce": ReinforceConfig(**common, **POLICY_GRADIENT),
        "a2c": A2CConfig(**common, **POLICY_GRADIENT),
        "ppo": PPOConfig(**common, **POLICY_GRADIENT),
        "ddpo": DDPOConfig(**common, **POLICY_GRADIENT),
        "dpok": DPOKConfig(**common, **DPOK),
        # Without the regulariser, learning from one's own pictures lowers rewards by itself (see the README).
        "rwr": SFTConfig(**common, passes=4, regulariser="kl-o"),
        # All pictures are drawn from the pretrained model; then come eight passes over the best tenth.
        "sft": SFTConfig(
            **(common | {"iterations": plan.iterations + 3}),
            weighting="top",
            regulariser="kl-o",
            pool=plan.iterations * plan.pictures,
        ),
    }


def jobs(plan: Plan) -> list[Job]:
    """All trainings."""
    return [
        Job(
            f"{agent}/{reward}/{seed}",
            replace(config, reward=REWARDS[reward], seed=seed),
            {"probes": EvaluateConfig(pictures=plan.evaluated)},
        )
        for seed in plan.seeds
        for reward in plan.rewards
        for agent, config in agents(plan).items()
    ]


def scores(plan: Plan, out: Path, agent: str, reward: str) -> tuple[Floats, Floats]:
    """The trained reward before and after, (S, B) each: a row a seed, a column a picture."""
    files = [out / agent / reward / str(seed) / "probes" / SCORES for seed in plan.seeds]
    read = [json.loads(path.read_text()) for path in files]
    before, after = (np.array([found[when]["reward"] for found in read]) for when in ("before", "after"))
    return before, after


def gain(before: Floats, after: Floats) -> float:
    """What training brought, in standard deviations of the pretrained model's rewards."""
    return float((after.mean() - before.mean()) / (before.std() + 1e-9))


def collect(plan: Plan, out: Path) -> dict[str, Any]:
    """The matrix of gains and each agent's interquartile mean."""
    from rliable import library, metrics

    cells: dict[str, Any] = {}
    runs: dict[str, Any] = {}
    for agent in agents(plan):
        found = {reward: scores(plan, out, agent, reward) for reward in plan.rewards}
        cells[agent] = {reward: bootstrap(pair, gain, paired=True) for reward, pair in found.items()}
        runs[agent] = np.array(
            [[gain(before[i], after[i]) for before, after in found.values()] for i in range(len(plan.seeds))]
        )
    np.random.seed(0)  # rliable draws from the global stream  # noqa: NPY002
    points, intervals = library.get_interval_estimates(
        runs, lambda scores: np.array([metrics.aggregate_iqm(scores)]), reps=2000
    )
    iqm = {
        agent: {"mean": float(points[agent][0]), "low": float(low[0]), "high": float(high[0])}
        for agent, (low, high) in intervals.items()
    }
    up = {agent: [reward for reward, cell in row.items() if cell["low"] > 0] for agent, row in cells.items()}
    return {"gain_in_deviations": cells, "interquartile_mean": iqm, "significantly_up": up}


def plot(result: dict[str, Any], path: Path) -> None:
    """The heat map; a cell whose interval holds 0 is in brackets."""
    from matplotlib.figure import Figure

    cells = result["gain_in_deviations"]
    rows, columns = list(cells), list(next(iter(cells.values())))
    values = np.array([[cells[row][column]["mean"] for column in columns] for row in rows])
    figure = Figure(figsize=(2.2 + 1.5 * len(columns), 1.5 + 0.6 * len(rows)), layout="constrained")
    axes = figure.subplots()
    limit = max(1.0, float(np.abs(values).max()))
    image = axes.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            cell = cells[row][column]
            text = f"{cell['mean']:+.2f}"
            sure = cell["low"] > 0 or cell["high"] < 0
            color = "white" if abs(cell["mean"]) > 0.6 * limit else "black"
            axes.text(j, i, text if sure else f"({text})", ha="center", va="center", color=color)
    axes.set_xticks(range(len(columns)), columns, rotation=15)
    iqm = result["interquartile_mean"]
    axes.set_yticks(range(len(rows)), [f"{row}   IQM {iqm[row]['mean']:+.2f}" for row in rows])
    axes.set_title("gain over the pretrained model, in its standard deviations")
    figure.colorbar(image, ax=axes, shrink=0.8)
    figure.savefig(path, dpi=110)


def picture_page(plan: Plan, out: Path, path: Path) -> None:
    """The first seed's pictures: the pretrained model's, and from the same noise each agent's after each reward."""
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    names = list(agents(plan))
    figure = Figure(figsize=(4 * len(plan.rewards), 0.7 * (len(names) + 1)), layout="constrained")
    axes = figure.subplots(len(names) + 1, len(plan.rewards), squeeze=False)
    for j, reward in enumerate(plan.rewards):
        axes[0][j].set_title(reward)
        for i, agent in enumerate(names):
            pictures = imread(out / agent / reward / str(plan.seeds[0]) / "probes" / PICTURE)
            before, after = pictures[: len(pictures) // 2], pictures[-(len(pictures) // 2) :]  # one above the other
            if i == 0:
                axes[0][j].imshow(before)
            axes[i + 1][j].imshow(after)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for i, name in enumerate(["pretrained", *names]):
        axes[i][0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=90)


def write(plan: Plan, out: Path, results: Path) -> dict[str, Any]:
    """Collect finished trainings into `results`; returns the summary."""
    found = collect(plan, out)
    pictures = {"pictures_a_training": plan.iterations * plan.pictures}
    write_result(results / "agents_by_rewards.json", plan, pictures | found)
    plot(found, results / "agents_by_rewards.png")
    picture_page(plan, out, results / "agents_by_rewards-pictures.png")
    return {key: found[key] for key in ("interquartile_mean", "significantly_up")}


BENCHMARK = Benchmark("agents_by_rewards", Plan(), QUICK, lambda plan: [jobs(plan)], write)

if __name__ == "__main__":
    BENCHMARK.main(str(__doc__))
