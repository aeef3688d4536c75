"""What can be said of a picture of the emoji world, and which of it is kept out of training.

A `Scene` is a picture's ground truth or a prompt's demand; `describe` writes it as a caption, `parse` reads one back.
The four capabilities are those DPOK (Fan et al. 2023) tests: colour, composition, count and location.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from .nouns import (
    COLOR_CLASSES,
    COLORS,
    COUNT_WORDS,
    MAX_COUNT,
    NATURAL,
    NOUN_NAMES,
    NOUNS,
    PLACES,
    PLAIN,
)

PROBES: tuple[str, ...] = (
    "a green rabbit",
    "a cat and a dog",
    "four wolves in the park",
    "a dog on the moon",
)
"""DPOK's four prompts: colour, composition, count, location."""


@dataclass(frozen=True)
class Group:
    """Some objects of one noun.

    Attributes:
        noun: one of `NOUN_NAMES`.
        count: 1 to 4.
        color: one of `COLOR_CLASSES`; None in a prompt that does not name a colour.
    """

    noun: str
    count: int = 1
    color: str | None = None


@dataclass(frozen=True)
class Scene:
    """One group of objects, or two single objects of different nouns, at a place.

    Attributes:
        groups: what is in the picture, left to right.
        place: one of `PLACE_CLASSES`; None in a prompt that does not name a place.
    """

    groups: tuple[Group, ...]
    place: str | None = None


def describe(scene: Scene) -> str:
    """Writes a scene as a caption, for example "four wolves in the park"."""
    text = " and ".join(_describe_group(group) for group in scene.groups)
    return f"{text} {PLACES[scene.place]}" if scene.place not in (None, PLAIN) else text


def _describe_group(group: Group) -> str:
    noun = NOUNS[NOUN_NAMES.index(group.noun)]
    words = [] if group.color in (None, NATURAL) else [str(group.color)]
    words.append(noun.name if group.count == 1 else noun.plural)
    if group.count == 1:
        return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])
    return " ".join([COUNT_WORDS[group.count], *words])


_SINGULAR = {noun.name: noun.name for noun in NOUNS} | {noun.plural: noun.name for noun in NOUNS}
_NUMBERS = {"a": 1, "an": 1} | {word: count for count, word in COUNT_WORDS.items()}
_GROUP = re.compile(
    rf"(?P<number>{'|'.join(_NUMBERS)}) (?:(?P<color>{'|'.join(COLORS)}) )?(?P<noun>{'|'.join(_SINGULAR)})"
)


@lru_cache(maxsize=65536)
def parse(prompt: str) -> Scene:
    """Reads a caption of the grammar.

    Args:
        prompt: for example "a cat and a dog on the beach"; case and a final full stop do not matter.

    Raises:
        ValueError: the prompt is not of the grammar.
    """
    text = " ".join(prompt.lower().rstrip(" .").split())
    place = next((name for name, words in PLACES.items() if text.endswith(" " + words)), None)
    body = text.removesuffix(PLACES[place]).rstrip() if place else text
    groups = []
    for part in body.split(" and "):
        match = _GROUP.fullmatch(part)
        if match is None or (match["number"] in ("a", "an")) != (match["noun"] in NOUN_NAMES):
            raise ValueError(
                f"prompt={prompt!r} is not of the emoji grammar, which knows e.g. 'a green rabbit', "
                "'a cat and a dog', 'four wolves in the park'; see diffusion_gym.emoji.grammar.all_prompts()"
            )
        groups.append(Group(_SINGULAR[match["noun"]], _NUMBERS[match["number"]], match["color"]))
    if len(groups) > 2 or len({group.noun for group in groups}) < len(groups):
        raise ValueError(f"prompt={prompt!r} names {len(groups)} things; the emoji grammar has one, or two that differ")
    return Scene(tuple(groups), place)


def combinations(scene: Scene) -> Iterator[tuple[str, ...]]:
    """Yields the pairs of attributes that a scene brings together; these are what is held out."""
    for group in scene.groups:
        if group.color not in (None, NATURAL):
            yield ("color", group.noun, str(group.color))
        if group.count > 1:
            yield ("count", group.noun, str(group.count))
        if scene.place not in (None, PLAIN):
            yield ("place", group.noun, str(scene.place))
    if len(scene.groups) == 2:
        yield ("pair", *sorted(group.noun for group in scene.groups))


@lru_cache(maxsize=65536)
def _is_held_out(combination: tuple[str, ...]) -> bool:
    return zlib.crc32(" ".join(combination).encode()) % 12 == 0 and combination not in _probe_combinations()


@lru_cache
def _probe_combinations() -> frozenset[tuple[str, ...]]:
    return frozenset(itertools.chain.from_iterable(combinations(parse(probe)) for probe in PROBES))


def is_held_out(scene: Scene) -> bool:
    """Whether the scene has a combination that no training picture shows (about one combination in twelve)."""
    return any(_is_held_out(combination) for combination in combinations(scene))


