"""CPU time to the same evaluated reward, each side with its best settings.

For each prompt and seed both sides train under the same budget of CPU time. The level is what the peer reaches at the
end of its run; the time to it is that from which on the evaluated reward never falls below it again. The KL to the
pretrained model is measured at that point of either side.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.config import DPOKConfig
from benchmarks.dpok_claims import pictures_to_level
from benchmarks.speed.learning import curve, judged, train_ours, train_peer
from benchmarks.speed.peer import PeerSettings
from benchmarks.speed.plan import Plan

FIRST_SEED = 10_000
"""Noise of the first evaluated picture; no training draws from it."""

BEST_PEER = PeerSettings(learning_rate=3e-3, guided=False, fraction=0.5)
BEST_OURS: dict[str, Any] = {
    "learning_rate": 3e-3,
    "guided_training": False,
    "kl_weight": 0.01,
    "kl_fraction": 0.25,
}
"""The best that `benchmarks.speed.search` found for either side; ours are what differs from the defaults of DPOK."""


def point_of_level(rewards: Sequence[float], level: float) -> int | None:
    """The first of the evaluations from which on the reward is at the level or above; None if there is none."""
    count = pictures_to_level(np.array(rewards), level, 1)
    return None if count is None else count - 1


def compare(ours: list[dict[str, float]], peer: list[dict[str, float]]) -> dict[str, Any]:
    """Two curves of a prompt and seed: the level, the points at which either side reaches it, the ratio of their times.

    Our point, seconds and the ratio are None if we do not reach it; the ratio, too, if the peer ends no higher than it
    began, and there is nothing to reach.
    """
    level = peer[-1]["reward"]
    our_point, peer_point = (point_of_level([p["reward"] for p in points], level) for points in (ours, peer))
    assert peer_point is not None  # the peer's last point is at the level
    seconds, peer_seconds = None if our_point is None else ours[our_point]["seconds"], peer[peer_point]["seconds"]
    learned = level > peer[0]["reward"]
    return {
        "level": level,
        "peer_learned": learned,
        "our_point": our_point,
        "peer_point": peer_point,
        "our_seconds": seconds,
        "peer_seconds": peer_seconds,
        "time_ratio": seconds / peer_seconds if learned and seconds is not None else None,
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
    ours = DPOKConfig(**common, prompts=(prompt,), device="cpu", **BEST_OURS)
    train_ours(ours, plan.budget, plan.points, folders["ours"])
    train_peer(directory, replace(BEST_PEER, **common, prompt=prompt), plan.budget, plan.points, folders["peer"])
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
        "ours": BEST_OURS,
        "peer": asdict(BEST_PEER),
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
    ratios = [math.inf if pair["time_ratio"] is None else pair["time_ratio"] for pair in asked]

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "reached": len(reached),
        "of": len(asked),
        "peer_learned_nothing": len(pairs) - len(asked),
        "median_time_ratio": finite(float(np.median(ratios))) if ratios else None,
        "worst_time_ratio": finite(max(ratios)) if ratios else None,
        "our_mean_kl": float(np.mean([pair["our_kl"] for pair in reached])) if reached else None,
        "peer_mean_kl": float(np.mean([pair["peer_kl"] for pair in reached])) if reached else None,
    }
