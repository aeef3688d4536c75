"""The training loop that all parts of the world share: seeded, resumable after a kill, with a progress bar.

Every batch is made from (seed, step) alone, so a run that was killed and resumed makes the same numbers as
one that was not.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to train.

    Attributes:
        steps: optimizer steps in all.
        batch_size: pictures a step.
        learning_rate: peak of the cosine schedule of AdamW; it ends at zero.
        warmup_steps: steps over which the learning rate rises.
        weight_decay: of AdamW.
        beta2: of AdamW; lower it for short trainings of small batches.
        max_grad_norm: gradients are scaled down to this norm.
        ema_decay: decay of the averaged weights that are kept in the end; 0 keeps the last weights.
        seed: of the weights and of every batch.
        device: a torch device.
        checkpoint_every: steps between checkpoints; a kill loses at most so many.
        runs: folder that holds the checkpoints.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 100
    weight_decay: float = 0.01
    beta2: float = 0.999
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0
    seed: int = 0
    device: str = "cpu"
    checkpoint_every: int = 100
    runs: Path = Path("runs/pretrain")

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate={self.learning_rate} must be above 0")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must be at least 0 and below 1")


@dataclass
class Progress:
    """What a training has come to.

    Attributes:
        step: steps done.
        seconds: time spent, over all resumed runs.
        losses: mean loss between checkpoints, as (step, loss).
    """

    step: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class StepRandom:
    """The chance of one step: numpy for scenes and captions, torch for noise."""

    numpy: np.random.Generator
    torch: torch.Generator

    @classmethod
    def at(cls, seed: int, step: int, device: str = "cpu") -> StepRandom:
        """Makes the generators of a step from the run's seed."""
        numpy_seed, torch_seed = np.random.SeedSequence([seed, step]).spawn(2)
        generator = torch.Generator(device)
        generator.manual_seed(int(torch_seed.generate_state(1, np.uint64)[0] >> 1))
        return cls(np.random.default_rng(numpy_seed), generator)


LossFunction = Callable[[int, StepRandom], tuple[Tensor, Mapping[str, float]]]
"""(step, chance) -> scalar loss with a gradient, and figures to show."""


def learning_rate_factor(step: int, config: LoopConfig) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def train(name: str, model: nn.Module, loss_function: LossFunction, config: LoopConfig) -> Progress:
    """Trains `model` in place; goes on from the checkpoint of the same name and settings where there is one.

    Args:
        name: of the run; its checkpoint is `config.runs/name.pt`.
        model: the module whose trainable parameters are optimised; at the end it holds their averages, if any.
        loss_function: makes the loss of a step.
        config: how long and how fast.

    Returns:
        The progress at the end.

    Raises:
        ValueError: a checkpoint of the same name was made with other settings.
        FloatingPointError: the loss is not finite; the last checkpoint is kept.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=(0.9, config.beta2), weight_decay=config.weight_decay
    )
    average = [p.detach().clone() for p in parameters] if config.ema_decay else []
    progress = Progress()
    path = config.runs / f"{name}.pt"
    settings = {k: v for k, v in asdict(config).items() if k not in ("runs", "device", "checkpoint_every")}
    if path.is_file():
        saved = torch.load(path, map_location=config.device, weights_only=True)
        if saved["settings"] != settings:
            raise ValueError(f"{path} was made with {saved['settings']}, not {settings}; move it away or match it")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        progress = Progress(saved["step"], saved["seconds"], [tuple(x) for x in saved["losses"]])
        for kept, value in zip(average, saved["average"], strict=True):
            kept.copy_(value)
    path.parent.mkdir(parents=True, exist_ok=True)

    started, recent = time.perf_counter() - progress.seconds, []
    bar = tqdm(total=config.steps, initial=progress.step, desc=name, unit="step", dynamic_ncols=True, mininterval=1)
    with bar:
        while progress.step < config.steps:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * learning_rate_factor(progress.step, config)
            chance = StepRandom.at(config.seed, progress.step, config.device)
            loss, figures = loss_function(progress.step, chance)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, config.max_grad_norm, error_if_nonfinite=False)
            optimizer.step()
            progress.step += 1
            recent.append(loss.item())
            if not math.isfinite(recent[-1]):
                raise FloatingPointError(f"{name}: the loss is {recent[-1]} at step {progress.step}; {path} is intact")
            if average:
                # A short memory at first, so that the start is forgotten.
                decay = min(config.ema_decay, (1 + progress.step) / (10 + progress.step))
                torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
            bar.update()
            if progress.step % config.checkpoint_every == 0 or progress.step == config.steps:
                progress.seconds = time.perf_counter() - started
                progress.losses.append((progress.step, float(np.mean(recent))))
                bar.set_postfix({"loss": f"{np.mean(recent):.4f}", **{k: f"{v:.4g}" for k, v in figures.items()}})
                recent = []
                save_atomically(
                    path,
                    {
                        "settings": settings,
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "average": average,
                        **asdict(progress),
                    },
                )
    if average:
        with torch.no_grad():
            for parameter, kept in zip(parameters, average, strict=True):
                parameter.copy_(kept)
    return progress


def save_atomically(path: Path, content: object) -> None:
    """Writes with torch.save so that a kill leaves the old file or the new one, never half of one."""
    partial = path.with_suffix(path.suffix + ".partial")
    torch.save(content, partial)
    os.replace(partial, path)


def write_metrics(path: Path, figures: Mapping[str, Any], progress: Progress, config: LoopConfig) -> None:
    """Writes the figures of a finished training as JSON, with all that is needed to make them again."""
    import diffusers
    import transformers

    metrics = {
        "figures": dict(figures),
        "command": "python -m diffusion_gym.emoji.pretrain " + " ".join(sys.argv[1:]),
        "seed": config.seed,
        "steps": progress.step,
        "batch_size": config.batch_size,
        "seconds": round(progress.seconds, 1),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {config.device}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
        },
        "losses": thin_out(progress.losses, 50),
    }
    path.write_text(json.dumps(metrics, indent=2) + "\n")


def thin_out(losses: Iterable[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """Keeps at most about `most` points of a curve, the last one among them."""
    points = list(losses)
    stride = max(1, math.ceil(len(points) / most))
    return [(step, round(loss, 5)) for step, loss in reversed(points[::-1][::stride])]
