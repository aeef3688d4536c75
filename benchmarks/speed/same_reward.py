"""CPU time to the same evaluated reward, each side with its best settings.

For each prompt and seed both sides train at the same time, a core each, under the same budget of CPU time. The level is
where the peer's curve of evaluated reward ends: the mean of its last three. Curves are smoothed, each evaluation with
its neighbours, and straight between evaluations; the time is that from which on a curve is never below the level again,
and that of the first time it gets there is reported beside it. The KL to the pretrained model is measured at the first
evaluation from there on, of either side.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.config import DPOKConfig
from benchmarks.speed.candidates import BEST_OURS, BEST_PEER, OURS, PEER
from benchmarks.speed.learning import curve, judged, ours, peer, train_pair
from benchmarks.speed.plan import Plan

FIRST_SEED = 10_000
"""Noise of the first evaluated picture; no training draws from it."""
LAST = 3
"""Evaluations at the end of the peer's training whose mean is the level."""


def neighbour_means(values: Sequence[float]) -> list[float]:
    """Each value's mean with its neighbours."""
    return [float(np.mean(values[max(0, i - 1) : i + 2])) for i in range(len(values))]


def crossing(seconds: Sequence[float], rewards: Sequence[float], level: float, at: int | None) -> float | None:
    """When a curve that is straight between evaluations rises to the level that evaluation `at` is at or above."""
    if at is None or at == 0:
        return None if at is None else seconds[0]
    below, above = rewards[at - 1], rewards[at]
    share = (level - below) / (above - below)
    return float(seconds[at - 1] + share * (seconds[at] - seconds[at - 1]))


def reached(points: list[dict[str, float]], level: float) -> dict[str, Any]:
    """The evaluation from which on a curve is never below the level, the seconds then and when it first got there.

    All None if it never stays there, or never gets there.
    """
    rewards, seconds = neighbour_means([p["reward"] for p in points]), [p["seconds"] for p in points]
    below = [i for i, reward in enumerate(rewards) if reward < level]
    stays = below[-1] + 1 if below else 0
    point = stays if stays < len(points) else None
    first = next((i for i, reward in enumerate(rewards) if reward >= level), None)
    return {
        "point": point,
        "seconds": crossing(seconds, rewards, level, point),
        "first_seconds": crossing(seconds, rewards, level, first),
    }


def compare(ours: list[dict[str, float]], peer: list[dict[str, float]]) -> dict[str, Any]:
    """Two curves of a prompt and seed: the level, the points at which either side reaches it, the ratio of their times.

    Our point, seconds and ratios are None if we do not reach it; the ratios, too, if the peer ends no higher than it
    began, and there is nothing to reach. A peer that was higher before its end is given its whole time. `share_of_run`
    is our time over that of the peer's whole run, at the end of which the level is taken.
    """
    level = float(np.mean([p["reward"] for p in peer[-LAST:]]))
    found = {"our": reached(ours, level), "peer": reached(peer, level)}
    end = {"point": len(peer) - 1, "seconds": peer[-1]["seconds"], "first_seconds": peer[-1]["seconds"]}
    found["peer"] = {key: end[key] if value is None else value for key, value in found["peer"].items()}
    learned = level > peer[0]["reward"]

    def ratio(seconds: float | None, peers: float) -> float | None:
        return seconds / peers if learned and seconds is not None else None

    sides = {f"{side}_{key}": value for side, of in found.items() for key, value in of.items()}
    return {
        "level": level,
        "peer_learned": learned,
        **sides,
        "time_ratio": ratio(found["our"]["seconds"], found["peer"]["seconds"]),
        "first_time_ratio": ratio(found["our"]["first_seconds"], found["peer"]["first_seconds"]),
        "share_of_run": ratio(found["our"]["seconds"], end["seconds"]),
    }


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
    there = [pair for pair in asked if pair["our_point"] is not None]

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    def over_pairs(key: str, statistic: Any) -> float | None:
        ratios = [math.inf if pair[key] is None else pair[key] for pair in asked]
        return finite(float(statistic(ratios))) if ratios else None

    return {
        "reached": len(there),
        "of": len(asked),
        "peer_learned_nothing": len(pairs) - len(asked),
        "median_time_ratio": over_pairs("time_ratio", np.median),
        "worst_time_ratio": over_pairs("time_ratio", max),
        "median_first_time_ratio": over_pairs("first_time_ratio", np.median),
        "median_share_of_run": over_pairs("share_of_run", np.median),
        "our_mean_kl": float(np.mean([pair["our_kl"] for pair in there])) if there else None,
        "peer_mean_kl": float(np.mean([pair["peer_kl"] for pair in there])) if there else None,
    }
