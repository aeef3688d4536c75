"""The vector environment as Tianshou's Collector wants it."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tianshou.data import Batch
from tianshou.env import BaseVectorEnv

from agents.common.timer import PhaseTimer
from diffusion_gym.envs.vector import TextToImageVectorEnv
from diffusion_gym.rewards import PendingScores


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """Episodes that ended in one step.

    Attributes:
        slots: (F,) int64.
        prompts: F prompts.
        images: (F, H, W, 3) uint8.
        rewards: (F,) float64; 0 while the scores are pending.
        terms: each reward term, (F,) float32; none while they are pending.
        pending: the scores, if the environment defers rewards.
    """

    slots: npt.NDArray[np.int64]
    prompts: list[str]
    images: npt.NDArray[np.uint8]
    rewards: npt.NDArray[np.float64]
    terms: dict[str, npt.NDArray[np.float32]]
    pending: PendingScores | None = None

    def scored(self) -> "Episodes":
        """The same with their rewards, which this waits for.

        Raises:
            RewardError: the reward failed.
        """
        if self.pending is None:
            return self
        scores = self.pending.result()
        terms = {name: values.numpy() for name, values in scores.terms.items()}
        return replace(self, rewards=scores.total.double().numpy(), terms=terms, pending=None)


class BatchedVenv(BaseVectorEnv):
    """Steps all N slots by one call; a drop-in for `DummyVectorEnv`, which would step them one by one.

    Observations leave out `prompt_embedding`: the environment hands out one and the same tensor in every step, which
    the Collector would write into, and the actor looks embeddings up by `prompt_id`.

    Pictures and reward terms of finished episodes would be stored with every transition if they were infos; they are
    handed to `on_episodes` instead.

    Args:
        env: from `gymnasium.make_vec("TextToImage-v0", num_envs=N)`.
        on_episodes: called with the episodes that ended, in each step in which some did.
        timer: times the steps as "decode": but for copies, decoding is what a step does.
    """

    def __init__(
        self,
        env: TextToImageVectorEnv,
        *,
        on_episodes: Callable[[Episodes], None] | None = None,
        timer: PhaseTimer | None = None,
    ) -> None:
        # No super().__init__(): the base class builds one worker a slot; Tianshou's own wrappers do the same.
        self.env = env
        self.on_episodes = on_episodes
        self.timer = timer
        self.is_async = False
        self.is_closed = False
        self._infos = np.array([{"env_id": slot} for slot in range(env.num_envs)], dtype=object)

    def __len__(self) -> int:
        return self.env.num_envs

    @property
    def env_num(self) -> int:
        """N."""
        return self.env.num_envs

    def __getattribute__(self, key: str) -> Any:
        # The base class answers these from its workers.
        if key == "action_space":
            return object.__getattribute__(self, "env").single_action_space
        if key == "observation_space":
            return object.__getattribute__(self, "env").single_observation_space
        return object.__getattribute__(self, key)

    def get_env_attr(self, key: str, id: Any = None) -> list[Any]:
        """The attribute of the environment, once a slot."""
        return [getattr(self.env, key)] * len(self._slots(id))

    def reset(self, env_id: Any = None, **kwargs: Any) -> tuple[Batch, npt.NDArray[Any]]:
        """Begin episodes in the slots `env_id` (all by default).

        Args:
            env_id: slot numbers.
            kwargs: `seed` and `options` of the environment's reset.

        Returns:
            Observations and infos of those slots.
        """
        slots = self._slots(env_id)
        options = dict(kwargs.get("options") or {})
        if len(slots) < len(self):
            mask = np.zeros(len(self), dtype=np.bool_)
            mask[slots] = True
            options["reset_mask"] = mask
        self.env.reset(seed=kwargs.get("seed"), options=options)
        return _light(self.env.observe(slots)), self._infos[slots]

    def step(
        self, action: Any, id: Any = None
    ) -> tuple[Batch, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        """Make `action` (n, C, H, W) the latents of the slots `id` (all by default)."""
        slots = self._slots(id)
        with nullcontext() if self.timer is None else self.timer.phase("decode"):
            obs, rewards, terminated, truncated, infos = self.env.step_slots(slots, action)
        if infos and self.on_episodes is not None:
            done = np.flatnonzero(terminated)
            terms = infos.get("reward_terms", {})
            self.on_episodes(
                Episodes(
                    slots=slots[done],
                    prompts=infos["prompt"][done].tolist(),
                    images=infos["image"][done],
                    rewards=rewards[done],
                    terms={name: values[done] for name, values in terms.items() if name[0] != "_"},
                    pending=infos.get("pending_reward"),
                )
            )
        return _light(obs), rewards, terminated, truncated, self._infos[slots]

    def seed(self, seed: int | list[int] | None = None) -> list[list[int] | None]:
        """Slot i restarts its stream from seed + i at once; an episode begins with it."""
        self.env.reset(seed=seed)
        return [None if s is None else [s] for s in self.env.np_random_seed]

    def render(self, **kwargs: Any) -> list[Any]:
        """The current latents decoded, one picture a slot."""
        return list(self.env.render() or ())

    def close(self) -> None:
        """Close the environment."""
        self.is_closed = True
        self.env.close()

    def _slots(self, slots: Any) -> npt.NDArray[np.int64]:
        return np.arange(len(self)) if slots is None else np.atleast_1d(np.asarray(slots, dtype=np.int64))


def _light(obs: dict[str, Any]) -> Batch:
    """Observations as a Batch, without the prompt embeddings; step and prompt ids in numpy, on whatever device."""
    numbers = {name: torch.as_tensor(obs[name]).cpu().numpy() for name in ("step", "prompt_id")}
    return Batch({name: value for name, value in obs.items() if not name.endswith("prompt_embedding")} | numbers)
