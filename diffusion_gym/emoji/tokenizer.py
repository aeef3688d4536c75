"""A CLIPTokenizer over the project's own vocabulary: a word of the grammar is one token, others are spelled out.

python -m diffusion_gym.emoji.tokenizer     # learns assets/merges.txt anew, after the grammar has got other words

Weights belong to the numbers of the tokens, so all models must be trained again after that.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from .grammar import all_prompts

MAX_LENGTH = 24
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MERGES = Path(__file__).parent / "assets" / "merges.txt"


@lru_cache
def build_tokenizer() -> CLIPTokenizer:
    """Makes the tokenizer from the kept merges.

    Every byte has a token of its own, inside a word and at its end, so any text has a spelling.
    """
    merges = [tuple(line.split(" ")) for line in MERGES.read_text().splitlines()]
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
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


def learn_merges() -> list[tuple[str, str]]:
    """Learns byte-pair merges on the words of the grammar until each is one token.

    Which of two equally frequent pairs comes first differs from process to process: hence the file.
    """
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        min_frequency=1,
        end_of_word_suffix="</w>",
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator(sorted({word for prompt in all_prompts() for word in prompt.split()}), trainer)
    return [(first, second) for first, second in json.loads(learner.to_str())["model"]["merges"]]


if __name__ == "__main__":
    MERGES.write_text("".join(f"{first} {second}\n" for first, second in learn_merges()))
