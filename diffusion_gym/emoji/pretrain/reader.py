"""Trains the reader on scenes of known contents, clean, spoilt, decoded and redrawn, and on pictures of nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from ..corruptions import CORRUPTIONS
from ..files import save_weights
from ..grammar import Scene, describe, sample_scene
from ..images import to_tensor
from ..nouns import COLOR_CLASSES, MAX_COUNT, NATURAL, NOUN_INDEX, NOUN_NAMES, PLACE_CLASSES, drawn_color
from ..reader import ABSENT_WEIGHT, Reader, ReaderNet
from ..scenes import draw, sample_batch
from .autoencoder import load_autoencoder, noisy_round_trip
from .loop import LoopConfig, Progress, StepRandom, train, write_metrics
from .redraw import redraw_all
from .vary import vary

IGNORE = -100
"""A label that the loss leaves out."""


@dataclass(frozen=True)
class ReaderConfig:
    """Data of the reader.

    Attributes:
        nothing: share of pictures without any object: noise, one colour, bare grounds.
        spoilt: share of pictures that are blurred, noisy and so on.
        round_trip: share of pictures that go through the autoencoder.
        latent_noise: largest noise on the latents of those, in standard deviations of the latents.
        redrawn: share of pictures that the generator drew again; see `redraw`.
        redrawn_scenes: how many of those there are, made once; 0 for none.
        strengths: how far those were noised, least and most.
        varied: share of pictures that are turned, bent, lit and so on; see `vary`.
        loop: how long and how fast.
    """

    nothing: float = 0.12
    spoilt: float = 0.3
    round_trip: float = 0.15
    latent_noise: float = 0.7
    redrawn: float = 0.35
    redrawn_scenes: int = 8000
    strengths: tuple[float, float] = (0.2, 0.6)
    varied: float = 0.6
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=3500, batch_size=64, learning_rate=2e-3, ema_decay=0.995, seed=101, checkpoint_every=50
        )
    )


def labels(scene: Scene) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns the classes of a scene: counts (N,), colours (N,) with absent nouns ignored, and its place."""
    counts = np.zeros(len(NOUN_NAMES), np.int64)
    colors = np.full(len(NOUN_NAMES), IGNORE, np.int64)
    for group in scene.groups:
        counts[NOUN_INDEX[group.noun]] = group.count
        colors[NOUN_INDEX[group.noun]] = COLOR_CLASSES.index(drawn_color(group.noun, group.color or NATURAL))
    return counts, colors, PLACE_CLASSES.index(str(scene.place))


