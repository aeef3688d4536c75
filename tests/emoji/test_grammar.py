import itertools

import numpy as np
import pytest

from diffusion_gym.emoji.grammar import (
    PROBES,
    AltTextNoise,
    Group,
    Scene,
    all_prompts,
    alt_text,
    colored_held_out_prompts,
    colored_prompts,
    combinations,
    describe,
    held_out_prompts,
    is_held_out,
    parse,
    sample_scene,
    training_prompts,
)
from diffusion_gym.emoji.nouns import COLORS, MAX_COUNT, NATURAL, NOUN_NAMES, PLACES, PLAIN


def test_probes_are_dpoks_four_and_are_trained_on():
    assert PROBES == ("a green rabbit", "a cat and a dog", "four wolves in the park", "a dog on the moon")
    assert set(PROBES) <= set(training_prompts())


def test_every_prompt_is_read_back_as_it_was_written():
    prompts = all_prompts()
    assert len(set(prompts)) == len(prompts)
    assert [describe(parse(prompt)) for prompt in prompts] == prompts


def test_grammar_is_complete():
    singles = len(NOUN_NAMES) * (1 + len(COLORS)) * 4
    pairs = len(NOUN_NAMES) * (len(NOUN_NAMES) - 1)
    assert len(all_prompts()) == (singles + pairs) * (1 + len(PLACES))


def test_splits_are_disjoint_and_cover_the_grammar():
    training, held_out = set(training_prompts()), set(held_out_prompts())
    assert not training & held_out
    assert training | held_out == set(all_prompts())
    assert 0.1 < len(held_out) / len(all_prompts()) < 0.3


def test_coloured_prompts_are_those_of_the_grammar_with_a_colour_and_nothing_else():
    prompts, held_out = colored_prompts(), colored_held_out_prompts()
    assert "two red foxes" in prompts + held_out
    assert set(prompts) < set(training_prompts())
    assert set(held_out) < set(held_out_prompts())
    assert len(prompts) + len(held_out) == len(NOUN_NAMES) * len(COLORS) * MAX_COUNT
    assert all(len(prompt.split()) >= 3 and parse(prompt).place is None for prompt in prompts + held_out)


def test_every_word_of_a_held_out_prompt_was_seen_in_training():
    def words(prompts: list[str]) -> set[str]:
        return set(itertools.chain.from_iterable(prompt.split() for prompt in prompts))

    assert words(held_out_prompts()) <= words(training_prompts())


@pytest.mark.parametrize("split", ["training", "held_out"])
def test_sampled_scenes_keep_to_their_split(split):
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, split=split) for _ in range(500)]
    assert {is_held_out(scene) for scene in scenes} == {split == "held_out"}


def test_combinations_name_each_pair_of_attributes():
    scene = Scene((Group("wolf", 4, "blue"),), "park")
    assert set(combinations(scene)) == {("color", "wolf", "blue"), ("count", "wolf", "4"), ("place", "wolf", "park")}
    assert set(combinations(parse("a dog and a cat"))) == set(combinations(parse("a cat and a dog")))


def test_alt_text_without_noise_is_the_description():
    rng = np.random.default_rng(0)
    silent = AltTextNoise(omit=0, wrong_color=0, wrong_count=0, wrong_place=0, wrong_noun=0)
    for _ in range(200):
        scene = sample_scene(rng)
        assert alt_text(scene, rng, silent) == describe(scene)


def test_alt_text_errs_at_the_rates_asked_for():
    rng = np.random.default_rng(0)
    noise = AltTextNoise(omit=0.3, wrong_color=0.4, wrong_count=0, wrong_place=0, wrong_noun=0)
    scene = Scene((Group("wolf", 1, "blue"),), "park")
    texts = [alt_text(scene, rng, noise) for _ in range(4000)]
    named = [text for text in texts if "blue" in text]
    assert np.mean(["park" in text for text in texts]) == pytest.approx(0.7, abs=0.03)
    assert len(named) / len(texts) == pytest.approx(0.7 * 0.6, abs=0.03)


def test_alt_texts_are_of_the_grammar():
    rng = np.random.default_rng(1)
    for _ in range(500):
        parse(alt_text(sample_scene(rng), rng, AltTextNoise()))


@pytest.mark.parametrize(
    "prompt",
    ["", "a zebra", "a wolves", "two wolf", "a cat and a cat", "a cat and a dog and a pig", "on the moon", "a"],
)
def test_what_is_not_of_the_grammar_is_refused_by_name(prompt):
    with pytest.raises(ValueError, match="prompt="):
        parse(prompt)


def test_case_and_full_stop_do_not_matter():
    assert parse("A Dog on the moon.") == parse("a dog on the moon")


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split='test'"):
        sample_scene(np.random.default_rng(0), split="test")


def test_sampled_scenes_are_settled():
    rng = np.random.default_rng(2)
    for _ in range(300):
        scene = sample_scene(rng)
        assert scene.place in (PLAIN, *PLACES)
        assert all(group.color in (NATURAL, *COLORS) for group in scene.groups)
