"""A CLIPTokenizer over the project's own vocabulary: a word of the grammar is one token, others are spelled out."""

from __future__ import annotations

from functools import lru_cache

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from .grammar import all_prompts

MAX_LENGTH = 24
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


@lru_cache
def build_tokenizer() -> CLIPTokenizer:
    """Makes the tokenizer: byte-pair merges learned on the words of the grammar until each is one token.

    Every byte has a token of its own, inside a word and at its end, so any text has a spelling.
    """
    words = sorted({word for prompt in all_prompts() for word in prompt.split()})
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        min_frequency=1,
        end_of_word_suffix="</w>",
        initial_alphabet=bytes_,
        show_progress=False,
    )
    learner.train_from_iterator(words, trainer)
    merges = [tuple(merge) for merge in _merges(learner)]
    tokens = [BOS, EOS, *bytes_, *(byte + "</w>" for byte in bytes_), *("".join(merge) for merge in merges)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=MAX_LENGTH,
    )


def _merges(learner: Tokenizer) -> list[list[str]]:
    import json

    return json.loads(learner.to_str())["model"]["merges"]
