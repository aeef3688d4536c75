"""The transitions an update learns from, read from a buffer without copying it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tianshou.data import ReplayBuffer
from torch import Tensor

from agents.common.actor import DenoisingActor
from diffusion_gym.pipelines import PromptEmbedding

Index = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Transitions:
    """Some transitions on the device.

    Attributes:
        rows: (B,) their positions in the rollout.
        latent_BCHW: float32.
        action_BCHW: float32, what the policy did.
        step_B: int64.
        embedding: of the prompts; None without prompts.
        log_prob_B: float32, of the action when it was taken.
        mean_BCHW: float32, the policy's mean then; None if it was not stored.
    """

    rows: Index
    latent_BCHW: Tensor
    action_BCHW: Tensor
    step_B: Tensor
    embedding: PromptEmbedding | None
    log_prob_B: Tensor
    mean_BCHW: Tensor | None


class Rollout:
    """Whole episodes in a buffer: E episodes of T transitions, I = E * T of them.

    Args:
        buffer: a LatentReplayBuffer, or any buffer of Tianshou that a Collector with a DenoisingPolicy filled.
        actor: the policy's actor.

    Raises:
        ValueError: the buffer is empty, or holds parts of episodes.
    """

    def __init__(self, buffer: ReplayBuffer, actor: DenoisingActor) -> None:
        self.buffer: Any = buffer
        self.actor = actor
        self.num_steps = actor.kernel.num_steps
        self.index_I: Index = np.asarray(buffer.sample_indices(0), dtype=np.int64)
        if not len(self.index_I):
            raise ValueError("the buffer is empty: collect before updating")
        self.step_I: Index = np.asarray(self.buffer.obs.step)[self.index_I].astype(np.int64)
        if not np.array_equal(self.step_I, np.arange(len(self.step_I)) % self.num_steps):
            raise ValueError(
                f"the buffer holds parts of episodes: collect n_step = num_envs * {self.num_steps} * waves transitions "
                "into a buffer of at least that size"
            )
        self.prompt_id_E: Index = np.asarray(self.buffer.obs.prompt_id)[self.index_I[:: self.num_steps]]
        reward_I = np.asarray(self.buffer.rew)[self.index_I].astype(np.float64)
        self.reward_E: npt.NDArray[np.float64] = reward_I.reshape(-1, self.num_steps).sum(1)

    def __len__(self) -> int:
        """I, the number of transitions."""
        return len(self.index_I)

    @property
    def num_episodes(self) -> int:
        """E."""
        return len(self.reward_E)

    @property
    def serial(self) -> Index | None:
        """A number for each place of the buffer that changes when it is overwritten; None in a stock buffer."""
        return getattr(self.buffer, "serial_I", None)

    def prompts(self) -> list[str]:
        """The prompt of each episode; without a prompt bank its id."""
        bank = self.actor.prompts
        return [str(i) if bank is None else bank.text(int(i)) for i in self.prompt_id_E]

    def episode(self, rows: Index) -> Index:
        """Which episode the transitions at `rows` belong to."""
        return rows // self.num_steps

    def choose(self, fraction: float) -> Index:
        """Rows of a random subset of each episode's transitions, the same number in each; all for 1.

        The subset's gradient is an unbiased estimate of that of all, at a fraction of the cost.
        """
        count = max(1, round(fraction * self.num_steps))
        if count >= self.num_steps:
            return np.arange(len(self))
        order_ET = np.argsort(np.random.rand(self.num_episodes, self.num_steps), axis=1)[:, :count]  # noqa: NPY002
        return (np.sort(order_ET, axis=1) + np.arange(self.num_episodes)[:, None] * self.num_steps).reshape(-1)

    def gather(self, rows: Index) -> Transitions:
        """The transitions at `rows`, on the device."""
        index = self.index_I[rows]
        obs = self.buffer.get(index, "obs")
        latent, step = self.actor.latent_and_step(obs)
        device, stored = latent.device, self.buffer.policy
        return Transitions(
            rows=rows,
            latent_BCHW=latent,
            action_BCHW=torch.as_tensor(self.buffer.act[index], dtype=torch.float32, device=device),
            step_B=step,
            embedding=self.actor.embedding(obs),
            log_prob_B=torch.as_tensor(stored.log_prob[index], dtype=torch.float32, device=device),
            mean_BCHW=torch.as_tensor(stored.mean[index], device=device) if "mean" in stored else None,
        )


def chunks(rows: Index, size: int | None) -> list[Index]:
    """Split rows into parts of `size` (one part for None); what is left over joins no other part."""
    size = len(rows) if size is None else size
    return [rows[start : start + size] for start in range(0, len(rows), size)]
