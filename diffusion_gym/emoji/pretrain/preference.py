"""Trains the preference model on pictures ordered by ground truth, with a Bradley-Terry loss (Xu et al. 2023, eq. 1).

For each prompt there are four pictures: right; right but spoilt; wrong in one attribute; wrong and spoilt. So that the
picture tokens soon carry meaning, while training they also name the nouns, colours and place, through heads that are
then dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ..corruptions import CORRUPTIONS
from ..files import require, save_weights
from ..grammar import Group, Scene, describe, parse, sample_scene
from ..images import to_bytes, to_tensor
from ..nouns import COLOR_CLASSES, NATURAL, NOUN_INDEX, NOUN_NAMES, PLACE_CLASSES, PLAIN, drawn_color
from ..preference import Preference, PreferenceNet, tokenize
from ..scenes import draw
from .autoencoder import load_autoencoder, noisy_round_trip
from .loop import LoopConfig, Progress, StepRandom, save_atomically, train, write_metrics
from .redraw import redraw_all

MISTAKES = ("color", "missing", "extra", "noun", "place")
FEW_STEPS = "few_steps"


@dataclass(frozen=True)
class PreferenceConfig:
    """Data of the preference model.

    Attributes:
        redrawn: share of prompts whose pictures the generator drew again; see `redraw`.
        redrawn_prompts: how many of those there are, made once; 0 for none.
        strengths: how far their right and wrong pictures were noised, least and most; both alike.
        rough_strengths: the same for what stands for a right picture in a poor drawing.
        round_trip: share of prompts whose pictures go through the autoencoder before they are spoilt.
        latent_noise: largest noise on the latents of those, in standard deviations.
        few_step_samples: pictures that the generator makes in too few steps, drawn once.
        few_steps: how many steps those have.
        auxiliary_weight: weight of naming what the picture shows.
        loop: how long and how fast; a batch is that many prompts, with four pictures each.
    """

    redrawn: float = 0.5
    redrawn_prompts: int = 4000
    strengths: tuple[float, float] = (0.1, 0.5)
    rough_strengths: tuple[float, float] = (0.6, 1.0)
    round_trip: float = 0.125
    latent_noise: float = 0.5
    few_step_samples: int = 2000
    few_steps: tuple[int, ...] = (2, 3, 4)
    auxiliary_weight: float = 0.5
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=3000, batch_size=24, learning_rate=1e-3, ema_decay=0.995, seed=303, checkpoint_every=50
        )
    )


def make_mistake(prompt: Scene, shown: Scene, kind: str, rng: np.random.Generator) -> Scene | None:
    """Changes one thing in what is shown, so that it is wrong for the prompt.

    Args:
        prompt: what is asked for.
        shown: a settled scene that answers it.
        kind: one of `MISTAKES`.
        rng: which thing is changed, and into what.

    Returns:
        The wrong scene, or None where such a mistake is not possible.
    """
    groups = list(shown.groups)
    i = int(rng.integers(len(groups)))
    objects = sum(group.count for group in groups)
    others = [name for name in NOUN_NAMES if name not in {group.noun for group in groups}]
    if kind == "color":
        if prompt.groups[i].color is None:
            return None
        drawn = drawn_color(groups[i].noun, groups[i].color)
        choices = [c for c in COLOR_CLASSES if drawn_color(groups[i].noun, c) != drawn]
        groups[i] = replace(groups[i], color=choices[int(rng.integers(len(choices)))])
    elif kind == "missing":
        if groups[i].count > 1:
            groups[i] = replace(groups[i], count=int(rng.integers(1, groups[i].count)))
        else:
            del groups[i]
    elif kind == "extra":
        if objects == 4:
            return None
        if rng.random() < 0.5:
            groups[i] = replace(groups[i], count=groups[i].count + 1)
        else:
            groups.append(Group(others[int(rng.integers(len(others)))], 1, NATURAL))
    elif kind == "noun":
        groups[i] = replace(groups[i], noun=others[int(rng.integers(len(others)))])
    elif kind == "place":
        if prompt.place is None:
            return None
        places = [place for place in PLACE_CLASSES if place != shown.place]
        return replace(shown, place=places[int(rng.integers(len(places)))])
    else:
        raise ValueError(f"kind={kind!r} is unknown; choose one of {', '.join(MISTAKES)}")
    return replace(shown, groups=tuple(groups))


def sample_prompt(rng: np.random.Generator) -> tuple[Scene, Scene]:
    """Draws a prompt and a settled scene that answers it; what the prompt leaves open may be anything."""
    shown = sample_scene(rng)
    groups = tuple(
        replace(group, color=None if group.color == NATURAL or rng.random() < 0.1 else group.color)
        for group in shown.groups
    )
    place = None if shown.place == PLAIN or rng.random() < 0.1 else shown.place
    return Scene(groups, place), shown


@dataclass(frozen=True)
class Quadruple:
    """A prompt with a right and a wrong picture, (64, 64, 3) uint8, what they show, and the mistake.

    `rough` is the right picture in a poor drawing, where there is one.
    """

    prompt: str
    right: np.ndarray
    wrong: np.ndarray
    shown: Scene
    shown_wrong: Scene
    mistake: str
    rough: np.ndarray | None = None


def sample_quadruple(rng: np.random.Generator, mistake: str | None = None) -> Quadruple:
    """Draws a prompt with a right and a wrong picture."""
    while True:
        prompt, shown = sample_prompt(rng)
        kind = mistake or MISTAKES[int(rng.integers(len(MISTAKES)))]
        wrong = make_mistake(prompt, shown, kind, rng)
        if wrong is not None:
            return Quadruple(describe(prompt), draw(shown, rng), draw(wrong, rng), shown, wrong, kind)


def spoil(
    picture: np.ndarray, prompt: str, few_steps: FewSteps, rng: np.random.Generator, kind: str | None = None
) -> np.ndarray:
    """Spoils a picture: a corruption, or what the generator makes of its prompt in too few steps."""
    kinds = [*CORRUPTIONS, *([FEW_STEPS] if prompt in few_steps else [])]
    kind = kind or kinds[int(rng.integers(len(kinds)))]
    if kind == FEW_STEPS:
        choices = few_steps[prompt]
        return choices[int(rng.integers(len(choices)))]
    return CORRUPTIONS[kind](picture, float(rng.uniform(0.15, 1)), rng)


FewSteps = dict[str, list[np.ndarray]]
"""Prompt -> pictures made in too few steps."""


def redraw_quadruples(config: PreferenceConfig, out: Path) -> list[Quadruple]:
    """Makes, or finds, right, wrong and rough pictures that the generator under `out` drew again."""
    from ..sampling import load_pipeline, sampling_defaults

    if not config.redrawn_prompts:
        return []
    loop = config.loop
    rng = StepRandom.at(loop.seed, 6 * 10**9).numpy
    items = [sample_quadruple(rng) for _ in range(config.redrawn_prompts)]
    pipeline = load_pipeline(out / "pipeline", loop.device)
    guidance_scale = sampling_defaults(out / "pipeline")["guidance_scale"]

    def again(
        name: str, pictures: list[np.ndarray], captions: list[str], strengths: tuple[float, float], seed: int
    ) -> np.ndarray:
        cache = loop.runs / f"preference-{name}.pt"
        return redraw_all(pipeline, np.stack(pictures), captions, strengths, guidance_scale, seed, cache)

    # Right and wrong next to each other, so that both are noised alike.
    pairs = [picture for item in items for picture in (item.right, item.wrong)]
    captions = [describe_shown(scene) for item in items for scene in (item.shown, item.shown_wrong)]
    redrawn = again("redrawn", pairs, captions, config.strengths, loop.seed)
    rough = again("rough", pairs[::2], captions[::2], config.rough_strengths, loop.seed + 1)
    return [
        replace(item, right=right, wrong=wrong, rough=poor)
        for item, right, wrong, poor in zip(items, redrawn[::2], redrawn[1::2], rough, strict=True)
    ]


def few_step_samples(out: Path, count: int, steps: Sequence[int], seed: int, device: str) -> FewSteps:
    """Samples the generator in too few steps, for prompts drawn at random.

    Returns:
        Prompt -> its pictures, (64, 64, 3) uint8 each.
    """
    from ..sampling import load_pipeline, sample

    rng = np.random.default_rng([seed, 7])
    pipeline = load_pipeline(out / "pipeline", device)
    samples: FewSteps = {}
    for n, num_inference_steps in enumerate(steps):
        prompts = [describe(sample_prompt(rng)[0]) for _ in range(count // len(steps))]
        images = sample(pipeline, prompts, seed=seed + n, num_inference_steps=num_inference_steps)
        for prompt, picture in zip(prompts, to_bytes(images), strict=True):
            samples.setdefault(prompt, []).append(picture)
    return samples


class Namer(nn.Module):
    """Names what picture tokens show: which nouns, in which colours, where. Only for training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.counts = nn.Linear(2 * width, len(NOUN_NAMES) * 5)
        self.colors = nn.Linear(2 * width, len(COLOR_CLASSES))
        self.place = nn.Linear(2 * width, len(PLACE_CLASSES))

    def loss(self, pictures_BND: Tensor, scenes: Sequence[Scene]) -> Tensor:
        """Cross-entropy of counts, of the colours present, and of the place."""
        pooled = torch.cat([pictures_BND.mean(1), pictures_BND.amax(1)], dim=-1)
        counts = torch.zeros(len(scenes), len(NOUN_NAMES), dtype=torch.long)
        colors = torch.zeros(len(scenes), len(COLOR_CLASSES))
        for b, scene in enumerate(scenes):
            for group in scene.groups:
                counts[b, NOUN_INDEX[group.noun]] = group.count
                colors[b, COLOR_CLASSES.index(drawn_color(group.noun, group.color))] = 1
        places = torch.tensor([PLACE_CLASSES.index(str(scene.place)) for scene in scenes])
        device = pooled.device
        weight = torch.tensor([0.2, 1, 1, 1, 1], device=device)
        count_logits = self.counts(pooled).unflatten(1, (len(NOUN_NAMES), 5)).flatten(0, 1)
        counted = F.cross_entropy(count_logits, counts.flatten().to(device), weight=weight, reduction="sum")
        return (
            counted / len(scenes)
            + F.binary_cross_entropy_with_logits(self.colors(pooled), colors.to(device))
            + F.cross_entropy(self.place(pooled), places.to(device))
        )


