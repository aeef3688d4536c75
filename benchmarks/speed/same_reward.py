"""CPU time to the same evaluated reward, each side with its best settings.

For each prompt and seed both sides train at the same time, a core each, under the same budget of CPU time. Curves of
evaluated reward are smoothed, and the level is where the peer's ends. The time to it is that from which on a smoothed
curve never falls below it again; that of the first time it gets there is reported beside it. The KL to the pretrained
model is measured at that point of either side.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.config import DPOKConfig
from benchmarks.dpok_claims import pictures_to_level, smoothed
from benchmarks.speed.candidates import BEST_OURS, BEST_PEER, OURS, PEER
from benchmarks.speed.learning import curve, judged, ours, peer, train_pair
from benchmarks.speed.plan import Plan

FIRST_SEED = 10_000
"""Noise of the first evaluated picture; no training draws from it."""
WINDOW = 3
"""Evaluations that a curve is smoothed over: each with those before it."""


def point_of_level(rewards: Sequence[float], level: float) -> int | None:
    """The first of the evaluations from which on the reward is at the level or above; None if there is none."""
    count = pictures_to_level(np.array(rewards), level, 1)
    return None if count is None else count - 1


def first_at_level(rewards: Sequence[float], level: float) -> int | None:
    """The first of the evaluations whose reward is at the level or above; None if there is none."""
    return next((i for i, reward in enumerate(rewards) if reward >= level), None)


def compare(ours: list[dict[str, float]], peer: list[dict[str, float]]) -> dict[str, Any]:
    """Two curves of a prompt and seed: the level, the points at which either side reaches it, the ratio of their times.

    Our points, seconds and ratios are None if we do not reach it; the ratios, too, if the peer ends no higher than it
    began, and there is nothing to reach.
    """
    curves = {"our": ours, "peer": peer}
    rewards = {side: smoothed([p["reward"] for p in points], WINDOW).tolist() for side, points in curves.items()}
    level = rewards["peer"][-1]
    learned = level > rewards["peer"][0]
    found: dict[str, Any] = {"level": level, "peer_learned": learned}
    for key, when in (("", point_of_level), ("first_", first_at_level)):
        times: list[float] = []
        for side, points in curves.items():
            at = when(rewards[side], level)
            found[f"{side}_{key}point"] = at
            found[f"{side}_{key}seconds"] = None if at is None else points[at]["seconds"]
            times += [] if at is None else [points[at]["seconds"]]
        found[f"{key}time_ratio"] = times[0] / times[1] if learned and len(times) == 2 else None
    return found


def evaluation(plan: Plan, prompt: str) -> dict[str, Any]:
    """How saved adapters are judged."""
    return {
        "model": plan.model,
        "reward": plan.second_reward or plan.reward,
        "prompt": prompt,
        "pictures": plan.evaluated,
        "first_seed": FIRST_SEED,
        "steps": plan.evaluation_steps,
    }


def train(plan: Plan, prompt: str, seed: int, directory: str, out: Path) -> dict[str, Path]:
    """The directories of both sides' trainings, made if they are not there yet."""
    folders = {side: out / prompt / str(seed) / side for side in ("ours", "peer")}
    common: dict[str, Any] = {"model": plan.model, "reward": plan.second_reward or plan.reward, "seed": seed}
    sides = [
        ours(DPOKConfig(**common, prompts=(prompt,), device="cpu", **OURS[BEST_OURS])),
        peer(directory, replace(PEER[BEST_PEER], **common, prompt=prompt)),
    ]
    train_pair(sides, plan.budget, plan.points, list(folders.values()))
    return folders


def measure(plan: Plan, directory: str, out: Path) -> dict[str, Any]:
    """Train, evaluate and compare for each prompt and seed."""
    pairs = []
    for prompt in plan.prompts:
        judge = evaluation(plan, prompt)
        for seed in plan.seeds:
            folders = train(plan, prompt, seed, directory, out)
            curves = {side: curve(folder, judge) for side, folder in folders.items()}
            found = compare(curves["ours"], curves["peer"])
            for name, folder in (("our", folders["ours"]), ("peer", folders["peer"])):
                point = found[f"{name}_point"]
                found[f"{name}_kl"] = None if point is None else judged(folder, [point], judge, kl=True)[0]
            pairs.append({"prompt": prompt, "seed": seed, **found, "curves": curves})
    return {
        "budget": plan.budget,
        "ours": OURS[BEST_OURS],
        "peer": asdict(PEER[BEST_PEER]),
        "summary": summary(pairs),
        "pairs": pairs,
    }


def summary(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Over all prompts and seeds: how many reach the level, median and worst ratio of times, and both sides' KL there.

    A pair in which we never reach it counts as an infinite ratio, which is written as None. One in which the peer
    learned nothing is left out.
    """
    asked = [pair for pair in pairs if pair["peer_learned"]]
    reached = [pair for pair in asked if pair["our_point"] is not None]

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    def over_pairs(key: str, statistic: Any) -> float | None:
        ratios = [math.inf if pair[key] is None else pair[key] for pair in asked]
        return finite(float(statistic(ratios))) if ratios else None

    return {
        "reached": len(reached),
        "of": len(asked),
        "peer_learned_nothing": len(pairs) - len(asked),
        "median_time_ratio": over_pairs("time_ratio", np.median),
        "worst_time_ratio": over_pairs("time_ratio", max),
        "median_first_time_ratio": over_pairs("first_time_ratio", np.median),
        "our_mean_kl": float(np.mean([pair["our_kl"] for pair in reached])) if reached else None,
        "peer_mean_kl": float(np.mean([pair["peer_kl"] for pair in reached])) if reached else None,
    }
