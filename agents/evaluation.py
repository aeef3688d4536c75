"""What training changed: pictures of the pretrained and the trained model from the same noise, judged."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.build import make_actor
from agents.common.actor import DenoisingActor
from agents.common.checkpoint import write_atomically
from agents.common.reference import Reference
from agents.common.sampling import sample_pictures
from agents.config import EvaluateConfig, SamplingConfig, TrainConfig, prompt_spec, source_spec
from agents.memory import advised, sampling_advice
from agents.run_directory import CHECKPOINT, EVALUATION, PICTURE, SCORES, RunError
from diffusion_gym.kernels import Kernel
from diffusion_gym.pipelines import Pipeline, load_pipeline
from diffusion_gym.prompts import load_prompts
from diffusion_gym.rewards import check_reward, make_reward

Interval = dict[str, float]
Floats = npt.NDArray[np.float64]

_RESAMPLES = 2000
_AT_ONCE = 32
"""Pictures sampled together if neither the command nor the run says fewer."""
_TILE = 256
"""Pixels a side of a picture in `before_after.png`, at most."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A run, read but for the weights of its model.

    Attributes:
        state: its checkpoint.
        pipeline: its model.
        kernel: of the steps to sample in.
    """

    state: Mapping[str, Any]
    pipeline: Pipeline
    kernel: Kernel


def open_run(
    config: TrainConfig, *, steps: int | None = None, device: str | None = None, vae_slicing: bool = False
) -> Opened:
    """What can fail of a run and is cheap to read; for arguments and errors see `load_trained`."""
    path = config.out / CHECKPOINT
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing: the run has not finished an iteration; train it with --resume") from error
    except (RuntimeError, EOFError, OSError) as error:
        raise RunError(f"{path} is damaged ({error})") from error
    pipeline = load_pipeline(config.model, device=device or config.device, dtype=config.dtype)
    if config.vae_slicing or vae_slicing:
        pipeline.decode_chunk = 1
    kernel = pipeline.kernel(config.steps if steps is None else steps, eta=config.eta)
    return Opened(state=state, pipeline=pipeline, kernel=kernel)


def load_actor(config: TrainConfig, opened: Opened) -> tuple[DenoisingActor, Reference]:
    """The actor with its trained parameters, and the pretrained reference."""
    actor = make_actor(config, opened.pipeline, opened.kernel, training=False)
    reference = Reference(actor)
    parameters = {name: p for name, p in actor.named_parameters() if p.requires_grad}
    saved = opened.state["algorithm"]["parameters"]
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[f"policy.actor.{name}"])
    return actor, reference


def load_trained(
    config: TrainConfig, *, steps: int | None = None, device: str | None = None, vae_slicing: bool = False
) -> tuple[Pipeline, DenoisingActor, Reference, int]:
    """The actor of a run with its trained parameters, and the pretrained reference.

    Args:
        config: the run's configuration; `config.out` is its directory.
        steps: denoising steps; None for those of the training.
        device: where; None for that of the training.
        vae_slicing: decode one picture at a time, as is done anyway if the training did.

    Returns:
        Pipeline, actor, reference, and the iterations the run has made.

    Raises:
        RunError: the run has no checkpoint, or a damaged one.
        ValueError: there is no such device or model, or the number of steps is out of range.
    """
    opened = open_run(config, steps=steps, device=device, vae_slicing=vae_slicing)
    actor, reference = load_actor(config, opened)
    return opened.pipeline, actor, reference, opened.state["iteration"]


def pictures_at_once(config: TrainConfig, settings: SamplingConfig) -> int:
    """How many pictures are sampled together: what fitted in training fits here."""
    return settings.batch_size or min(_AT_ONCE, config.num_slots())


def evaluate(
    config: TrainConfig,
    settings: EvaluateConfig,
    *,
    folder: Path | None = None,
    show: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Sample, judge and compare; writes `evaluation.json`, `scores.json` and `before_after.png`.

    Args:
        config: the run's configuration.
        settings: how many pictures, of which noise.
        folder: where the files go; by default the run's directory.
        show: called with what is being done.

    Raises:
        RunError: the run cannot be evaluated, or memory runs out.
        ValueError: a prompt, reward or device is not to be had; before anything is loaded.
    """
    settings.check()
    batch_size = pictures_at_once(config, settings)
    with advised(sampling_advice(batch_size, vae_slicing=config.vae_slicing or settings.vae_slicing)):
        return _evaluate(config, settings, batch_size, folder or config.out, show)


