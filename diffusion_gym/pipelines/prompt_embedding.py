"""What a UNet is told of prompts."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PromptEmbedding:
    """Embeddings of B prompts, on one device.

    Attributes:
        tokens_BLD: one vector a token, (B, L, D).
        pooled_BP: one vector a prompt, (B, P), which SDXL takes as well; None elsewhere.
    """

    tokens_BLD: Tensor
    pooled_BP: Tensor | None = None

    def __len__(self) -> int:
        """B."""
        return len(self.tokens_BLD)

    @property
    def num_features(self) -> int:
        """Width of `features`."""
        return self.tokens_BLD.shape[-1] + (0 if self.pooled_BP is None else self.pooled_BP.shape[-1])

    def features(self) -> Tensor:
        """One vector a prompt for small networks, (B, D + P): the mean over the tokens, and the pooled one."""
        mean_BD = self.tokens_BLD.mean(1)
        return mean_BD if self.pooled_BP is None else torch.cat([mean_BD, self.pooled_BP], 1)

    def to(self, dtype: torch.dtype) -> Self:
        """The same in another dtype."""
        return type(self)(self.tokens_BLD.to(dtype), None if self.pooled_BP is None else self.pooled_BP.to(dtype))

    def expand(self, count: int) -> Self:
        """One prompt, `count` times, without a copy."""
        tokens = self.tokens_BLD.expand(count, -1, -1)
        return type(self)(tokens, None if self.pooled_BP is None else self.pooled_BP.expand(count, -1))

    def followed_by(self, other: Self) -> Self:
        """These prompts, then those."""
        tokens = torch.cat([self.tokens_BLD, other.tokens_BLD])
        if self.pooled_BP is None or other.pooled_BP is None:
            return type(self)(tokens)
        return type(self)(tokens, torch.cat([self.pooled_BP, other.pooled_BP]))

    def to_observation(self) -> dict[str, Tensor]:
        """The environments' names for these tensors."""
        named = {"prompt_embedding": self.tokens_BLD}
        return named if self.pooled_BP is None else {**named, "pooled_prompt_embedding": self.pooled_BP}

    @classmethod
    def from_observation(cls, obs: Any, device: torch.device) -> Self:
        """From observations with the names of `to_observation`, arrays or tensors."""
        tokens = torch.as_tensor(obs["prompt_embedding"], dtype=torch.float32, device=device)
        if "pooled_prompt_embedding" not in obs:
            return cls(tokens)
        return cls(tokens, torch.as_tensor(obs["pooled_prompt_embedding"], dtype=torch.float32, device=device))
