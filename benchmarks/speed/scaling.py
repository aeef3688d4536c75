"""How the cost of an iteration grows: with pictures, steps, the update's micro-batches, and the size of the latents."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.config import DDPOConfig
from benchmarks.speed.overhead import settings
from benchmarks.speed.parts import in_turn, ratio
from benchmarks.speed.plan import Plan


def trainer(config: DDPOConfig) -> Callable[[], object]:
    """What makes an iteration of a training."""
    from agents.training import Training

    return Training(config).iterate


def random_trainer(size: int, plan: Plan) -> Callable[[], object]:
    """The same for a model with random weights and latents of this height and width."""
    from agents.training import Training
    from benchmarks.random_model import save_random_model

    with tempfile.TemporaryDirectory() as folder:
        model = save_random_model(Path(folder) / "model", sample_size=size)
        training = Training(_size_settings(plan, model=str(model)))
        training.iterate()  # all weights are read before the directory goes
    return training.iterate


def _size_settings(plan: Plan, **changes: Any) -> DDPOConfig:
    return settings(
        plan, steps=plan.scaling_steps, pictures=plan.size_pictures, reward="jpeg_compressibility", **changes
    )


def measure(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """For each growing quantity, its values and what a picture, and one step of it, costs in CPU seconds."""
    found = {}
    for name, values in (
        ("pictures", plan.many_pictures),
        ("steps", plan.many_steps),
        ("micro_batch_size", plan.many_micro_batches),
    ):
        configs = [settings(plan, **{"steps": plan.scaling_steps, name: value}) for value in values]
        found[name] = points(values, configs, in_turn([(trainer, (config,)) for config in configs], plan.repeats))
    configs = [_size_settings(plan)] * len(plan.many_sizes)
    seconds = in_turn([(random_trainer, (size, plan)) for size in plan.many_sizes], plan.repeats)
    found["latent_size"] = points(plan.many_sizes, configs, seconds)
    return found


def points(
    values: Sequence[int], configs: Sequence[DDPOConfig], rounds: Sequence[Sequence[float]]
) -> list[dict[str, Any]]:
    """Cost at each value, and its ratio to that at the first, from the seconds of alternating iterations."""
    a_picture = [[s / config.pictures for s in seconds] for seconds, config in zip(rounds, configs, strict=True)]
    return [
        {
            "value": value,
            "seconds": list(seconds),
            "a_picture": float(np.mean(each)),
            "a_picture_and_step": float(np.mean(each)) / config.steps,
            "over_first": ratio(each, a_picture[0]),
        }
        for value, config, seconds, each in zip(values, configs, rounds, a_picture, strict=True)
    ]
