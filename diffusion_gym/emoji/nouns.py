"""The nouns, colours and places of the emoji world, and how they are written."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Noun:
    """A thing that can be drawn.

    Attributes:
        name: singular, as it stands in a caption.
        plural: plural, as it stands in a caption.
        hexcode: Unicode code point of the emoji, lower-case hex.
        own_color: the colour word that the untinted sprite already deserves, if any: a green frog is drawn natural.
    """

    name: str
    plural: str
    hexcode: str
    own_color: str | None = None


def _noun(name: str, hexcode: str, plural: str | None = None, own_color: str | None = None) -> Noun:
    return Noun(name, plural or name + "s", hexcode, own_color)


NOUNS: tuple[Noun, ...] = (
    _noun("rabbit", "1f430"),
    _noun("cat", "1f431"),
    _noun("dog", "1f436"),
    _noun("wolf", "1f43a", "wolves"),
    _noun("fox", "1f98a", "foxes"),
    _noun("bear", "1f43b"),
    _noun("panda", "1f43c"),
    _noun("koala", "1f428"),
    _noun("lion", "1f981"),
    _noun("cow", "1f42e"),
    _noun("pig", "1f437", own_color="pink"),
    _noun("frog", "1f438", own_color="green"),
    _noun("monkey", "1f435"),
    _noun("mouse", "1f42d", "mice"),
    _noun("penguin", "1f427"),
    _noun("duck", "1f986"),
    _noun("owl", "1f989"),
    _noun("turtle", "1f422", own_color="green"),
    _noun("whale", "1f433"),
    _noun("octopus", "1f419", "octopuses"),
    _noun("butterfly", "1f98b", "butterflies"),
    _noun("crab", "1f980", own_color="red"),
    _noun("snail", "1f40c"),
    _noun("elephant", "1f418"),
    _noun("cactus", "1f335", "cacti", own_color="green"),
    _noun("tree", "1f332", own_color="green"),
    _noun("mushroom", "1f344"),
    _noun("apple", "1f34e", own_color="red"),
    _noun("strawberry", "1f353", "strawberries", own_color="red"),
    _noun("car", "1f697", own_color="red"),
    _noun("house", "1f3e0"),
    _noun("rocket", "1f680"),
)

NOUN_NAMES: tuple[str, ...] = tuple(noun.name for noun in NOUNS)
NOUN_INDEX: dict[str, int] = {name: i for i, name in enumerate(NOUN_NAMES)}

# A tint keeps the shading of the sprite: its grey value times this RGB colour.
TINTS: dict[str, tuple[int, int, int]] = {
    "red": (235, 40, 40),
    "green": (50, 190, 60),
    "blue": (50, 110, 245),
    "yellow": (250, 215, 30),
    "purple": (150, 60, 210),
    "pink": (255, 130, 190),
}
COLORS: tuple[str, ...] = tuple(TINTS)
NATURAL = "natural"
"""The colour of a sprite that is not tinted. It is never written in a caption."""
COLOR_CLASSES: tuple[str, ...] = (NATURAL, *COLORS)


def drawn_color(noun: str, color: str | None) -> str:
    """Returns the colour class a noun is drawn in: natural where the colour is its own, or is not named."""
    return NATURAL if color in (None, NOUNS[NOUN_INDEX[noun]].own_color) else str(color)


# Place -> how it is written after the nouns. A picture without a place has a plain ground.
PLACES: dict[str, str] = {
    "park": "in the park",
    "moon": "on the moon",
    "beach": "on the beach",
    "snow": "in the snow",
    "table": "on the table",
}
PLAIN = "plain"
"""A ground of one colour. It is never written in a caption."""
PLACE_CLASSES: tuple[str, ...] = (PLAIN, *PLACES)

COUNT_WORDS: dict[int, str] = {2: "two", 3: "three", 4: "four"}
MAX_COUNT = 4
