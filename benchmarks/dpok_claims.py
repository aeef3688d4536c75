"""DPOK's claims (Fan et al. 2023), at small scale.

    python -m benchmarks.dpok_claims [--quick] [--processes 2] [--out runs/dpok_claims]

On each of DPOK's four prompts: supervised fine-tuning with KL-O, reinforcement learning without the KL, and with it
(DPOK), from equal numbers of generated pictures, rewarded by `emoji_preference`; the reader, the quality judge and the
diversity of the pictures only watch. On many prompts, the whole grammar and its family of coloured things: DPOK with
and without the value function, and what carries over to combinations of words that no training picture showed.

Writes `dpok_claims.json`, `.csv` and `.png` into `benchmarks/results` (with `--quick` into `--out`).
"""

import csv
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import truediv
from pathlib import Path
from typing import Any

import numpy as np

from agents.config import DPOKConfig, EvaluateConfig, SFTConfig, TrainConfig
from agents.run_directory import SCORES, read_history
from benchmarks.command import Benchmark, write_result
from benchmarks.intervals import Floats, Interval, apart, bootstrap, change, mean_of_means, of_pairs
from benchmarks.jobs import Job
from benchmarks.settings import DPOK
from diffusion_gym.emoji.grammar import PROBES
from diffusion_gym.prompts import load_prompts

MEASURES = ("reward", "reader", "quality", "diversity", "kl")
LABELS = {"base": "pretrained", "sft": "supervised (SFT)", "rl": "RL without KL", "rl_kl": "RL with KL (DPOK)"}
VALUE = {"without_value": False, "with_value": True}
MANY = {"grammar": ("emoji/train", "emoji/held_out"), "colored": ("emoji/colored", "emoji/colored_held_out")}
"""Sets of many prompts, to train on and held out."""


