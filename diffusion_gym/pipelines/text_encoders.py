"""How the model families encode a prompt."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_gym.pipelines.prompt_embedding import PromptEmbedding

Encode = Callable[[str], PromptEmbedding]


def stable_diffusion_encoder(tokenizer: Any, text_encoder: Any) -> Encode:
    """Stable Diffusion 1.x and 2.x: the text encoder's last hidden state, as StableDiffusionPipeline takes it."""

    @torch.no_grad()
    def encode(prompt: str) -> PromptEmbedding:
        tokens = _tokenize(tokenizer, prompt)
        mask = None
        if getattr(text_encoder.config, "use_attention_mask", False):
            mask = tokens.attention_mask.to(text_encoder.device)
        found = text_encoder(tokens.input_ids.to(text_encoder.device), attention_mask=mask)
        return PromptEmbedding(found[0].float())

    return encode


def sdxl_encoder(tokenizers: Sequence[Any], text_encoders: Sequence[Any]) -> Encode:
    """SDXL: the last hidden state but one of both encoders side by side, and the second's pooled projection."""

    @torch.no_grad()
    def encode(prompt: str) -> PromptEmbedding:
        states: list[Tensor] = []
        for tokenizer, text_encoder in zip(tokenizers, text_encoders, strict=True):
            ids = _tokenize(tokenizer, prompt).input_ids.to(text_encoder.device)
            found = text_encoder(ids, output_hidden_states=True)
            states.append(found.hidden_states[-2].float())
        return PromptEmbedding(torch.cat(states, dim=-1), found.text_embeds.float())

    return encode


def zeros_like(embedding: PromptEmbedding) -> PromptEmbedding:
    """The unconditional embedding of models trained with zeros for the empty prompt, such as SDXL base."""
    pooled = embedding.pooled_BP
    return PromptEmbedding(torch.zeros_like(embedding.tokens_BLD), None if pooled is None else torch.zeros_like(pooled))


def _tokenize(tokenizer: Any, prompt: str) -> Any:
    return tokenizer(
        [prompt],
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
