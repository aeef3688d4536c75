"""Measures the embedded world: `python -m diffusion_gym.emoji.evaluate [PART ...]` prints JSON.

Every figure is taken on pictures that no training saw: the seeds are this file's own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import WEIGHTS
from .corruptions import CORRUPTIONS
from .grammar import PROBES, Scene, training_prompts
from .images import to_bytes, to_tensor
from .nouns import COLOR_CLASSES, NOUN_INDEX, PLACE_CLASSES, drawn_color
from .preference import Preference
from .quality import Quality
from .reader import Reader
from .scenes import sample_batch

SEED = 77_000
STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
PARTS = ("autoencoder", "reader", "preference", "quality", "generator", "labels", "cost", "size")
LABELS = Path(__file__).parent / "labels"


def evaluate_autoencoder(autoencoder: Any, count: int = 512) -> dict[str, float]:
    """Mean PSNR over unseen scenes, in dB."""
    from .pretrain.autoencoder import psnr, round_trip

    pictures, _ = sample_batch(np.random.default_rng(SEED), count)
    images = to_tensor(pictures, autoencoder.device)
    values = psnr(images, round_trip(autoencoder, images))
    return {"psnr_db": values.mean().item(), "psnr_db_lowest_tenth": values.quantile(0.1).item(), "scenes": count}


def attributes_right(reader: Reader, images: Tensor, scenes: Sequence[Scene]) -> tuple[float, float]:
    """Compares readings with settled scenes: share of pictures with all attributes right, share of attributes right.

    The attributes are, for each noun shown: that it is seen, its count, its colour; the place; nothing else seen.
    """
    counts, colors, places = reader.classes(images)
    everything, attributes = [], []
    for b, scene in enumerate(scenes):
        shown = {NOUN_INDEX[group.noun] for group in scene.groups}
        verdicts = [int(places[b]) == PLACE_CLASSES.index(str(scene.place))]
        verdicts.append(not set(counts[b].nonzero().flatten().tolist()) - shown)
        for group in scene.groups:
            i = NOUN_INDEX[group.noun]
            color = COLOR_CLASSES.index(drawn_color(group.noun, group.color))
            seen = bool(counts[b, i] > 0)
            verdicts += [seen, int(counts[b, i]) == group.count, seen and int(colors[b, i]) == color]
        everything.append(all(verdicts))
        attributes += verdicts
    return float(np.mean(everything)), float(np.mean(attributes))


def evaluate_reader(reader: Reader, autoencoder: Any, count: int = 1024) -> dict[str, float]:
    """Reads unseen scenes after a round trip, the other drawing style, and pictures of nothing."""
    from .pretrain.autoencoder import round_trip
    from .pretrain.reader import picture_of_nothing

    rng = np.random.default_rng(SEED + 1)
    pictures, scenes = sample_batch(rng, count)
    images = to_tensor(pictures, autoencoder.device)
    all_right, attributes = attributes_right(reader, round_trip(autoencoder, images), scenes)
    clean, _ = attributes_right(reader, images, scenes)
    fluent, fluent_scenes = sample_batch(rng, count, style="fluent")
    fluent_all, fluent_attributes = attributes_right(reader, to_tensor(fluent), fluent_scenes)
    noise = torch.from_numpy(rng.uniform(size=(256, 3, 64, 64))).float()
    gaussian = torch.from_numpy(rng.normal(0.5, 0.25, (256, 3, 64, 64))).float().clamp(0, 1)
    blank = torch.from_numpy(rng.uniform(size=(256, 3, 1, 1))).float().expand(-1, -1, 64, 64)
    grains = to_tensor(np.stack([picture_of_nothing(rng) for _ in range(256)]))

    def silent(images: Tensor) -> float:
        return float((reader.classes(images)[0] == 0).all(1).float().mean())

    return {
        "all_right_after_round_trip": all_right,
        "attributes_right_after_round_trip": attributes,
        "all_right_clean": clean,
        "attributes_right_other_style": fluent_attributes,
        "all_right_other_style": fluent_all,
        "no_object_on_noise": (silent(noise) + silent(gaussian)) / 2,
        "no_object_on_blank": silent(blank),
        "no_object_on_noise_of_any_grain": silent(grains),
        "scenes": count,
    }


def evaluate_preference(preference: Preference, out: Path = WEIGHTS, count: int = 512) -> dict[str, Any]:
    """Share of unseen pairs ordered right, for each kind of mistake and of corruption, after a round trip.

    A pair is one prompt with a right picture and another right one that was spoilt, or one that is wrong.
    """
    from .pretrain.autoencoder import load_autoencoder, round_trip
    from .pretrain.preference import FEW_STEPS, MISTAKES, few_step_samples, sample_quadruple, spoil

    autoencoder = load_autoencoder(out, "cpu")
    rng = np.random.default_rng(SEED + 2)
    shares: dict[str, float] = {}

    def decode(pictures: Sequence[np.ndarray]) -> np.ndarray:
        return to_bytes(round_trip(autoencoder, to_tensor(np.stack(pictures))))

    def share(prompts: list[str], better: np.ndarray, worse: np.ndarray) -> float:
        margins = preference.score(to_tensor(better), prompts) - preference.score(to_tensor(worse), prompts)
        return float((margins > 0).float().mean())

    for kind in MISTAKES:
        items = [sample_quadruple(rng, kind) for _ in range(count)]
        prompts = [item.prompt for item in items]
        shares[kind] = share(prompts, decode([i.right for i in items]), decode([i.wrong for i in items]))
    for kind in CORRUPTIONS:
        items = [sample_quadruple(rng) for _ in range(count)]
        right = decode([item.right for item in items])
        spoilt = np.stack([spoil(picture, "", {}, rng, kind) for picture in right])
        shares[kind] = share([item.prompt for item in items], right, spoilt)
    samples = few_step_samples(out, count, (2, 3, 4), SEED, "cpu")
    pairs = [(prompt, picture) for prompt, pictures in samples.items() for picture in pictures]
    right = decode([draw_answer(prompt, rng) for prompt, _ in pairs])
    shares[FEW_STEPS] = share([prompt for prompt, _ in pairs], right, np.stack([picture for _, picture in pairs]))
    return {"ordered_right": float(np.mean(list(shares.values()))), "by_kind": shares, "pairs_a_kind": count}


def draw_answer(prompt: str, rng: np.random.Generator) -> np.ndarray:
    """Draws a picture that answers a prompt; what it leaves open is natural and plain."""
    from .grammar import parse
    from .scenes import draw

    return draw(parse(prompt), rng)


def evaluate_quality(quality: Quality, count: int = 256) -> dict[str, Any]:
    """Mean quality at growing strength of each corruption, and whether it falls at every step."""
    rng = np.random.default_rng(SEED + 3)
    pictures, _ = sample_batch(rng, count)
    curves: dict[str, list[float]] = {}
    for name, corrupt in CORRUPTIONS.items():
        curves[name] = []
        for strength in STRENGTHS:
            spoilt = [corrupt(p, strength, rng) if strength > 0 else p for p in pictures]
            curves[name].append(quality.score(to_tensor(np.stack(spoilt))).mean().item())
    falls = {name: all(np.diff(curve) < 0) for name, curve in curves.items()}
    return {"falls_with": falls, "curves": curves, "strengths": list(STRENGTHS)}


def evaluate_generator(out: Path = WEIGHTS, per_probe: int = 64, prompts: int = 256) -> dict[str, Any]:
    """Reader accuracy of the generator at its own defaults: the four probes, and prompts of the training grammar."""
    from .sampling import load_pipeline, sample, sampling_defaults

    pipeline, reader = load_pipeline(out / "pipeline"), Reader.load(path=out / "reader.safetensors")
    probes = {}
    for i, probe in enumerate(PROBES):
        images = sample(pipeline, [probe] * per_probe, seed=SEED + 10 + i)
        probes[probe] = reader.accuracy(images, [probe] * per_probe).all_right.float().mean().item()
    rng = np.random.default_rng(SEED + 4)
    drawn = list(rng.choice(training_prompts(), prompts))
    accuracy = reader.accuracy(sample(pipeline, drawn, seed=SEED + 20), drawn)
    return {
        "probes_all_right": probes,
        "probes_mean": float(np.mean(list(probes.values()))),
        "grammar_attributes_right": accuracy.fraction.mean().item(),
        "grammar_all_right": accuracy.all_right.float().mean().item(),
        "sampling": sampling_defaults(out / "pipeline"),
    }


def evaluate_labels(out: Path = WEIGHTS) -> dict[str, Any]:
    """How often the reader agrees with labels given by eye to pictures of the generator.

    `labels/labels.json` says of each picture of `labels/pictures.npz` whether it shows all that its prompt asks for
    and nothing else.
    """
    reader = Reader.load(path=out / "reader.safetensors")
    with np.load(LABELS / "pictures.npz") as data:
        images = to_tensor(data["pictures"])
    entries = json.loads((LABELS / "labels.json").read_text())["labels"]
    verdicts = reader.accuracy(images, [entry["prompt"] for entry in entries]).all_right.tolist()
    agree = [verdict == entry["all_right"] for verdict, entry in zip(verdicts, entries, strict=True)]
    return {
        "agreement": float(np.mean(agree)),
        "pictures": len(agree),
        "right_by_eye": float(np.mean([entry["all_right"] for entry in entries])),
        "right_by_reader": float(np.mean(verdicts)),
    }


def evaluate_cost(out: Path = WEIGHTS) -> dict[str, float]:
    """Seconds a picture at the model's defaults in a batch of 32, best of three, and seconds to load the pipeline."""
    from .sampling import load_pipeline, sample

    started = time.perf_counter()
    pipeline = load_pipeline(out / "pipeline")
    loading = time.perf_counter() - started
    seconds = []
    for seed in range(3):
        started = time.perf_counter()
        sample(pipeline, [PROBES[0]] * 32, seed=seed)
        seconds.append((time.perf_counter() - started) / 32)
    return {"seconds_a_picture": min(seconds), "seconds_to_load": loading, "threads": torch.get_num_threads()}


