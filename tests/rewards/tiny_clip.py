"""A CLIP model with random weights and a tokenizer of letters, saved as transformers saves them."""

from pathlib import Path

import torch
import transformers
from tokenizers import pre_tokenizers

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
IMAGE_SIZE, WIDTH, LENGTH = 28, 24, 16


def save_tiny_clip(directory: Path, *, activation: str = "quick_gelu", tokenizer: bool = True) -> Path:
    """Save a model for 28x28 pictures, prompts of 16 tokens and embeddings of width 24."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.CLIPModel(_config(activation))
        for parameter in model.parameters():  # nothing at the 0 or 1 it starts with, or a slip would not show
            parameter.data += 0.1 * torch.randn_like(parameter)
        model.logit_scale.data.fill_(3.0)
    model.save_pretrained(directory)
    if tokenizer:
        save_tiny_tokenizer(directory)
    return directory


def save_tiny_tokenizer(directory: Path, *, end: str = EOS) -> Path:
    """Save the tokenizer alone; `end` is the token that ends a prompt."""
    tokenizer = transformers.CLIPTokenizer(
        vocab=_vocabulary(), merges=[], bos_token=BOS, eos_token=end, pad_token=EOS, model_max_length=LENGTH
    )
    tokenizer.save_pretrained(directory)
    return directory


def _vocabulary() -> dict[str, int]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return {token: i for i, token in enumerate([*letters, *(letter + "</w>" for letter in letters), BOS, EOS])}


def _config(activation: str) -> transformers.CLIPConfig:
    size = len(_vocabulary())
    layers = {"num_hidden_layers": 2, "hidden_act": activation}
    text = {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 128, "max_position_embeddings": LENGTH}
    vision = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 192, "patch_size": 14}
    return transformers.CLIPConfig(
        text_config={**layers, **text, "vocab_size": size, "bos_token_id": size - 2, "eos_token_id": size - 1},
        vision_config={**layers, **vision, "image_size": IMAGE_SIZE},
        projection_dim=WIDTH,
    )