@dataclass(frozen=True)
class Plan:
    """How much is done.

    Attributes:
        seeds: of the trainings.
        probes: the single prompts.
        iterations: of a single-prompt training.
        pictures: pictures an iteration.
        many_iterations: of a multi-prompt training.
        many_pictures: pictures an iteration of those.
        evaluated: pictures a model in an evaluation.
        steps: denoising steps.
        model: the model.
        reward: the reward trained on.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    probes: tuple[str, ...] = PROBES
    iterations: int = 30
    pictures: int = 48
    many_iterations: int = 40
    many_pictures: int = 64
    evaluated: int = 64
    steps: int = 10
    model: str = "emoji"
    reward: str = "emoji_preference"


QUICK = Plan(seeds=(0,), iterations=6, pictures=16, many_iterations=4, many_pictures=16, evaluated=16)


def methods(plan: Plan) -> dict[str, TrainConfig]:
    """The ways to fine-tune on one prompt; chosen on other prompts and seeds than those reported, see the page."""
    rl = DPOKConfig(iterations=plan.iterations, pictures=plan.pictures, **DPOK)
    # The first iterations gather the pictures of the pretrained model, then come eight passes over them.
    sft = SFTConfig(
        weighting="reward",
        shift=1.0,
        regulariser="kl-o",
        pool=plan.iterations * plan.pictures,
        iterations=plan.iterations + 3,
        pictures=plan.pictures,
    )
    return {"sft": sft, "rl": replace(rl, kl_weight=0.0), "rl_kl": rl}


def prompt_sample(prompts: str, count: int, seed: int) -> tuple[str, ...]:
    """Some prompts of a set, the same for all trainings."""
    return tuple(np.random.default_rng(seed).permutation(list(load_prompts(prompts).texts))[:count].tolist())


def jobs(plan: Plan) -> list[Job]:
    """All trainings."""
    found = []
    for seed in plan.seeds:
        common: dict[str, Any] = {"model": plan.model, "reward": plan.reward, "steps": plan.steps, "seed": seed}
        for name, config in methods(plan).items():
            for probe in plan.probes:
                evaluations = {"probe": EvaluateConfig(pictures=plan.evaluated)}
                found.append(Job(f"{name}/{probe}/{seed}", replace(config, prompts=(probe,), **common), evaluations))
        for prompts, (name, critic) in itertools.product(MANY, VALUE.items()):
            training, held_out = MANY[prompts]
            config = DPOKConfig(
                prompts=(training,),
                value_function=critic,
                iterations=plan.many_iterations,
                pictures=plan.many_pictures,
                **DPOK,
                **common,
            )
            count = 4 * plan.evaluated
            evaluations = {
                "train": EvaluateConfig(prompts=prompt_sample(training, count, 1), pictures=count),
                "held_out": EvaluateConfig(prompts=prompt_sample(held_out, count, 2), pictures=count),
            }
            found.append(Job(f"{prompts}/{name}/{seed}", config, evaluations))
    return found


def scores(out: Path, names: Sequence[str], evaluation: str, when: str, measure: str) -> Floats:
    """Scores of one measure, (S, B): a row a seed, a column a picture."""
    read = [json.loads((out / name / evaluation / SCORES).read_text()) for name in names]
    return np.array([found[when][measure] for found in read])


def single_prompt(plan: Plan, out: Path) -> dict[str, Any]:
    """Each method on each probe and on their mean, and what the claims come to."""

    def groups(method: str, measure: str) -> list[Floats]:
        """One of scores (S, B) a probe."""
        source, when = ("rl_kl", "before") if method == "base" else (method, "after")
        found = [
            scores(out, [f"{source}/{probe}/{seed}" for seed in plan.seeds], "probe", when, measure)
            for probe in plan.probes
        ]
        return [of_pairs(group) for group in found] if measure == "diversity" else found

    table: dict[str, Any] = {}
    for method in ("base", *methods(plan)):
        table[method] = {}
        for measure in MEASURES:
            of_probes = groups(method, measure)
            found = {probe: bootstrap([group]) for probe, group in zip(plan.probes, of_probes, strict=True)}
            table[method][measure] = {**found, "mean": bootstrap(of_probes, paired=True)}

    def better(one: str, other: str, measure: str, probe: str) -> bool:
        a, b = table[one][measure][probe], table[other][measure][probe]
        return a["mean"] > b["mean"] and apart(a, b)

    def compared(one: str, other: str, measure: str, statistic: Callable[[float, float], float]) -> Interval:
        """A statistic of two methods' means over the probes, which share seeds and noise."""
        half = len(plan.probes)
        return bootstrap(
            groups(one, measure) + groups(other, measure),
            lambda *both: statistic(mean_of_means(*both[:half]), mean_of_means(*both[half:])),
            paired=True,
        )

    claims = {
        "probes_where_rl_kl_beats_sft_on_reward": [p for p in plan.probes if better("rl_kl", "sft", "reward", p)],
        "rl_kl_beats_sft_on_mean_reader": better("rl_kl", "sft", "reader", "mean"),
        "reader_points_gained_by_rl_kl": compared("rl_kl", "base", "reader", lambda after, base: 100 * (after - base)),
        "quality_of_rl_kl_over_base": compared("rl_kl", "base", "quality", truediv),
        "quality_without_kl_over_with": compared("rl", "rl_kl", "quality", truediv),
        "diversity_without_kl_over_with": compared("rl", "rl_kl", "diversity", truediv),
        "reader_points_without_kl_over_with": compared("rl", "rl_kl", "reader", lambda rl, kl: 100 * (rl - kl)),
    }
    return {"table": table, "claims": claims}


def running_mean(values: Sequence[float], window: int = 5) -> Floats:
    """Running mean over the last `window` values."""
    return np.array([np.mean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))])


def pictures_to_level(curve: Floats, level: float, pictures: int) -> int | None:
    """Pictures after which a curve stays at or above a level; None if it does not."""
    below = np.flatnonzero(curve < level)
    first = 0 if not len(below) else int(below[-1]) + 1
    return (first + 1) * pictures if first < len(curve) else None


def share_of_pictures(curve: Floats, other: Floats) -> float:
    """Share of the pictures of `other` after which `curve` stays at or above where `other` ends; inf if it does not."""
    needed = pictures_to_level(curve, float(other[-1]), 1)
    return math.inf if needed is None else needed / len(other)


def share_over_seeds(curves_ST: Floats, others_ST: Floats) -> dict[str, float | None]:
    """`share_of_pictures` of the seeds' mean curves, and its interval over all ways to draw the seeds anew.

    None stands for a level that is not reached.
    """

    def share(rows: Sequence[int]) -> float:
        return share_of_pictures(*(running_mean(runs[list(rows)].mean(0).tolist()) for runs in (curves_ST, others_ST)))

    seeds = range(len(curves_ST))
    drawn = [share(rows) for rows in itertools.product(seeds, repeat=len(seeds))]
    low, high = np.percentile(drawn, [2.5, 97.5], method="nearest")  # nothing lies between a number and infinity
    found = {"mean": share(seeds), "low": float(low), "high": float(high)}
    return {key: value if math.isfinite(value) else None for key, value in found.items()}


