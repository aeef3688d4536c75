"""Advantages from final rewards, per prompt (Black et al. 2023, DDPO, section 4.3)."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class PerPromptStatistics:
    """Mean and standard deviation of each prompt's recent rewards.

    A prompt with too few rewards takes those of the whole batch.

    Args:
        size: rewards remembered a prompt. More smooths; fewer follow a policy that learns fast. 32 with one prompt in
            each batch of 32; 16 to 32 for DDPO's prompt sets.
        min_count: with fewer rewards than this the batch's statistics are used. A number that no prompt reaches, such
            as `size + 1`, gives global normalisation.
    """

    def __init__(self, *, size: int = 32, min_count: int = 16) -> None:
        if size < 1 or min_count < 1:
            raise ValueError(f"size and min_count must be 1 or more, got {size} and {min_count}")
        self.size = size
        self.min_count = min_count
        self._rewards: dict[str, deque[float]] = {}

    def update(self, prompts: Sequence[str], reward_E: Floats) -> None:
        """Remember new rewards."""
        for prompt, reward in zip(prompts, reward_E.tolist(), strict=True):
            self._rewards.setdefault(prompt, deque(maxlen=self.size)).append(reward)

    def mean_and_std(self, prompts: Sequence[str], reward_E: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation for each episode, (E,) each; `reward_E` is the batch to fall back on."""
        mean_E, std_E = np.empty(len(prompts)), np.empty(len(prompts))
        known: dict[str, tuple[float, float]] = {}
        for i, prompt in enumerate(prompts):
            if prompt not in known:
                own = self._rewards.get(prompt, deque())
                values = reward_E if len(own) < self.min_count else np.array(own)
                known[prompt] = float(values.mean()), float(values.std())
            mean_E[i], std_E[i] = known[prompt]
        return mean_E, std_E

    def state_dict(self) -> dict[str, Any]:
        """Remembered rewards by prompt."""
        return {prompt: list(rewards) for prompt, rewards in self._rewards.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self._rewards = {prompt: deque(rewards, maxlen=self.size) for prompt, rewards in state.items()}
