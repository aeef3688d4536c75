"""What a reward is, and the check on everything a reward returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Reward(Protocol):
    """A batched judge of pictures."""

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]], /) -> Any:
        """Score pictures.

        Args:
            images: (B, 3, H, W) float32 in [0, 1].
            prompts: B prompts.
            metadata: B mappings, what the prompt set knows about each prompt beyond its text.

        Returns:
            (B,) finite numbers: a tensor, an array or a list.
        """
        ...


class RewardError(ValueError):
    """A reward raised, or returned something that is not one finite number a picture."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a batch of pictures is worth.

    Attributes:
        total: (B,) float32 on the CPU, the weighted sum of the terms.
        terms: each term by name, unweighted, (B,) float32 on the CPU.
    """

    total: Tensor
    terms: Mapping[str, Tensor]


def checked_call(
    name: str, reward: Reward, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
) -> Tensor:
    """Call a reward and return (B,) float32 on the CPU.

    Raises:
        RewardError: it raised, or returned NaN, infinity or another shape; names the reward and the prompt.
    """
    try:
        with torch.no_grad():
            returned = reward(images, prompts, metadata)
    except Exception as error:
        raise RewardError(f"reward {name!r} raised {type(error).__name__} for {_some(prompts)}: {error}") from error
    try:
        scores = torch.as_tensor(returned)
        if scores.is_complex():
            raise TypeError("complex numbers")
        scores = scores.detach().to("cpu", torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RewardError(
            f"reward {name!r} must return {len(prompts)} numbers, one a picture, got {type(returned).__name__} "
            f"for {_some(prompts)} ({error})"
        ) from error
    if scores.shape != (len(prompts),):
        raise RewardError(
            f"reward {name!r} must return shape ({len(prompts)},), one number a picture, got {tuple(scores.shape)} "
            f"for {_some(prompts)}"
        )
    finite = scores.isfinite()
    if not bool(finite.all()):
        i = int((~finite).nonzero()[0])
        raise RewardError(f"reward {name!r} returned {float(scores[i])} for the prompt {prompts[i]!r}")
    return scores


def check_pictures(images: object, prompts: object, metadata: object) -> None:
    """Raise TypeError or ValueError, naming the argument, unless these are pictures with prompts and metadata."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch tensor (B, 3, H, W), got {type(images).__name__}")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"images must have shape (B, 3, H, W), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise TypeError(f"images must be floating point in [0, 1], got {images.dtype}")
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise TypeError(f"prompts must be a sequence of strings, got {prompts!r}")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise TypeError(f"prompts must be strings, got {prompt!r}")
    if len(prompts) != len(images):
        raise ValueError(f"prompts must be one a picture: got {len(prompts)} prompts and {len(images)} images")
    if isinstance(metadata, str) or not isinstance(metadata, Sequence):
        raise TypeError(f"metadata must be a sequence of mappings, got {metadata!r}")
    if len(metadata) != len(images):
        raise ValueError(f"metadata must be one a picture: got {len(metadata)} and {len(images)} images")


def _some(prompts: Sequence[str]) -> str:
    """The prompts of a batch, shortened for a message."""
    shown = ", ".join(repr(prompt) for prompt in prompts[:3])
    return f"the prompt {shown}" if len(prompts) == 1 else f"the prompts {shown}" + ", ..." * (len(prompts) > 3)