def evaluate_size(out: Path = WEIGHTS) -> dict[str, float]:
    """Megabytes of all shipped weights."""
    sizes = {str(p.relative_to(out)): p.stat().st_size / 1e6 for p in sorted(out.rglob("*.safetensors"))}
    return {"megabytes": sum(sizes.values()), **sizes}


def evaluate(part: str, out: Path = WEIGHTS) -> dict[str, Any]:
    """Measures one part; see `PARTS`.

    Raises:
        FileNotFoundError: its weights are missing.
        ValueError: unknown part.
    """
    from .pretrain.autoencoder import load_autoencoder

    match part:
        case "autoencoder":
            return evaluate_autoencoder(load_autoencoder(out, "cpu"))
        case "reader":
            return evaluate_reader(Reader.load(path=out / "reader.safetensors"), load_autoencoder(out, "cpu"))
        case "preference":
            return evaluate_preference(Preference.load(path=out / "preference.safetensors"), out)
        case "quality":
            return evaluate_quality(Quality.load(path=out / "quality.safetensors"))
        case "generator":
            return evaluate_generator(out)
        case "labels":
            return evaluate_labels(out)
        case "cost":
            return evaluate_cost(out)
        case "size":
            return evaluate_size(out)
        case _:
            raise ValueError(f"part={part!r} is unknown; choose one of {', '.join(PARTS)}")


def main(argv: list[str] | None = None) -> None:
    """Parses the command line, measures, and prints JSON."""
    parser = argparse.ArgumentParser(prog="python -m diffusion_gym.emoji.evaluate", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the weights")
    args = parser.parse_args(argv)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"unknown PART {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    print(json.dumps({part: evaluate(part, args.weights) for part in args.parts or PARTS}, indent=2))


if __name__ == "__main__":
    main()