def train_preference(
    config: PreferenceConfig, autoencoder: AutoencoderKL, few_steps: FewSteps, redrawn: Sequence[Quadruple] = ()
) -> tuple[PreferenceNet, Progress]:
    """Trains on fresh prompts; the scores are standardised at the end."""
    torch.manual_seed(config.loop.seed)
    device = config.loop.device
    net = PreferenceNet().to(device)
    namer = Namer(net.where.shape[1]).to(device)
    model = nn.ModuleDict({"net": net, "namer": namer})
    known = sorted(few_steps)

    def batch(chance: StepRandom) -> tuple[list[Quadruple], Tensor]:
        """Returns prompts and pictures (4, B, 3, 64, 64): right, spoilt, wrong, wrong and spoilt."""
        rng = chance.numpy
        items = [sample_quadruple(rng) for _ in range(config.loop.batch_size)]
        for i in range(len(items) // 8 if known else 0):  # prompts for which there are few-step samples
            prompt = parse(known[int(rng.integers(len(known)))])
            shown = Scene(tuple(replace(g, color=g.color or NATURAL) for g in prompt.groups), prompt.place or PLAIN)
            other = make_mistake(prompt, shown, "noun", rng)
            assert other is not None
            items[i] = Quadruple(describe(prompt), draw(shown, rng), draw(other, rng), shown, other, "noun")
        if redrawn:
            again = int(config.redrawn * len(items))
            middle = len(items) // 8  # after those, before what goes through the autoencoder
            items[middle : middle + again] = [redrawn[i] for i in rng.integers(len(redrawn), size=again)]
        through = int(config.round_trip * len(items))
        clean = np.stack([item.right for item in items] + [item.wrong for item in items])
        rows = np.r_[len(items) - through : len(items), 2 * len(items) - through : 2 * len(items)]
        decoded, _ = noisy_round_trip(autoencoder, to_tensor(clean[rows], device), config.latent_noise, chance.torch)
        clean[rows] = to_bytes(decoded)
        right, wrong = clean[: len(items)], clean[len(items) :]
        spoilt = np.stack(
            [
                spoil(picture, item.prompt, few_steps, rng) if item.rough is None or rng.random() < 0.5 else item.rough
                for picture, item in zip(right, items, strict=True)
            ]
        )
        both = np.stack([spoil(picture, "", few_steps, rng) for picture in wrong])
        return items, torch.stack([to_tensor(x, device) for x in (right, spoilt, wrong, both)])

    def loss_function(step: int, chance: StepRandom) -> tuple[Tensor, dict[str, float]]:
        items, images = batch(chance)
        tokens = tokenize([item.prompt for item in items]).to(device)
        others = [describe_shown(item.shown_wrong) or item.prompt for item in items]
        other_tokens = tokenize(others).to(device)
        differs = torch.tensor([other != item.prompt for other, item in zip(others, items, strict=True)])
        pictures = net.encode_images(images.flatten(0, 1)).unflatten(0, (4, len(items)))
        asked = torch.cat([tokens.repeat(4, 1), other_tokens.repeat(2, 1)])
        looked_at = torch.cat([pictures.flatten(0, 1), pictures[0], pictures[2]])
        right, spoilt, wrong, both, right_other, wrong_other = net.compare_with(asked, looked_at).chunk(6)
        margins = [right - spoilt, right - wrong, spoilt - both, wrong - both]
        # The same picture answers its own description better than the other one's.
        margins += [(right - right_other)[differs], (wrong_other - wrong)[differs]]
        preference = torch.cat([F.softplus(-margin) for margin in margins]).mean()
        scenes = [item.shown for item in items] + [item.shown_wrong for item in items]
        named = namer.loss(torch.cat([pictures[0], pictures[2]]), scenes)
        ordered = torch.cat(margins[:4]).gt(0).float().mean().item()
        return preference + config.auxiliary_weight * named, {"preference": preference.item(), "ordered": ordered}

    progress = train("preference", model, loss_function, config.loop)
    net.eval()
    with torch.no_grad():
        scores = []
        for i in range(max(1, 1000 // (4 * config.loop.batch_size))):
            items, images = batch(StepRandom.at(config.loop.seed, 4 * 10**9 + i, device))
            tokens = tokenize([item.prompt for item in items]).to(device)
            scores.append(net.compare_with(tokens.repeat(4, 1), net.encode_images(images.flatten(0, 1))))
        net.mean.copy_(torch.cat(scores).mean())
        net.std.copy_(torch.cat(scores).std())
    return net, progress


def describe_shown(scene: Scene) -> str:
    """Describes what a picture shows where the grammar can say it, else returns an empty text."""
    sayable = len(scene.groups) == 1 or (len(scene.groups) == 2 and all(group.count == 1 for group in scene.groups))
    return describe(scene) if sayable else ""


def run(config: PreferenceConfig, out: Path) -> None:
    """Trains, measures on unseen pairs, and writes `out/preference.safetensors` and `out/preference.json`."""
    from ..evaluate import evaluate_preference

    autoencoder = load_autoencoder(out, config.loop.device)
    cache = config.loop.runs / "preference-few-steps.pt"
    unet = out / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    made_from = repr((config.few_step_samples, config.few_steps, config.loop.seed))
    digest = hashlib.sha256(made_from.encode() + require(unet, "generator").read_bytes()).hexdigest()
    kept = torch.load(cache, weights_only=True) if cache.is_file() else {}
    if kept.get("digest") != digest:
        samples = few_step_samples(out, config.few_step_samples, config.few_steps, config.loop.seed, config.loop.device)
        kept = {"digest": digest, "samples": {k: [torch.from_numpy(x) for x in v] for k, v in samples.items()}}
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_atomically(cache, kept)
    few_steps = {k: [x.numpy() for x in v] for k, v in kept["samples"].items()}
    net, progress = train_preference(config, autoencoder, few_steps, redraw_quadruples(config, out))
    save_weights(net, out / "preference.safetensors")
    figures = evaluate_preference(Preference(net), out)
    write_metrics(out / "preference.json", figures, progress, config.loop)
    print(figures)
