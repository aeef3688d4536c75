import numpy as np
import pytest

from diffusion_gym.emoji.grammar import Group, Scene, parse
from diffusion_gym.emoji.nouns import NOUN_NAMES, NOUNS, TINTS, drawn_color
from diffusion_gym.emoji.scenes import draw, sample_batch
from diffusion_gym.emoji.sprites import STYLES, load_sprites, sprite


@pytest.mark.parametrize("style", STYLES)
def test_every_noun_has_a_sprite_of_its_own(style):
    sprites = load_sprites(style)
    assert sprites.shape == (len(NOUNS), 64, 64, 4)
    assert len({picture.tobytes() for picture in sprites}) == len(NOUNS) >= 32
    assert ((sprites[..., 3] > 0).mean((1, 2)) > 0.2).all()


def test_the_two_styles_differ():
    assert not np.array_equal(load_sprites("noto"), load_sprites("fluent"))


def test_the_same_seed_draws_the_same_batch():
    first, scenes = sample_batch(np.random.default_rng(3), 20)
    again, scenes_again = sample_batch(np.random.default_rng(3), 20)
    other, _ = sample_batch(np.random.default_rng(4), 20)
    assert np.array_equal(first, again)
    assert scenes == scenes_again
    assert not np.array_equal(first, other)
    assert first.shape == (20, 64, 64, 3)
    assert first.dtype == np.uint8


@pytest.mark.parametrize("color", TINTS)
def test_a_tint_gives_its_hue(color):
    premultiplied, through = sprite("koala", color, 46)
    mean = premultiplied[through[..., 0] < 0.5].mean(0)
    tint = np.array(TINTS[color], np.float32)
    assert np.corrcoef(mean, tint)[0, 1] > 0.99


def test_a_green_frog_is_drawn_natural_and_a_blue_one_is_not():
    assert drawn_color("frog", "green") == "natural"
    assert drawn_color("frog", "blue") == "blue"
    pictures = [draw(parse(prompt), np.random.default_rng(0)) for prompt in ("a frog", "a green frog", "a blue frog")]
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_as_many_objects_are_drawn_as_the_scene_has(count):
    # On a plain ground, what differs from the ground falls into as many pieces of the same size.
    from scipy import ndimage

    picture = draw(Scene((Group("pig", count, "blue"),), "plain"), np.random.default_rng(5)).astype(int)
    differs = np.abs(picture - picture[0, 0]).sum(-1) > 60
    labels, found = ndimage.label(ndimage.binary_closing(np.pad(differs, 3)))
    sizes = ndimage.sum_labels(np.ones_like(labels), labels, range(1, found + 1))
    assert (sizes > 150).sum() == count


def test_no_groups_leave_the_ground_bare():
    picture = draw(Scene((), "plain"), np.random.default_rng(0))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 1


def test_every_place_has_a_look_of_its_own():
    places = ("plain", "park", "moon", "beach", "snow", "table")
    pictures = np.stack([draw(Scene((), place), np.random.default_rng(0)) for place in places]).astype(float)
    distances = np.abs(pictures[:, None] - pictures[None]).mean((2, 3, 4))
    assert (distances[~np.eye(len(places), dtype=bool)] > 10).all()


def test_unknown_style_is_refused():
    with pytest.raises(ValueError, match="style='crayon'"):
        load_sprites("crayon")


def test_every_noun_can_be_drawn_in_both_styles():
    for style in STYLES:
        pictures = [draw(Scene((Group(name),)), np.random.default_rng(0), style=style) for name in NOUN_NAMES]
        assert len({picture.tobytes() for picture in pictures}) == len(NOUN_NAMES)
