"""Prompt sets from every source, and what the samplers draw."""

import json

import numpy as np
import pytest

from diffusion_gym.emoji import grammar
from diffusion_gym.prompts import CyclicSampler, PromptSet, load_prompts, make_sampler, register_prompts

rng = np.random.default_rng


def test_named_sets_are_those_of_the_emoji_grammar():
    assert load_prompts("emoji/probes").texts == grammar.PROBES
    assert load_prompts("emoji/train").texts == tuple(grammar.training_prompts())
    assert load_prompts("emoji/held_out").texts == tuple(grammar.held_out_prompts())


def test_a_world_can_register_its_own():
    register_prompts("test/world", lambda: ["one", "two"])
    assert load_prompts("test/world").texts == ("one", "two")


def test_a_list():
    prompts = load_prompts(["a", {"prompt": "b", "weight": 3, "kind": "x"}])
    assert prompts == PromptSet(texts=("a", "b"), weights=(1.0, 3.0), metadata=({}, {"kind": "x"}))
    assert load_prompts(prompts) is prompts
    assert load_prompts(["a", "b"]).weights is None
    assert len(load_prompts(text for text in ("a", "b", "c"))) == 3


def test_a_text_file(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("a red cat\n\n  two dogs \n", encoding="utf-8")
    assert load_prompts(path).texts == load_prompts(str(path)).texts == ("a red cat", "two dogs")


def test_a_jsonl_file(tmp_path):
    path = tmp_path / "p.jsonl"
    lines = ['"plain"', json.dumps({"prompt": "größe", "weight": 0.5, "count": 2}), ""]
    path.write_text("\n".join(lines), encoding="utf-8")
    prompts = load_prompts(path)
    assert prompts.texts == ("plain", "größe")
    assert prompts.weights == (1.0, 0.5)
    assert prompts.metadata == ({}, {"count": 2})


@pytest.mark.parametrize(
    ("prompts", "error", "says"),
    [
        ([], ValueError, "at least one"),
        (["a", ""], ValueError, r"prompts\[1\]"),
        (["a", 3], TypeError, r"prompts\[1\]"),
        ([{"text": "a"}], ValueError, r"prompts\[0\] must have"),
        ([{"prompt": "a", "weight": -1}], ValueError, "weight of 'a'"),
        ([{"prompt": "a", "weight": "1"}], TypeError, "weight"),
        ([{"prompt": "a", "weight": float("inf")}], ValueError, "weight of 'a'"),
        ("a green rabbit", ValueError, "list of one"),
        ("emoji/none", ValueError, "emoji/probes"),
        ("missing.txt", ValueError, "cannot read"),
        (3, TypeError, "prompts"),
        ({"prompt": "a"}, TypeError, "prompts"),
    ],
)
def test_bad_prompts_are_named(prompts, error, says):
    with pytest.raises(error, match=says):
        load_prompts(prompts)


@pytest.mark.parametrize(
    ("text", "says"), [("", "no prompt"), ('"a"\n{oops', "line 2 .*not JSON"), ('"a"\n\n[1]', "line 3")]
)
def test_bad_lines_are_named(tmp_path, text, says):
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises((ValueError, TypeError), match=says):
        load_prompts(path)


def test_sets_are_consistent():
    with pytest.raises(ValueError, match="1 texts and 2 weights"):
        PromptSet(texts=("a",), weights=(1.0, 2.0))
    with pytest.raises(ValueError, match="1 texts and 2 metadata"):
        PromptSet(texts=("a",), metadata=({}, {}))


def draw(sampler, n, seed=0):
    stream = rng(seed)
    return [sampler.index(stream, start=0, turn=turn) for turn in range(n)]


def test_uniform_draws_each_prompt_alike():
    counts = np.bincount(draw(make_sampler("uniform", load_prompts(list("abcd"))), 20_000), minlength=4)
    assert np.abs(counts / 20_000 - 0.25).max() < 0.015


def test_weighted_draws_by_weight():
    prompts = load_prompts([{"prompt": "a", "weight": 1}, {"prompt": "b", "weight": 6}, {"prompt": "c", "weight": 3}])
    counts = np.bincount(draw(make_sampler(None, prompts), 20_000), minlength=3)
    assert np.abs(counts / 20_000 - [0.1, 0.6, 0.3]).max() < 0.015


def test_cyclic_goes_round_from_its_start():
    sampler = make_sampler("cyclic", load_prompts(list("abc")))
    assert [sampler.index(rng(0), start=4, turn=turn) for turn in range(5)] == [1, 2, 0, 1, 2]
    assert make_sampler("cyclic", load_prompts(list("abc")), num_slots=8) == CyclicSampler(3, stride=8)


def test_the_same_stream_gives_the_same_prompts():
    for name in ("uniform", "weighted"):
        sampler = make_sampler(name, load_prompts([{"prompt": c, "weight": i + 1} for i, c in enumerate("abcdef")]))
        assert draw(sampler, 50, seed=1) == draw(sampler, 50, seed=1) != draw(sampler, 50, seed=2)


def test_any_object_with_an_index_is_a_sampler():
    class Last:
        def index(self, rng, *, start, turn):
            return 2

    assert draw(make_sampler(Last(), load_prompts(list("abc"))), 3) == [2, 2, 2]


@pytest.mark.parametrize(("sampler", "error"), [("random", ValueError), ("weighted", ValueError), (3, TypeError)])
def test_bad_samplers_are_named(sampler, error):
    with pytest.raises(error, match="prompt_sampler"):
        make_sampler(sampler, load_prompts(["a"]))
