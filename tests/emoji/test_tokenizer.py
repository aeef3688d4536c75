import pytest
from transformers import CLIPTokenizer

from diffusion_gym.emoji import pipeline_path
from diffusion_gym.emoji.grammar import all_prompts
from diffusion_gym.emoji.tokenizer import MAX_LENGTH, build_tokenizer, learn_merges


def test_each_word_of_the_grammar_is_one_token():
    tokenizer = build_tokenizer()
    words = sorted({word for prompt in all_prompts() for word in prompt.split()})
    ids = [tokenizer(word).input_ids for word in words]
    assert {len(x) for x in ids} == {3}  # begin, word, end
    assert len({x[1] for x in ids}) == len(words)


def test_the_vocabulary_is_the_one_that_the_weights_were_trained_with():
    shipped = CLIPTokenizer.from_pretrained(pipeline_path() / "tokenizer")
    assert build_tokenizer().get_vocab() == shipped.get_vocab()
    assert build_tokenizer()(all_prompts()).input_ids == shipped(all_prompts()).input_ids


def test_merges_learned_anew_make_each_word_one_token():
    merges = learn_merges()
    words = {word for prompt in all_prompts() for word in prompt.split()}
    assert words <= {"".join(merge).removesuffix("</w>") for merge in merges if merge[1].endswith("</w>")} | {"a"}


@pytest.mark.parametrize("text", ["a zebra's xylophone", "漢字 🦓 ñandú", "", "\x00\t", "z" * 500])
def test_any_text_is_tokenised_and_padded(text):
    tokenizer = build_tokenizer()
    ids = tokenizer(text, padding="max_length", truncation=True, max_length=MAX_LENGTH).input_ids
    assert len(ids) == MAX_LENGTH
    assert max(ids) < len(tokenizer)


def test_saved_and_loaded_it_tokenises_alike(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    assert loaded.model_max_length == MAX_LENGTH
    for text in ("four purple butterflies on the beach", "a Zebra on the moon", "漢字"):
        assert loaded(text).input_ids == tokenizer(text).input_ids