def multi_prompt(plan: Plan, out: Path, prompts: str) -> dict[str, Any]:
    """Original against RL on training prompts and held-out combinations of a set, and the value function's curves."""
    table: dict[str, Any] = {}
    curves: dict[str, list[list[float]]] = {}
    carried_over: dict[str, Interval] = {}
    for name in VALUE:
        names = [f"{prompts}/{name}/{seed}" for seed in plan.seeds]
        curves[name] = [[record["reward"] for record in read_history(out / run)] for run in names]
        found = {
            split: {
                measure: [scores(out, names, split, when, measure) for when in ("before", "after")]
                for measure in ("reward", "reader", "quality")
            }
            for split in ("train", "held_out")
        }
        table[name] = {
            split: {
                measure: {
                    "before": bootstrap([before]),
                    "after": bootstrap([after]),
                    "gain": bootstrap([before, after], change, paired=True),
                }
                for measure, (before, after) in measures.items()
            }
            for split, measures in found.items()
        }
        carried_over[name] = bootstrap(
            [*found["held_out"]["reward"], *found["train"]["reward"]],
            lambda new_base, new, old_base, old: (new - new_base).mean() / (old - old_base).mean(),
            paired=True,
        )
    return {
        "table": table,
        "curves": curves,
        "claims": {
            "share_of_pictures_with_value_to_the_same_reward": share_over_seeds(
                np.array(curves["with_value"]), np.array(curves["without_value"])
            ),
            "share_of_gain_that_carries_over": carried_over,
        },
    }


def write_csv(result: dict[str, Any], path: Path) -> None:
    """One line a number of the single-prompt table."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "measure", "prompt", "mean", "low", "high"])
        for method, measures in result["single_prompt"]["table"].items():
            for measure, probes in measures.items():
                for probe, found in probes.items():
                    writer.writerow([method, measure, probe, *(f"{found[k]:.4f}" for k in ("mean", "low", "high"))])


def plot(result: dict[str, Any], path: Path, plan: Plan) -> None:
    """Bars of each measure for each probe and method; the multi-prompt curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(2, 3).flatten()
    table = result["single_prompt"]["table"]
    columns = [*plan.probes, "mean"]
    for axis, measure in zip(axes, ("reward", "reader", "quality", "diversity", "kl"), strict=False):
        for i, method in enumerate(table):
            found = [table[method][measure][column] for column in columns]
            x = np.arange(len(columns)) + (i - 1.5) * 0.2
            mean = np.array([f["mean"] for f in found])
            spread = np.abs(np.array([[f["low"] for f in found], [f["high"] for f in found]]) - mean)
            axis.bar(x, mean, 0.2, yerr=spread, label=LABELS[method], capsize=2)
        axis.set_xticks(range(len(columns)), [c.replace(" ", "\n", 2) for c in columns], fontsize=7)
        axis.set_title({"kl": "KL to the pretrained model, nats"}.get(measure, measure))
    axes[4].set_yscale("log")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(table))
    for (prompts, found), style in zip(result["multi_prompt"].items(), ("--", "-"), strict=True):
        for i, name in enumerate(VALUE):
            curve = np.mean(found["curves"][name], axis=0).tolist()
            pictures = np.arange(1, len(curve) + 1) * plan.many_pictures
            axes[5].plot(pictures, running_mean(curve), f"C{i}{style}", label=f"{prompts}, {name.replace('_', ' ')}")
    axes[5].set_title("many prompts: reward against pictures")
    axes[5].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def write(plan: Plan, out: Path, results: Path) -> dict[str, Any]:
    """Collect finished trainings into `results`; returns the claims."""
    many = {prompts: multi_prompt(plan, out, prompts) for prompts in MANY}
    found = {"single_prompt": single_prompt(plan, out), "multi_prompt": many}
    write_result(results / "dpok_claims.json", plan, found)
    write_csv(found, results / "dpok_claims.csv")
    plot(found, results / "dpok_claims.png", plan)
    return found["single_prompt"]["claims"] | {prompts: part["claims"] for prompts, part in many.items()}


BENCHMARK = Benchmark("dpok_claims", Plan(), QUICK, lambda plan: [jobs(plan)], write)

if __name__ == "__main__":
    BENCHMARK.main(str(__doc__))