def picture_of_nothing(rng: np.random.Generator) -> np.ndarray:
    """Makes a picture that shows no object and no place: noise of some grain, or one colour."""
    kind = rng.integers(4)
    if kind == 0:
        return np.broadcast_to(rng.integers(0, 256, 3, dtype=np.uint8), (64, 64, 3)).copy()
    if kind == 1:
        return rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    if kind == 2:
        return rng.normal(rng.uniform(60, 195), rng.uniform(10, 80), (64, 64, 3)).clip(0, 255).astype(np.uint8)
    grain = int(rng.choice([2, 4, 8, 16]))
    return rng.integers(0, 256, (64 // grain, 64 // grain, 3), dtype=np.uint8).repeat(grain, 0).repeat(grain, 1)


def sample_labelled(config: ReaderConfig, rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[Tensor]]:
    """Draws pictures (B, 64, 64, 3) uint8 and their classes: counts (B, N), colours (B, N), places (B,)."""
    pictures, classes = [], []
    for _ in range(size):
        scene = sample_scene(rng)
        if rng.random() < config.nothing:
            scene = Scene((), scene.place)
        counts, colors, place = labels(scene)
        if not scene.groups and rng.random() < 0.6:
            picture, place = picture_of_nothing(rng), IGNORE
        else:
            picture = draw(scene, rng)
        if rng.random() < config.spoilt:
            spoil = list(CORRUPTIONS.values())[int(rng.integers(len(CORRUPTIONS)))]
            picture = spoil(picture, float(rng.uniform(0, 0.5)), rng)
        pictures.append(picture)
        classes.append((counts, colors, place))
    return np.stack(pictures), stack_labels(classes)


def stack_labels(classes: Sequence[tuple[np.ndarray, np.ndarray, int]]) -> list[Tensor]:
    """Puts `labels` of B pictures together: counts (B, N), colours (B, N), places (B,)."""
    return [torch.from_numpy(np.stack(kind)) for kind in zip(*classes, strict=True)]


@dataclass(frozen=True)
class Redrawn:
    """Pictures (N, 64, 64, 3) uint8 that the generator drew again, and their classes."""

    pictures: np.ndarray
    classes: list[Tensor]


def redraw_scenes(config: ReaderConfig, out: Path) -> Redrawn | None:
    """Makes, or finds, the pictures that the generator under `out` draws again."""
    from ..sampling import load_pipeline, sampling_defaults

    if not config.redrawn_scenes:
        return None
    rng = StepRandom.at(config.loop.seed, 4 * 10**9).numpy
    pictures, scenes = sample_batch(rng, config.redrawn_scenes)
    captions = [describe(scene) for scene in scenes]
    pipeline = load_pipeline(out / "pipeline", config.loop.device)
    guidance_scale = sampling_defaults(out / "pipeline")["guidance_scale"]
    cache = config.loop.runs / "reader-redrawn.pt"
    redrawn = redraw_all(pipeline, pictures, captions, config.strengths, guidance_scale, config.loop.seed, cache)
    return Redrawn(redrawn, stack_labels([labels(scene) for scene in scenes]))


def make_batch(
    config: ReaderConfig, autoencoder: AutoencoderKL, redrawn: Redrawn | None, chance: StepRandom
) -> tuple[Tensor, list[Tensor]]:
    """Makes pictures (B, 3, 64, 64) in [0, 1] and their classes: first decoded ones, redrawn ones last."""
    size, device = config.loop.batch_size, config.loop.device
    pictures, classes = sample_labelled(config, chance.numpy, size)
    if redrawn is not None and (again := int(config.redrawn * size)):
        rows = chance.numpy.integers(len(redrawn.pictures), size=again)
        pictures[-again:] = redrawn.pictures[rows]
        for kind, value in zip(classes, redrawn.classes, strict=True):
            kind[-again:] = value[torch.from_numpy(rows)]
    images = to_tensor(pictures, device)
    varied = torch.rand(size, generator=chance.torch, device=device) < config.varied
    images = torch.where(varied.view(-1, 1, 1, 1), vary(images, chance.torch), images)
    through = int(config.round_trip * size)
    images[:through], _ = noisy_round_trip(autoencoder, images[:through], config.latent_noise, chance.torch)
    return images.contiguous(memory_format=torch.channels_last), [kind.to(device) for kind in classes]


def train_reader(
    config: ReaderConfig, autoencoder: AutoencoderKL, redrawn: Redrawn | None = None
) -> tuple[ReaderNet, Progress]:
    """Trains on fresh scenes of all combinations, and on redrawn ones."""
    torch.manual_seed(config.loop.seed)
    device = config.loop.device
    net = ReaderNet().to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    # Most nouns are absent from a picture; the present ones must not drown.
    count_weight = torch.tensor([ABSENT_WEIGHT] + [1.0] * MAX_COUNT, device=device)

    def loss_function(step: int, chance: StepRandom) -> tuple[Tensor, dict[str, float]]:
        images, (count_BN, color_BN, place_B) = make_batch(config, autoencoder, redrawn, chance)
        counts, colors, places = net(images)
        count_loss = F.cross_entropy(counts.flatten(0, 1), count_BN.flatten(), weight=count_weight, reduction="sum")
        losses = [
            count_loss / len(images),
            F.cross_entropy(colors.flatten(0, 1), color_BN.flatten(), ignore_index=IGNORE),
            F.cross_entropy(places, place_B, ignore_index=IGNORE),
        ]
        right = (counts.argmax(-1) == count_BN).all(1).float().mean().item()
        return torch.stack(losses).sum(), {"counts_right": right}

    progress = train("reader", net, loss_function, config.loop)
    return net.eval(), progress


@torch.no_grad()
def calibrate_norms(
    net: ReaderNet, config: ReaderConfig, autoencoder: AutoencoderKL, redrawn: Redrawn | None, batches: int = 20
) -> None:
    """Measures the batch-norm statistics again, for the averaged weights."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # a plain mean over the batches
    net.train()
    for batch in range(batches):
        chance = StepRandom.at(config.loop.seed, 3 * 10**9 + batch, config.loop.device)
        net(make_batch(config, autoencoder, redrawn, chance)[0])
    net.eval()


def run(config: ReaderConfig, out: Path) -> None:
    """Trains, measures on unseen scenes, and writes `out/reader.safetensors` and `out/reader.json`."""
    from ..evaluate import evaluate_reader

    autoencoder = load_autoencoder(out, config.loop.device)
    redrawn = redraw_scenes(config, out)
    net, progress = train_reader(config, autoencoder, redrawn)
    calibrate_norms(net, config, autoencoder, redrawn)
    save_weights(net, out / "reader.safetensors")
    figures = evaluate_reader(Reader(net), autoencoder)
    write_metrics(out / "reader.json", figures, progress, config.loop)
    print(figures)