def _evaluate(
    config: TrainConfig, settings: EvaluateConfig, batch_size: int, folder: Path, show: Callable[[str], None]
) -> dict[str, Any]:
    prompt_set = load_prompts(prompt_spec(settings.prompts or config.prompts))
    for reward, sources in _rewards(config, settings).values():
        check_reward(reward, sources=sources)
    opened = open_run(config, steps=settings.steps, device=settings.device, vae_slicing=settings.vae_slicing)
    pipeline = opened.pipeline
    chosen = choose_prompts(len(prompt_set.texts), settings.pictures, settings.seed)
    prompts = [prompt_set.texts[i] for i in chosen]
    metadata = [prompt_set.metadata[i] for i in chosen]
    seeds = [settings.seed + i for i in range(settings.pictures)]
    judges = make_judges(config, settings, prompts, pipeline.device)
    actor, reference = load_actor(config, opened)
    pictures: dict[str, Tensor] = {}
    scores: dict[str, Any] = {"prompts": prompts, "seeds": seeds}
    report: dict[str, Any] = {
        "iterations": opened.state["iteration"],
        "pictures": settings.pictures,
        "seed": settings.seed,
        "steps": actor.kernel.num_steps,
        "prompts": sorted(set(prompts)),
    }
    for name, base in (("before", True), ("after", False)):
        show(f"sampling {settings.pictures} pictures {name} training")
        samples = sample_pictures(
            actor,
            pipeline,
            prompts,
            seeds,
            batch_size=batch_size,
            reference=reference,
            use_reference=base,
        )
        pictures[name] = samples.images
        assert samples.kl is not None
        judged = score(samples.images, prompts, judges, metadata, batch_size, pipeline.device)
        found = judged | {"kl": samples.kl.double().numpy()}
        kept = found | {"diversity": distance_to_others(samples.images, prompts)}
        scores[name] = {key: [round(float(value), 5) for value in values] for key, values in kept.items()}
        report[name] = {key: share_interval(v) if key == "reader" else mean_interval(v) for key, v in found.items()}
        if len(set(prompts)) < len(prompts):
            report[name]["diversity"] = diversity_interval(samples.images, prompts)
    write_atomically(folder / PICTURE, lambda path: save_before_after(path, pictures, prompts))
    write_atomically(folder / SCORES, lambda path: path.write_text(json.dumps(scores) + "\n"))
    write_atomically(folder / EVALUATION, lambda path: path.write_text(json.dumps(report, indent=2) + "\n"))
    return report


def make_judges(
    config: TrainConfig, settings: EvaluateConfig, prompts: Sequence[str], device: torch.device
) -> dict[str, Any]:
    """The rewards to report: the one trained on, those asked for, and the emoji world's judges where they apply."""
    judges: dict[str, Any] = {
        name: make_reward(reward, sources=sources, device=device, dtype=config.reward_dtype)
        for name, (reward, sources) in _rewards(config, settings).items()
    }
    if config.model == "emoji":
        from diffusion_gym.emoji.grammar import parse

        try:
            for prompt in prompts:
                parse(prompt)
            judges["reader_fraction"] = make_reward("emoji_reader", device=device)
        except ValueError:
            pass  # prompts beyond the grammar have no ground truth to read
        judges["quality"] = make_reward("emoji_quality", device=device)
    return judges


def _rewards(config: TrainConfig, settings: EvaluateConfig) -> dict[str, tuple[Any, dict[str, str]]]:
    """The reward trained on and those asked for, each with its sources."""
    sources = config.source_spec() | source_spec(settings.reward_sources)
    found: dict[str, tuple[Any, dict[str, str]]] = {"reward": (config.reward_spec(), config.source_spec())}
    for name in settings.rewards:
        own = {key: place for key, place in sources.items() if name in (key, key.rpartition(".")[0])}
        found[name] = (name, own)
    return found


def choose_prompts(count: int, pictures: int, seed: int) -> list[int]:
    """Which of `count` prompts each picture gets: all in turn, or a random choice if there are more than pictures."""
    if count <= pictures:
        return [i % count for i in range(pictures)]
    return sorted(np.random.default_rng(seed).permutation(count)[:pictures].tolist())


def score(
    images: Tensor,
    prompts: Sequence[str],
    judges: dict[str, Any],
    metadata: Sequence[Mapping[str, Any]] | None = None,
    batch_size: int = 32,
    device: torch.device | None = None,
) -> dict[str, Floats]:
    """What each judge gives each picture, (B,); the reader also says in which of them all is right (0 or 1).

    Args:
        images: (B, 3, H, W) float32 in [0, 1].
        prompts: B prompts.
        judges: rewards by name.
        metadata: of the prompts, for the rewards.
        batch_size: pictures at once.
        device: where the rewards see them; None for where they are.
    """
    metadata = [{} for _ in prompts] if metadata is None else metadata
    parts: list[dict[str, Floats]] = []
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        found: dict[str, Floats] = {}
        shown = images[part].to(device or images.device)
        for name, judge in judges.items():
            scores = judge(shown, prompts[part], metadata[part])
            found[name] = scores.total.double().numpy()
            if name == "reader_fraction":
                found["reader"] = (found[name] == 1).astype(np.float64)
            if name == "reward" and len(scores.terms) > 1:
                for term, values in scores.terms.items():
                    found[f"reward/{term}"] = values.double().numpy()
        parts.append(found)
    return {name: np.concatenate([found[name] for found in parts]) for name in parts[0]}


