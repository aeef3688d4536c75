"""Prompt text to embedding, each prompt encoded once in a process."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

CAPACITY = 2**16
"""Prompts a bank can hold: the size of the `prompt_id` space."""


class PromptBank:
    """The prompts seen so far, their ids and their embeddings on the device.

    An id is a position in this bank. It is the `prompt_id` of observations, is the same for every
    environment and agent that shares the pipeline, and lives as long as the process: store the text, not
    the id. Prompts are encoded one by one, so an embedding does not depend on which others were asked for
    with it.
    """

    def __init__(self, tokenizer: Any, text_encoder: Any, device: torch.device) -> None:
        self._tokenizer = tokenizer
        self._text_encoder = text_encoder
        self._device = device
        self._ids: dict[str, int] = {}
        self._texts: list[str] = []
        length, width = tokenizer.model_max_length, text_encoder.config.hidden_size
        self._table_PLD = torch.empty((16, length, width), dtype=torch.float32, device=device)
        self.unconditional_LD: Tensor = self._encode("")
        """Embedding of the empty prompt, (L, D) float32: the other half of classifier-free guidance."""

    def __len__(self) -> int:
        return len(self._texts)

    def ids(self, prompts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Ids of `prompts`, (B,) int64; prompts that are new to the bank are encoded now.

        Raises:
            ValueError: the bank is full.
        """
        for prompt in prompts:
            if prompt not in self._ids:
                self._add(prompt)
        return np.array([self._ids[prompt] for prompt in prompts], dtype=np.int64)

    def text(self, prompt_id: int) -> str:
        """The prompt of an id."""
        return self._texts[prompt_id]

    def embeddings(self, prompt_ids: Tensor | npt.NDArray[np.int64]) -> Tensor:
        """Embeddings of ids, (B, L, D) float32 on the device; a copy. Ids on the device make no host wait."""
        index = torch.as_tensor(prompt_ids, dtype=torch.int64, device=self._device)
        return self._table_PLD.index_select(0, index)

    def _add(self, prompt: str) -> None:
        row = len(self._texts)
        if row == CAPACITY:
            raise ValueError(f"prompts: this process has encoded {CAPACITY} prompts, no more fit; no id for {prompt!r}")
        embedding_LD = self._encode(prompt)
        if row == len(self._table_PLD):
            self._table_PLD = torch.cat([self._table_PLD, torch.empty_like(self._table_PLD)])
        self._table_PLD[row] = embedding_LD
        self._texts.append(prompt)
        self._ids[prompt] = row

    @torch.no_grad()
    def _encode(self, prompt: str) -> Tensor:
        """Last hidden state of the text encoder for one prompt, as StableDiffusionPipeline takes it."""
        tokens = self._tokenizer(
            [prompt],
            padding="max_length",
            max_length=self._tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        mask = None
        if getattr(self._text_encoder.config, "use_attention_mask", False):
            mask = tokens.attention_mask.to(self._device)
        return self._text_encoder(tokens.input_ids.to(self._device), attention_mask=mask)[0][0].float()