def _all_scenes() -> Iterator[Scene]:
    for place in (None, *PLACES):
        for noun, color, count in itertools.product(NOUN_NAMES, (None, *COLORS), range(1, MAX_COUNT + 1)):
            yield Scene((Group(noun, count, color),), place)
        for first, second in itertools.permutations(NOUN_NAMES, 2):
            yield Scene((Group(first), Group(second)), place)


def all_prompts() -> list[str]:
    """Returns every prompt of the grammar."""
    return [describe(scene) for scene in _all_scenes()]


def training_prompts() -> list[str]:
    """Returns the prompts whose combinations were all seen in training."""
    return [describe(scene) for scene in _all_scenes() if not is_held_out(scene)]


def held_out_prompts() -> list[str]:
    """Returns the prompts with at least one combination that no training picture shows."""
    return [describe(scene) for scene in _all_scenes() if is_held_out(scene)]


def _colored_scenes() -> Iterator[Scene]:
    for noun, color, count in itertools.product(NOUN_NAMES, COLORS, range(1, MAX_COUNT + 1)):
        yield Scene((Group(noun, count, color),))


def colored_prompts() -> list[str]:
    """Returns the training prompts of a number, a colour and a noun, such as "two red foxes"."""
    return [describe(scene) for scene in _colored_scenes() if not is_held_out(scene)]


def colored_held_out_prompts() -> list[str]:
    """Returns the held-out prompts of a number, a colour and a noun."""
    return [describe(scene) for scene in _colored_scenes() if is_held_out(scene)]


def _choice(rng: np.random.Generator, items: Sequence[str]) -> str:
    return items[int(rng.integers(len(items)))]


def sample_scene(rng: np.random.Generator, *, split: str = "all") -> Scene:
    """Draws a scene in which every attribute is settled, the colour "natural" and the place "plain" included.

    Args:
        rng: where the chance comes from.
        split: "training" (no held-out combination), "held_out" (at least one), or "all".

    Raises:
        ValueError: unknown split.
    """
    if split not in ("training", "held_out", "all"):
        raise ValueError(f"split={split!r} is unknown; choose training, held_out or all")
    while True:
        place = PLAIN if rng.random() < 0.4 else _choice(rng, list(PLACES))
        kind = rng.random()
        if kind < 0.3:
            first, second = rng.choice(len(NOUN_NAMES), 2, replace=False)
            groups: tuple[Group, ...] = tuple(Group(NOUN_NAMES[i], 1, NATURAL) for i in (first, second))
        else:
            color = NATURAL if rng.random() < 0.45 else _choice(rng, COLORS)
            count = 1 if kind < 0.62 else int(rng.integers(2, MAX_COUNT + 1))
            groups = (Group(_choice(rng, NOUN_NAMES), count, color),)
        scene = Scene(groups, place)
        if split == "all" or is_held_out(scene) == (split == "held_out"):
            return scene


@dataclass(frozen=True)
class AltTextNoise:
    """How captions found beside pictures err: each share is a probability, drawn on its own.

    Attributes:
        omit: an attribute is left out (colour, place, or one of two objects).
        wrong_color: the colour is another one.
        wrong_count: the number is another one.
        wrong_place: the place is another one.
        wrong_noun: the noun is another one.
    """

    omit: float = 0.2
    wrong_color: float = 0.2
    wrong_count: float = 0.2
    wrong_place: float = 0.2
    wrong_noun: float = 0.1


def alt_text(scene: Scene, rng: np.random.Generator, noise: AltTextNoise) -> str:
    """Writes the caption that such a picture might carry on a web page: often right, never reliable."""

    def another(items: Sequence[str], current: str | None) -> str:
        return _choice(rng, [item for item in items if item != current])

    groups = list(scene.groups)
    if len(groups) == 2 and rng.random() < noise.omit:
        del groups[int(rng.integers(2))]
    written: list[Group] = []
    for group in groups:
        if rng.random() < noise.wrong_noun:
            taken = {other.noun for other in scene.groups} | {other.noun for other in written}
            group = replace(group, noun=_choice(rng, [name for name in NOUN_NAMES if name not in taken]))
        if group.color != NATURAL:
            if rng.random() < noise.omit:
                group = replace(group, color=None)
            elif rng.random() < noise.wrong_color:
                group = replace(group, color=another(COLOR_CLASSES, group.color))
        if len(scene.groups) == 1 and rng.random() < noise.wrong_count / (3 if group.count == 1 else 1):
            others = [count for count in range(1, MAX_COUNT + 1) if count != group.count]
            group = replace(group, count=others[int(rng.integers(len(others)))])
        written.append(group)
    place = scene.place
    if place != PLAIN:
        if rng.random() < noise.omit:
            place = None
        elif rng.random() < noise.wrong_place:
            place = another(list(PLACES), place)
    return describe(Scene(tuple(written), place))