def mean_interval(values: Floats) -> Interval:
    """Mean and its 95% interval by the normal approximation."""
    mean = float(values.mean())
    margin = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
    return {"mean": mean, "low": mean - margin, "high": mean + margin}


def share_interval(right: Floats) -> Interval:
    """A share and its 95% Wilson interval, which has a width at 0 and 1 too."""
    n, p, z = len(right), float(right.mean()), 1.96
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    margin = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
    return {"mean": p, "low": max(0.0, centre - margin), "high": min(1.0, centre + margin)}


def diversity_interval(images: Tensor, prompts: Sequence[str]) -> Interval:
    """Root-mean-square difference of two pictures of the same prompt, averaged over pairs; 0 if all are alike.

    Pictures are compared at 16 x 16, so that layout and colour count and noise does not. The 95% interval is a
    bootstrap over pictures.
    """
    distances = [distance for _, distance in _distances(images, prompts)]
    if not distances:
        return {"mean": 0.0, "low": 0.0, "high": 0.0}
    rng = np.random.default_rng(0)
    means = [_pair_mean(d, np.arange(len(d))) for d in distances]
    draws = [np.mean([_pair_mean(d, rng.integers(len(d), size=len(d))) for d in distances]) for _ in range(_RESAMPLES)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"mean": float(np.mean(means)), "low": float(low), "high": float(high)}


def distance_to_others(images: Tensor, prompts: Sequence[str]) -> Floats:
    """Each picture's mean difference to the others of its prompt, (B,), as `diversity_interval`; 0 without others."""
    found = np.zeros(len(prompts))
    for rows, distance in _distances(images, prompts):
        found[rows] = distance.sum(1) / (len(rows) - 1)
    return found


def _distances(images: Tensor, prompts: Sequence[str]) -> list[tuple[list[int], Floats]]:
    """For each prompt with several pictures: which those are, and their differences (N, N)."""
    small_BF = torch.nn.functional.adaptive_avg_pool2d(images, 16).flatten(1).double()
    groups = [[i for i, p in enumerate(prompts) if p == prompt] for prompt in dict.fromkeys(prompts)]
    scale = small_BF.shape[1] ** 0.5
    return [(g, torch.cdist(small_BF[g], small_BF[g]).numpy() / scale) for g in groups if len(g) > 1]


def _pair_mean(distance: Floats, chosen: npt.NDArray[np.int64]) -> float:
    """Mean over pairs of different pictures among `chosen`."""
    different = chosen[:, None] != chosen[None]
    return float(distance[np.ix_(chosen, chosen)][different].mean()) if different.any() else 0.0


def save_before_after(path: Path, pictures: dict[str, Tensor], prompts: Sequence[str], columns: int = 8) -> None:
    """Two rows of pictures from the same noise: before training above, after it below; large ones scaled down."""
    from PIL import Image

    count = min(columns, len(prompts))
    tiles = [[_tile(image) for image in pictures[name][:count]] for name in ("before", "after")]
    width, height = tiles[0][0].size
    gap = max(4, 4 * height // pictures["before"].shape[-2])
    sheet = Image.new("RGB", (width * count, 2 * height + gap), "white")
    for row, images in enumerate(tiles):
        for column, tile in enumerate(images):
            sheet.paste(tile, (column * width, row * (height + gap)))
    sheet.save(path, format="PNG")


def _tile(image_3HW: Tensor) -> Any:
    """A picture of at most 256 pixels a side; small ones are enlarged by whole pixels."""
    from PIL import Image

    image = Image.fromarray(image_3HW.mul(255).round().byte().permute(1, 2, 0).numpy())
    image.thumbnail((_TILE, _TILE), Image.Resampling.LANCZOS)
    scale = max(1, 128 // image.width)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def print_table(report: dict[str, Any]) -> None:
    """Print an evaluation."""
    print(f"{'':24}{'before':>28}{'after':>28}")
    for name, after in report["after"].items():
        cells = [report["before"].get(name), after]
        shown = "".join(f"{c['mean']:>10.3f} [{c['low']:.3f}, {c['high']:.3f}]".rjust(28) for c in cells if c)
        print(f"{name:24}{shown}")


def summary(report: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The short form of an evaluation: before and after, KL, iterations, seconds."""
    short: dict[str, Any] = {}
    for name in ("reward", "reader", "quality", "diversity"):
        for when in ("before", "after"):
            if name in report[when]:
                short[f"{name}_{when}"] = report[when][name]
    return short | {"kl": report["after"]["kl"], "iterations": report["iterations"], "seconds": seconds}
