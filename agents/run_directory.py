"""The directory of a run: what lies in it, and the checks before anything is written there. Imports nothing heavy.

config.json                              settings
checkpoint.pt                            everything needed to go on
pytorch_lora_weights.safetensors         adapters, for pipe.load_lora_weights(DIR); or
pipeline/                                the whole model, for StableDiffusionPipeline.from_pretrained
history.jsonl, tensorboard/              curves
evaluation.json, before_after.png        from `diffusion-gym evaluate`; scores.json has every picture's scores
report.html                              from `diffusion-gym report`
trace_sample.json, trace_update.json     a few UNet calls of each, from --profile
"""

import json
from pathlib import Path
from typing import Any

from agents.config import TrainConfig, config_from_json

CONFIG, CHECKPOINT, HISTORY = "config.json", "checkpoint.pt", "history.jsonl"
EVALUATION, PICTURE, REPORT, SUMMARY = "evaluation.json", "before_after.png", "report.html", "summary.json"
SCORES, PIPELINE, TENSORBOARD = "scores.json", "pipeline", "tensorboard"
TRACES = {"sample": "trace_sample.json", "update": "trace_update.json"}


class RunError(Exception):
    """A run cannot begin or go on; the message says what to do."""


def check(config: TrainConfig) -> None:
    """Raise RunError if `config.out` holds another run, or nothing to resume; writes nothing."""
    out = config.out
    if out.exists() and not out.is_dir():
        raise RunError(f"--out {out} is a file; choose a directory")
    path = out / CONFIG
    if config.resume:
        if not path.is_file():
            raise RunError(f"--resume: {out} holds no run (no {CONFIG}); leave --resume out to begin one")
        _check_same(config, read_config(out), out)
    elif out.is_dir() and any(out.iterdir()):
        what = "a run" if path.is_file() else "other files"
        raise RunError(
            f"--out {out} already holds {what}: choose another directory"
            + (", or --resume it" if path.is_file() else "")
        )


def prepare(config: TrainConfig) -> bool:
    """Write the configuration into `config.out`, checked before by `check`; other files there stay as they are.

    Returns:
        Whether there is a checkpoint to go on from.
    """
    out = config.out
    path = out / CONFIG
    out.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(config.to_json(), indent=2) + "\n")
    partial.replace(path)
    return config.resume and (out / CHECKPOINT).is_file()


def read_config(out: Path) -> TrainConfig:
    """The configuration of the run in `out`.

    Raises:
        RunError: there is none.
    """
    try:
        return config_from_json(read_config_values(out), out=out, resume=True)
    except ValueError as error:
        raise RunError(f"{out / CONFIG}: {error}") from error


def read_config_values(out: Path) -> dict[str, Any]:
    """The contents of the run's configuration file."""
    return _read_json(out / CONFIG, "train one first: diffusion-gym train dpok --out DIR")


def read_history(out: Path) -> list[dict[str, Any]]:
    """One record an iteration."""
    path = out / HISTORY
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def read_evaluation(out: Path) -> dict[str, Any]:
    """What `diffusion-gym evaluate` measured."""
    return _read_json(out / EVALUATION, f"run first: diffusion-gym evaluate {out}")


def _read_json(path: Path, advice: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing; {advice}") from error
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); {advice}") from error


def _check_same(config: TrainConfig, begun: TrainConfig, out: Path) -> None:
    """A run may go on for longer than it was begun for; everything else must be as it was."""
    given, saved = config.to_json(), begun.to_json()
    free = {"iterations", "device", "checkpoint_every", "async_rewards", "micro_batch_size", "compile"}
    free |= {"measure_micro_batch", "gradient_checkpointing", "attention_slicing", "vae_slicing"}
    different = [name for name in sorted({*given, *saved} - free) if given.get(name) != saved.get(name)]
    if different:
        shown = ", ".join(f"{name} was {saved.get(name)!r}, now {given.get(name)!r}" for name in different)
        raise RunError(f"--resume: {out} was begun with other settings ({shown}); give the same, or another --out")
