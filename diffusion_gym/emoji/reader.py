"""The reader: tells what a picture shows, so that a prompt can be verified, as GenEval does (Ghosh et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from . import WEIGHTS
from .files import load_weights
from .grammar import parse
from .images import check_images, check_prompts
from .nouns import COLOR_CLASSES, MAX_COUNT, NOUN_INDEX, NOUN_NAMES, PLACE_CLASSES, drawn_color

ABSENT_WEIGHT = 0.2
"""What an absent noun weighs in the loss beside a present one; undone where probabilities are read."""

SURE = 0.6
"""A noun is claimed only with at least this probability of its count."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return torch.relu(x + self.body(x))


class ReaderNet(nn.Module):
    """A residual convolutional network with one head a kind of attribute.

    Args:
        widths: channels at 32x32, 16x16 and 8x8.
        blocks: residual blocks at each of these sizes.
    """

    def __init__(self, widths: tuple[int, ...] = (32, 64, 144), blocks: tuple[int, ...] = (1, 2, 2)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, depth in zip(widths, blocks, strict=True):
            layers += [
                nn.Conv2d(channels, width, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            layers += [ResidualBlock(width) for _ in range(depth)]
            channels = width
        self.trunk = nn.Sequential(*layers)
        self.mix = nn.Sequential(nn.Linear(2 * channels, 384), nn.ReLU())
        self.count_head = nn.Linear(384, len(NOUN_NAMES) * (MAX_COUNT + 1))
        self.color_head = nn.Linear(384, len(NOUN_NAMES) * len(COLOR_CLASSES))
        self.place_head = nn.Linear(384, len(PLACE_CLASSES))

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures in [0, 1] -> logits of counts (B, N, 5), of colours (B, N, 7) and of places (B, 6)."""
        features = self.trunk(images_BCHW * 2 - 1)
        # The mean counts, the maximum finds.
        hidden = self.mix(torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1))
        return (
            self.count_head(hidden).unflatten(1, (len(NOUN_NAMES), -1)),
            self.color_head(hidden).unflatten(1, (len(NOUN_NAMES), -1)),
            self.place_head(hidden),
        )


@dataclass(frozen=True)
class ReadObject:
    """Objects of one noun that were seen.

    Attributes:
        noun: one of `NOUN_NAMES`.
        count: 1 to 4.
        color: one of `COLOR_CLASSES`; "natural" also where the noun's own colour is the one asked for.
        count_confidence: probability of that count.
        color_confidence: probability of that colour.
    """

    noun: str
    count: int
    color: str
    count_confidence: float
    color_confidence: float


@dataclass(frozen=True)
class Reading:
    """What the reader sees in one picture."""

    objects: tuple[ReadObject, ...]
    place: str
    place_confidence: float


@dataclass(frozen=True)
class Accuracy:
    """How much of each prompt its picture shows.

    Attributes:
        fraction: (B,) float32, share of the prompt's attributes that are right.
        all_right: (B,) bool, whether all are.
    """

    fraction: Tensor
    all_right: Tensor


class Reader:
    """The verifiable judge. Weights are the project's own; it shares none with the generator.

    Args:
        net: the network, on the device where it is to run.
    """

    def __init__(self, net: ReaderNet) -> None:
        self.net = net.eval().requires_grad_(False)

    @classmethod
    def load(cls, device: str | torch.device = "cpu", path: Path = WEIGHTS / "reader.safetensors") -> Reader:
        """Loads the shipped reader.

        Raises:
            FileNotFoundError: the weights are missing; the message says how to make them.
            ValueError: they are damaged.
        """
        net = ReaderNet()
        load_weights(net, path, "reader")
        return cls(net.to(device))

    @torch.no_grad()
    def probabilities(self, images: Tensor, chunk: int = 256) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the probabilities of counts (B, N, 5), colours (B, N, 7) and places (B, 6), on the CPU."""
        check_images(images)
        device = next(self.net.parameters()).device
        parts = [self.net(part.to(device).float()) for part in images.split(chunk)]
        counts, colors, places = (torch.cat(x).cpu() for x in zip(*parts, strict=True))
        counts[..., 0] -= math.log(ABSENT_WEIGHT)
        return counts.softmax(-1), colors.softmax(-1), places.softmax(-1)

    def classes(self, images: Tensor, chunk: int = 256) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the likeliest counts (B, N), colours (B, N) and places (B,), int64 on the CPU.

        A noun that is less than `SURE` counts as absent. No picture of this world has more than four objects: where two
        nouns are seen in the same things, in a drawing between a wolf and an elephant, say, the less certain one is
        given up.
        """
        counts_BNK, colors_BNC, places_BP = self.probabilities(images, chunk)
        confidence_BN, count_BN = counts_BNK.max(-1)
        count_BN[confidence_BN < SURE] = 0
        for confidence_N, count_N in zip(confidence_BN, count_BN, strict=True):
            seen = count_N.nonzero().flatten().tolist()
            for noun in sorted(seen, key=lambda i: float(confidence_N[i])):
                if count_N.sum() <= MAX_COUNT:
                    break
                count_N[noun] = 0
        return count_BN, colors_BNC.argmax(-1), places_BP.argmax(-1)

    def read(self, images: Tensor) -> list[Reading]:
        """Reads pictures.

        Args:
            images: (B, 3, 64, 64) float in [0, 1].

        Returns:
            What each picture shows: its nouns with counts and colours, and its place, with confidences.
        """
        counts, colors, places = self.classes(images)
        readings = []
        for b, (count_NK, color_NC, place_P) in enumerate(zip(*self.probabilities(images), strict=True)):
            objects = tuple(
                ReadObject(
                    NOUN_NAMES[i],
                    int(counts[b, i]),
                    COLOR_CLASSES[int(colors[b, i])],
                    float(count_NK[i, counts[b, i]]),
                    float(color_NC[i].max()),
                )
                for i in counts[b].nonzero().flatten().tolist()
            )
            readings.append(Reading(objects, PLACE_CLASSES[int(places[b])], float(place_P.max())))
        return readings

    def accuracy(self, images: Tensor, prompts: Sequence[str], chunk: int = 256) -> Accuracy:
        """Verifies each picture against its prompt.

        A prompt's attributes are: for each noun that it is there, its count, and its colour where one is named; the
        place where one is named; and that nothing else is there.

        Args:
            images: (B, 3, 64, 64) float in [0, 1].
            prompts: B prompts of the emoji grammar.
            chunk: pictures a forward pass.

        Raises:
            ValueError: a prompt is not of the grammar, or there are not as many prompts as pictures.
        """
        check_images(images)
        check_prompts(prompts, images)
        scenes = [parse(prompt) for prompt in prompts]
        counts, colors, places = self.classes(images, chunk)
        fractions = []
        for b, scene in enumerate(scenes):
            asked = {NOUN_INDEX[group.noun] for group in scene.groups}
            verdicts = [not set(counts[b].nonzero().flatten().tolist()) - asked]
            for group in scene.groups:
                i = NOUN_INDEX[group.noun]
                verdicts += [bool(counts[b, i] > 0), int(counts[b, i]) == group.count]
                if group.color is not None:
                    drawn = COLOR_CLASSES.index(drawn_color(group.noun, group.color))
                    verdicts.append(bool(counts[b, i] > 0) and int(colors[b, i]) == drawn)
            if scene.place is not None:
                verdicts.append(int(places[b]) == PLACE_CLASSES.index(scene.place))
            fractions.append(sum(verdicts) / len(verdicts))
        fraction = torch.tensor(fractions, dtype=torch.float32)
        return Accuracy(fraction, fraction == 1)
