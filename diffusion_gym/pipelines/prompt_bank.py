"""Prompt text to embedding, each prompt encoded once in a process."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffusion_gym.pipelines.prompt_embedding import PromptEmbedding

CAPACITY = 2**16
"""Prompts a bank can hold: the size of the `prompt_id` space."""


class PromptBank:
    """The prompts seen so far, their ids and their embeddings on the device.

    An id is a position in this bank. It is the `prompt_id` of observations, is the same for every
    environment and agent that shares the pipeline, and lives as long as the process: store the text, not
    the id. Prompts are encoded one by one, so an embedding does not depend on which others were asked for
    with it.

    Args:
        encode: one prompt -> its embedding with B = 1, float32 on the device.
        unconditional: the embedding in the other half of classifier-free guidance, B = 1; None takes that of the empty
            prompt.
    """

    def __init__(self, encode: Callable[[str], PromptEmbedding], unconditional: PromptEmbedding | None = None) -> None:
        self._encode = encode
        self._ids: dict[str, int] = {}
        self._texts: list[str] = []
        self.unconditional: PromptEmbedding = encode("") if unconditional is None else unconditional
        """The other half of classifier-free guidance, B = 1, float32."""
        self._tokens_PLD = _table(self.unconditional.tokens_BLD)
        self._pooled_PP = None if self.unconditional.pooled_BP is None else _table(self.unconditional.pooled_BP)

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

    def embeddings(self, prompt_ids: Tensor | npt.NDArray[np.int64]) -> PromptEmbedding:
        """Embeddings of ids, float32 on the device; copies. Ids on the device make no host wait."""
        index = torch.as_tensor(prompt_ids, dtype=torch.int64, device=self._tokens_PLD.device)
        pooled = None if self._pooled_PP is None else self._pooled_PP.index_select(0, index)
        return PromptEmbedding(self._tokens_PLD.index_select(0, index), pooled)

    def _add(self, prompt: str) -> None:
        row = len(self._texts)
        if row == CAPACITY:
            raise ValueError(f"prompts: this process has encoded {CAPACITY} prompts, no more fit; no id for {prompt!r}")
        embedding = self._encode(prompt)
        if row == len(self._tokens_PLD):
            self._tokens_PLD = _doubled(self._tokens_PLD)
            self._pooled_PP = None if self._pooled_PP is None else _doubled(self._pooled_PP)
        self._tokens_PLD[row] = embedding.tokens_BLD[0]
        if self._pooled_PP is not None and embedding.pooled_BP is not None:
            self._pooled_PP[row] = embedding.pooled_BP[0]
        self._texts.append(prompt)
        self._ids[prompt] = row


def _table(like: Tensor) -> Tensor:
    """Room for 16 rows."""
    return torch.empty((16, *like.shape[1:]), dtype=torch.float32, device=like.device)


def _doubled(table: Tensor) -> Tensor:
    return torch.cat([table, torch.empty_like(table)])
