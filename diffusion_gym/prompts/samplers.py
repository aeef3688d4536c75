"""Which prompt an episode gets. Samplers have no state: a slot's random stream and turn decide."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from diffusion_gym.prompts.prompt_set import PromptSet


@runtime_checkable
class PromptSampler(Protocol):
    """Anything that picks a prompt."""

    def index(self, rng: np.random.Generator, *, start: int, turn: int) -> int:
        """Position of the next prompt in the set.

        Args:
            rng: the slot's own random stream.
            start: the seed the slot was last reset with, or its number if it never was.
            turn: episodes this slot has begun since.
        """
        ...


@dataclass(frozen=True)
class UniformSampler:
    """Each prompt with the same probability."""

    size: int

    def index(self, rng: np.random.Generator, *, start: int, turn: int) -> int:
        """A uniformly random position."""
        return int(rng.integers(self.size))


@dataclass(frozen=True)
class CyclicSampler:
    """The prompts in order, over and over.

    Slot i of N seeded s + i begins at s + i and moves by `stride`, so with stride N (the default of a vector
    environment) the slots together walk the list in order. A single environment moves by 1.
    """

    size: int
    stride: int = 1

    def index(self, rng: np.random.Generator, *, start: int, turn: int) -> int:
        """(start + turn * stride) modulo the number of prompts."""
        return (start + turn * self.stride) % self.size


@dataclass(frozen=True, eq=False)
class WeightedSampler:
    """Each prompt with probability proportional to its weight."""

    cumulative: npt.NDArray[np.float64]

    def index(self, rng: np.random.Generator, *, start: int, turn: int) -> int:
        """A random position, by inversion of the cumulative weights."""
        return int(np.searchsorted(self.cumulative, rng.random() * self.cumulative[-1], side="right"))


def make_sampler(sampler: str | PromptSampler | None, prompts: PromptSet, *, num_slots: int = 1) -> PromptSampler:
    """A sampler over `prompts`.

    Args:
        sampler: "uniform", "cyclic", "weighted", any PromptSampler, or None: weighted if the prompts have weights,
            else uniform.
        prompts: the prompt set.
        num_slots: how many slots draw from it; the stride of "cyclic".

    Raises:
        TypeError, ValueError: `sampler` is none of these, or "weighted" is asked for without weights.
    """
    if sampler is None:
        sampler = "uniform" if prompts.weights is None else "weighted"
    if sampler == "uniform":
        return UniformSampler(len(prompts))
    if sampler == "cyclic":
        return CyclicSampler(len(prompts), stride=num_slots)
    if sampler == "weighted":
        if prompts.weights is None:
            raise ValueError('prompt_sampler="weighted" needs prompts with weights; these have none')
        return WeightedSampler(np.cumsum(np.array(prompts.weights)))
    if isinstance(sampler, str):
        raise ValueError(f'prompt_sampler must be "uniform", "cyclic" or "weighted", got {sampler!r}')
    if not callable(getattr(sampler, "index", None)) or isinstance(sampler, list | tuple):
        raise TypeError(f"prompt_sampler must be a name or have a method `index(rng, start, turn)`, got {sampler!r}")
    return sampler
