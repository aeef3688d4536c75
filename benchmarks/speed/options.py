"""What the options that make training cheaper save of an iteration of DPOK as it comes."""

from dataclasses import replace
from functools import partial
from typing import Any

from agents.config import DPOKConfig
from benchmarks.speed.overhead import kl_settings
from benchmarks.speed.parts import alone, alternate, cpu_seconds, ratio
from benchmarks.speed.plan import Plan

OPTIONS: dict[str, dict[str, Any]] = {
    "merge_adapters=False": {"merge_adapters": False},
    "timestep_fraction=1": {"timestep_fraction": 1.0},
    "kl_fraction=0.5": {"kl_fraction": 0.5},
    "kl_reference=rollout": {"kl_reference": "rollout"},
    "unconditional_gradient=False": {"unconditional_gradient": False},
    "guided_training=False": {"guided_training": False},
    "guided_training=False, kl_fraction=0.25": {"guided_training": False, "kl_fraction": 0.25},
}
"""What is changed of the defaults; the first two switch off what saves time by default."""


def settings(plan: Plan) -> dict[str, DPOKConfig]:
    """The configurations, by name; the first is the default."""
    config = replace(kl_settings(plan)["1"], steps=plan.scaling_steps)
    return {"default": config} | {name: replace(config, **changes) for name, changes in OPTIONS.items()}


def measure(plan: Plan) -> dict[str, Any]:
    """CPU seconds of alternating iterations, and their ratios to the default's."""
    return alone(_measure, plan)


def _measure(plan: Plan) -> dict[str, Any]:
    from agents.training import Training

    chosen = settings(plan)
    trainings = [Training(config) for config in chosen.values()]
    rounds = alternate([partial(cpu_seconds, training.iterate) for training in trainings], plan.repeats)
    seconds = dict(zip(chosen, rounds, strict=True))
    default = seconds["default"]
    return {name: {"seconds": found, "over_default": ratio(found, default)} for name, found in seconds.items()}
