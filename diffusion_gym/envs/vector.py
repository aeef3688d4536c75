"""The vector environment: N episodes in one tensor, stepped by one operation."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from diffusion_gym.envs.core import EMBEDDED, RENDER_MODES, DenoisingCore, Finished, Slots, check_options, check_seed
from diffusion_gym.kernels import Kernel
from diffusion_gym.pipelines import Pipeline
from diffusion_gym.prompts import PromptSampler, PromptSet
from diffusion_gym.prompts.prompt_set import check_prompt
from diffusion_gym.rewards import RewardSpec, WeightedReward

StepResult = tuple[
    dict[str, Any], npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]
]


class TextToImageVectorEnv(VectorEnv[dict[str, Any], Any, npt.NDArray[Any]]):
    """N of `TextToImageEnv` in one tensor; slot i seeded s + i is the single environment seeded s + i.

    Spaces, rewards and episode end are those of `TextToImageEnv`, batched. Rewards (float64), terminations and
    truncations are numpy arrays; only the last step of an episode waits for the device.

    Slots are not reset on their own (`AutoresetMode.DISABLED`): after an episode call `reset()`, or
    `reset(options={"reset_mask": mask})` for some of the slots. In lockstep all end at the same step.

    Infos follow Gymnasium's convention, an array with a mask under `_key`: `reset` gives `prompt`; a step in which
    episodes end gives `prompt` (object), `image` (N, H, W, 3) uint8, and `reward_terms`, a dict of (N,) float32.

    With `defer_rewards` the reward is computed in a thread of its own while the agent goes on: the last step gives
    reward 0, and in the place of `reward_terms` `pending_reward`. Its `result()` waits and returns the `Scores` of the
    slots under the mask `_pending_reward`, in their order; it raises what `step` would have raised of the reward.

    Args:
        num_envs: N.
        backend: "torch": observations are tensors on the device, `prompt_embedding` one and the same tensor as long as
            the prompts are the same (clone it before you write into it). "numpy": fresh arrays.
        prompt_embedding: False leaves it out of the observations; an agent then takes
            `pipeline.prompts.embeddings(observation["prompt_id"])`.
        defer_rewards: whether `step` returns before the reward is known.

    The other arguments are those of `TextToImageEnv`.
    """

    metadata = {  # noqa: RUF012
        "render_modes": list(RENDER_MODES),
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.DISABLED,
    }

    def __init__(
        self,
        *,
        num_envs: int = 1,
        backend: Literal["torch", "numpy"] = "torch",
        prompt_embedding: bool = True,
        defer_rewards: bool = False,
        model: str | os.PathLike[str] = EMBEDDED,
        reward: RewardSpec | WeightedReward | None = None,
        prompts: "str | os.PathLike[str] | Iterable[str | Mapping[str, Any]] | PromptSet | None" = None,
        prompt_sampler: str | PromptSampler | None = None,
        num_inference_steps: int | None = None,
        sampler: str | Mapping[str, Any] = "ddim",
        eta: float | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "float32",
        render_mode: str | None = None,
    ) -> None:
        if backend not in ("torch", "numpy"):
            raise ValueError(f'backend must be "torch" or "numpy", got {backend!r}')
        if not isinstance(prompt_embedding, bool):
            raise TypeError(f"prompt_embedding must be True or False, got {prompt_embedding!r}")
        self._core = DenoisingCore(
            num_slots=num_envs,
            model=model,
            reward=reward,
            prompts=prompts,
            prompt_sampler=prompt_sampler,
            num_inference_steps=num_inference_steps,
            sampler=sampler,
            eta=eta,
            device=device,
            dtype=dtype,
            render_mode=render_mode,
            defer_rewards=defer_rewards,
        )
        self.num_envs = self._core.num_slots
        self.render_mode = render_mode
        self.backend = backend
        self.prompt_embedding = prompt_embedding
        self.single_observation_space = self._core.observation_space(prompt_embedding=prompt_embedding)
        self.single_action_space = self._core.action_space()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._every: Slots = np.arange(self.num_envs)
        self._seeds: list[int | None] = [None] * self.num_envs

    @property
    def pipeline(self) -> Pipeline:
        """The model, shared with every environment of the process that has the same one."""
        return self._core.pipeline

    @property
    def kernel(self) -> Kernel:
        """The transition kernel of the sampler, for the policy."""
        return self._core.kernel

    @property
    def prompts(self) -> PromptSet:
        """The prompt set."""
        return self._core.prompts

    @property
    def reward(self) -> WeightedReward:
        """The reward."""
        return self._core.reward

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The random stream of each slot."""
        return tuple(self._rng(slot) for slot in range(self.num_envs))

    @property
    def np_random_seed(self) -> tuple[int | None, ...]:  # type: ignore[override]
        """The seed each slot's stream was started with."""
        for slot in range(self.num_envs):
            self._rng(slot)
        return tuple(self._seeds)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode in every slot, or in some.

        Args:
            seed: s seeds slot i with s + i; a sequence gives each slot its own seed or None; None goes on with the
                streams as they are.
            options: "prompt": a string for all slots, or a sequence of one string or None a slot; None draws from the
                prompt set. "reset_mask": bool array (N,), the slots to reset; the others go on.

        Returns:
            Observations of all N slots, and infos of those that were reset.

        Raises:
            TypeError, ValueError: an argument is wrong; nothing was reset.
        """
        seeds = self._check_seeds(seed)
        checked = check_options(options, ("prompt", "reset_mask"))
        prompts = self._check_prompts(checked.get("prompt"))
        slots = self._check_mask(checked.get("reset_mask"))
        for slot in slots.tolist():
            if seeds[slot] is not None:
                self._core.rngs[slot], self._seeds[slot] = seeding.np_random(seeds[slot])
            else:
                self._rng(slot)
        self._core.reset(slots, [seeds[slot] for slot in slots], [prompts[slot] for slot in slots])
        mask = np.zeros(self.num_envs, dtype=np.bool_)
        mask[slots] = True
        texts = np.full(self.num_envs, None, dtype=object)
        for slot in slots.tolist():
            texts[slot] = self._core.text(slot)
        return self._observe(self._every), {"prompt": texts, "_prompt": mask}

    def step(self, actions: Any) -> StepResult:
        """Make `actions`, (N, C, H, W), the current latents.

        Raises:
            TypeError, ValueError: the actions are not of the shape, or not finite and within the space.
            RewardError: the reward failed; names the reward and the prompt. The step was not taken.
            gymnasium.error.ResetNeeded: some slot has no episode under way.
        """
        return self._step(self._every, actions)

    def step_slots(self, slots: npt.ArrayLike, actions: Any) -> StepResult:
        """Step some of the slots; everything returned has one row for each of them, in their order.

        Args:
            slots: distinct slot numbers, (n,).
            actions: (n, C, H, W).

        Raises:
            As `step`.
        """
        return self._step(self._check_slots(slots), actions)

    def observe(self, slots: npt.ArrayLike | None = None) -> dict[str, Any]:
        """The current observations of all or some of the slots."""
        return self._observe(self._every if slots is None else self._check_slots(slots))

    def render(self) -> tuple[npt.NDArray[np.uint8], ...] | None:
        """The current latents decoded, N arrays (H, W, 3) uint8; None without a render mode."""
        return None if self.render_mode is None else tuple(self._core.pictures(self._every))

    def close_extras(self, **kwargs: Any) -> None:
        """Drop deferred rewards that are not being computed yet; called by `close`."""
        self._core.close()

    def _step(self, slots: Slots, actions: Any) -> StepResult:
        finished = self._core.step(slots, actions)
        rewards = np.zeros(len(slots), dtype=np.float64)
        terminations = np.zeros(len(slots), dtype=np.bool_)
        infos: dict[str, Any] = {}
        if finished is not None:
            rewards[finished.rows] = finished.total
            terminations[finished.rows] = True
            infos = _final_infos(finished, terminations)
        return self._observe(slots), rewards, terminations, np.zeros(len(slots), dtype=np.bool_), infos

    def _observe(self, slots: Slots) -> dict[str, Any]:
        tensors = self._core.observe(slots, prompt_embedding=self.prompt_embedding)
        if self.backend == "torch":
            return tensors
        return {name: tensor.cpu().numpy().copy() for name, tensor in tensors.items()}

    def _rng(self, slot: int) -> np.random.Generator:
        """The slot's random stream, started from the system's entropy if it was never seeded."""
        rng = self._core.rngs[slot]
        if rng is None:
            rng, self._seeds[slot] = seeding.np_random()
            self._core.rngs[slot] = rng
        return rng

    def _check_seeds(self, seed: object) -> list[int | None]:
        if isinstance(seed, Sequence | np.ndarray) and not isinstance(seed, str | bytes):
            if len(seed) != self.num_envs:
                raise ValueError(f"seed must be an int or {self.num_envs} of them, got {len(seed)}")
            return [check_seed(one) for one in seed]
        first = check_seed(seed)
        return [None if first is None else first + slot for slot in range(self.num_envs)]

    def _check_prompts(self, prompt: object) -> list[str | None]:
        if prompt is None or isinstance(prompt, str):
            if prompt is not None:
                check_prompt(prompt, "options['prompt']")
            return [prompt] * self.num_envs
        if not isinstance(prompt, Sequence | np.ndarray):
            raise TypeError(f"options['prompt'] must be a string or a sequence of them, got {prompt!r}")
        if len(prompt) != self.num_envs:
            raise ValueError(f"options['prompt'] must be a string or {self.num_envs} of them, got {len(prompt)}")
        return [None if one is None else str(check_prompt(one, "options['prompt']")) for one in prompt]

    def _check_mask(self, mask: object) -> Slots:
        if mask is None:
            return self._every
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            raise TypeError(f"options['reset_mask'] must be a numpy array of bool, got {mask!r}")
        if mask.shape != (self.num_envs,):
            raise ValueError(f"options['reset_mask'] must have shape ({self.num_envs},), got {mask.shape}")
        if not mask.any():
            raise ValueError("options['reset_mask'] must have at least one True")
        return np.flatnonzero(mask)

    def _check_slots(self, slots: npt.ArrayLike) -> Slots:
        array = np.asarray(slots)
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise TypeError(f"slots must be a sequence of slot numbers, got {slots!r}")
        if len(array) == 0 or len(np.unique(array)) < len(array) or array.min() < 0 or array.max() >= self.num_envs:
            raise ValueError(f"slots must be distinct numbers from 0 to {self.num_envs - 1}, got {array.tolist()}")
        return array.astype(np.int64)


def _final_infos(finished: Finished, mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Infos of a step in which episodes ended, each array with its mask."""

    def spread(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        array = np.zeros((len(mask), *values.shape[1:]), dtype=values.dtype)
        array[finished.rows] = values
        return array

    texts = np.full(len(mask), None, dtype=object)
    texts[finished.rows] = finished.prompts
    infos: dict[str, Any] = {"prompt": texts, "image": spread(finished.images)}
    if finished.pending is None:
        terms: dict[str, Any] = {}
        for name, values in finished.terms.items():
            terms[name], terms[f"_{name}"] = spread(values), mask.copy()
        infos["reward_terms"] = terms
    else:
        infos["pending_reward"] = finished.pending
    return infos | {f"_{name}": mask.copy() for name in infos}
