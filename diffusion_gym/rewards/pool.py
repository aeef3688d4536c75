"""Rewards computed while something else goes on, such as the sampling of the next pictures."""

from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from diffusion_gym.rewards.base import RewardError, Scores
from diffusion_gym.rewards.weighted import WeightedReward


class PendingScores:
    """Scores on their way; `RewardPool.submit` makes them."""

    def __init__(self, future: "Future[Scores]", batch: str) -> None:
        self._future = future
        self._batch = batch

    def result(self) -> Scores:
        """Wait for the scores, in the order of the pictures that were submitted.

        Raises:
            RewardError: the reward failed, or the pool was closed before; names the batch.
            TypeError, ValueError: what was submitted were no pictures, prompts and metadata.
        """
        try:
            return self._future.result()
        except RewardError as error:
            raise RewardError(f"{self._batch}: {error}") from error
        except CancelledError as error:
            raise RewardError(f"{self._batch}: not scored, the pool was closed before its turn came") from error


class RewardPool:
    """Calls a reward in threads of its own.

    This hides the time of a reward that waits or computes elsewhere: on a server, on another device, or in native code
    on a core that is free. A reward that draws from the global random generators makes a run depend on timing.

    Args:
        reward: the reward.
        workers: batches at the same time. With more than 1 the reward is called by several threads at once and must
            allow it.

    Raises:
        TypeError, ValueError: `workers` is not an int of 1 or more.
    """

    def __init__(self, reward: WeightedReward, *, workers: int = 1) -> None:
        if isinstance(workers, bool) or not isinstance(workers, int):
            raise TypeError(f"workers must be an int, got {workers!r}")
        if workers < 1:
            raise ValueError(f"workers must be 1 or more, got {workers}")
        self.reward = reward
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="reward")
        self._batches = 0

    def submit(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> PendingScores:
        """Have a batch scored; do not write into `images` afterwards.

        Args:
            images: (B, 3, H, W) floating point in [0, 1].
            prompts: B prompts.
            metadata: B mappings.

        Raises:
            RuntimeError: the pool is closed.
        """
        self._batches += 1
        future = self._threads.submit(self.reward, images, list(prompts), list(metadata))
        return PendingScores(future, f"batch {self._batches} of {len(prompts)} pictures")

    def close(self) -> None:
        """Drop batches whose turn has not come, and wait for the one that is being scored."""
        self._threads.shutdown(wait=True, cancel_futures=True)
