"""N denoising episodes in one tensor: what the single and the vector environment share.

The environment holds latents, prompts, the decoder and the reward. An action is the next latent, so a step copies it
in; only the last step of an episode costs something: it decodes the picture and asks the reward.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

from diffusion_gym.pipelines import PromptEmbedding, load_pipeline
from diffusion_gym.pipelines.prompt_bank import CAPACITY
from diffusion_gym.prompts import PromptSampler, PromptSet, load_prompts, make_sampler
from diffusion_gym.rewards import PendingScores, RewardPool, RewardSpec, Scores, WeightedReward, make_reward

LATENT_LIMIT = 1000.0
"""Bound of the latent and action spaces. Latents of a working model stay below 30 or so; Gymnasium's checker and other
libraries want finite boxes, and a latent beyond this has diverged."""

EMBEDDED = "emoji"
RENDER_MODES = ("rgb_array",)

Slots = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What the episodes that ended in a step were worth.

    Attributes:
        rows: positions in the step's slots, (F,).
        prompts: their prompts.
        images: (F, H, W, 3) uint8.
        total: (F,) float32; 0 while the scores are pending.
        terms: each reward term by name, (F,) float32; none while they are pending.
        pending: the scores, if rewards are deferred.
    """

    rows: Slots
    prompts: list[str]
    images: npt.NDArray[np.uint8]
    total: npt.NDArray[np.float32]
    terms: Mapping[str, npt.NDArray[np.float32]]
    pending: PendingScores | None = None


class DenoisingCore:
    """N slots, each an episode of its own with its own random stream. For the arguments see `TextToImageEnv`."""

    def __init__(
        self,
        *,
        num_slots: int,
        model: str | os.PathLike[str],
        reward: RewardSpec | WeightedReward | None,
        prompts: "str | os.PathLike[str] | Iterable[str | Mapping[str, Any]] | PromptSet | None",
        prompt_sampler: str | PromptSampler | None,
        num_inference_steps: int | None,
        sampler: str | Mapping[str, Any],
        eta: float | None,
        device: str | torch.device,
        dtype: str | torch.dtype,
        render_mode: str | None,
        defer_rewards: bool = False,
    ) -> None:
        if not isinstance(defer_rewards, bool):
            raise TypeError(f"defer_rewards must be True or False, got {defer_rewards!r}")
        if isinstance(num_slots, bool) or not isinstance(num_slots, int | np.integer):
            raise TypeError(f"num_envs must be an int, got {num_slots!r}")
        if num_slots < 1:
            raise ValueError(f"num_envs must be 1 or more, got {num_slots}")
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ValueError(f"render_mode must be None or one of {RENDER_MODES}, got {render_mode!r}")
        for name, value, default in (("reward", reward, "emoji_preference"), ("prompts", prompts, "emoji/train")):
            if value is None and model != EMBEDDED:
                raise ValueError(
                    f"{name} must be given with model={str(model)!r}: the default, {default!r}, belongs to the "
                    "embedded model"
                )
        self.num_slots = int(num_slots)
        self.prompts = load_prompts("emoji/train" if prompts is None else prompts)
        self.prompt_sampler = make_sampler(prompt_sampler, self.prompts, num_slots=self.num_slots)
        self.pipeline = load_pipeline(model, device=device, dtype=dtype)
        self.kernel = self.pipeline.kernel(num_inference_steps, sampler=sampler, eta=eta)
        self.device = self.pipeline.device
        self.reward = make_reward("emoji_preference" if reward is None else reward, device=self.device)
        self._pool = RewardPool(self.reward) if defer_rewards else None

        self.rngs: list[np.random.Generator | None] = [None] * self.num_slots
        self._starts = list(range(self.num_slots))
        self._turns = [0] * self.num_slots
        self._latent_NCHW = torch.zeros((self.num_slots, *self.pipeline.latent_shape), device=self.device)
        self._step_N = np.full(self.num_slots, -1, dtype=np.int64)  # -1: never reset
        self._prompt_id_N = np.zeros(self.num_slots, dtype=np.int64)
        self._texts = [""] * self.num_slots
        self._metadata: list[Mapping[str, Any]] = [{}] * self.num_slots
        self._in_range_N = torch.ones(self.num_slots, dtype=torch.bool, device=self.device)
        self._embedding: tuple[bytes, PromptEmbedding, int] | None = None

    @property
    def horizon(self) -> int:
        """T, the number of steps of an episode."""
        return self.kernel.num_steps

    def observation_space(self, *, prompt_embedding: bool = True) -> spaces.Dict:
        """The space of one slot's observation."""
        parts: dict[str, spaces.Space[Any]] = {
            "latent": _box(self.pipeline.latent_shape),
            "step": spaces.Discrete(self.horizon + 1),
            "prompt_id": spaces.Discrete(CAPACITY),
        }
        if prompt_embedding:
            parts["prompt_embedding"] = _box(self.pipeline.embedding_shape)
            if self.pipeline.pooled_shape is not None:
                parts["pooled_prompt_embedding"] = _box(self.pipeline.pooled_shape)
        return spaces.Dict(parts)

    def action_space(self) -> spaces.Space[npt.NDArray[np.float32]]:
        """The space of one slot's action."""
        return _box(self.pipeline.latent_shape)

    def reset(self, slots: Slots, seeds: Sequence[int | None], prompts: Sequence[str | None]) -> None:
        """Begin an episode in `slots`: draw the initial noise, then the prompt unless one is given.

        A slot with a seed starts its stream afresh. The noise is drawn first, so it is the same for every prompt.
        """
        shape = self.pipeline.latent_shape
        noise = np.empty((len(slots), *shape), dtype=np.float32)
        for row, (slot, seed, prompt) in enumerate(zip(slots.tolist(), seeds, prompts, strict=True)):
            if seed is not None:
                self._starts[slot], self._turns[slot] = seed, 0
            rng = self.rngs[slot]
            assert rng is not None
            rng.standard_normal(out=noise[row], dtype=np.float32)
            if prompt is None:
                index = self.prompt_sampler.index(rng, start=self._starts[slot], turn=self._turns[slot])
                if not 0 <= index < len(self.prompts):
                    raise ValueError(
                        f"prompt_sampler gave {index!r}, which is no position in {len(self.prompts)} prompts"
                    )
                self._texts[slot], self._metadata[slot] = self.prompts.texts[index], self.prompts.metadata[index]
            else:
                self._texts[slot], self._metadata[slot] = prompt, {}
            self._turns[slot] += 1
        self._prompt_id_N[slots] = self.pipeline.prompts.ids([self._texts[slot] for slot in slots.tolist()])
        rows_on_device = torch.from_numpy(slots).to(self.device)
        self._latent_NCHW[rows_on_device] = torch.from_numpy(noise).to(self.device)
        self._in_range_N[rows_on_device] = True
        self._step_N[slots] = 0

    def step(self, slots: Slots, action: object) -> Finished | None:
        """Make `action` (n, C, H, W) the latent of `slots`; the picture and reward of those that end.

        If the action or the reward is refused, nothing has changed.

        Raises:
            TypeError, ValueError: the action is not of the shape, or not finite and within the space.
            RewardError: the reward failed.
            gymnasium.error.ResetNeeded: a slot has no episode under way.
        """
        steps = self._step_N[slots]
        idle = slots[(steps < 0) | (steps >= self.horizon)]
        if len(idle):
            raise gymnasium.error.ResetNeeded(f"slot(s) {idle.tolist()} have no episode under way: call reset first")
        latent = self._check_action(action, len(slots))
        rows = np.flatnonzero(steps == self.horizon - 1)
        self._check_range(latent, slots, wait=bool(len(rows)))
        finished = self._finish(latent, slots, rows) if len(rows) else None
        if self._is_every(slots):
            self._latent_NCHW = latent
        else:
            self._latent_NCHW[torch.from_numpy(slots).to(self.device)] = latent
        self._step_N[slots] += 1
        return finished

    def observe(self, slots: Slots, *, prompt_embedding: bool = True) -> dict[str, Tensor]:
        """Observations of `slots` on the device; new tensors, but for the embeddings.

        `prompt_embedding` is the same tensor as long as the prompts are the same: a copy of it in every step would
        cost more than the rest of the environment. It is gathered anew if somebody wrote into it.
        """
        latent = (
            self._latent_NCHW.clone()
            if self._is_every(slots)
            else self._latent_NCHW[torch.from_numpy(slots).to(self.device)]
        )
        observation = {
            "latent": latent,
            "step": torch.from_numpy(self._step_N[slots]).to(self.device),
            "prompt_id": torch.from_numpy(self._prompt_id_N[slots]).to(self.device),
        }
        if prompt_embedding:
            observation |= self._gather(self._prompt_id_N[slots]).to_observation()
        return observation

    def text(self, slot: int) -> str:
        """The prompt of a slot."""
        return self._texts[slot]

    def pictures(self, slots: Slots) -> npt.NDArray[np.uint8]:
        """The current latents of `slots` decoded, (n, H, W, 3) uint8.

        Raises:
            gymnasium.error.ResetNeeded: a slot was never reset.
        """
        if bool((self._step_N[slots] < 0).any()):
            raise gymnasium.error.ResetNeeded("nothing to show yet: call reset first")
        return _to_uint8(self.pipeline.decode(self._latent_NCHW[torch.from_numpy(slots).to(self.device)]))

    def close(self) -> None:
        """Drop deferred rewards that are not being computed yet."""
        if self._pool is not None:
            self._pool.close()

    def _finish(self, latent: Tensor, slots: Slots, rows: Slots) -> Finished:
        whole = len(rows) == len(slots)
        images = self.pipeline.decode(latent if whole else latent[torch.from_numpy(rows).to(self.device)])
        prompts = [self._texts[slot] for slot in slots[rows].tolist()]
        metadata = [self._metadata[slot] for slot in slots[rows].tolist()]
        scores, pending = Scores(total=torch.zeros(len(rows)), terms={}), None
        if self._pool is None:
            scores = self.reward(images, prompts, metadata)
        else:
            pending = self._pool.submit(images, prompts, metadata)
        return Finished(
            rows=rows,
            prompts=prompts,
            images=_to_uint8(images),
            total=scores.total.numpy(),
            terms={name: values.numpy() for name, values in scores.terms.items()},
            pending=pending,
        )

    def _check_action(self, action: object, count: int) -> Tensor:
        """The action as a float32 tensor of our own on the device."""
        try:
            tensor = action if isinstance(action, Tensor) else torch.as_tensor(np.asarray(action))
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"action must be an array or tensor of numbers, got {type(action).__name__}") from error
        if tensor.is_complex() or tensor.dtype == torch.bool:
            raise TypeError(f"action must hold real numbers, got {tensor.dtype}")
        shape = (count, *self.pipeline.latent_shape)
        if tensor.shape != shape:
            raise ValueError(f"action must have shape {shape}, got {tuple(tensor.shape)}")
        return tensor.detach().to(self.device, torch.float32, copy=True)

    def _check_range(self, latent: Tensor, slots: Slots, *, wait: bool) -> None:
        """Refuse actions outside the space; off the CPU only when an episode ends, to wait for the device once."""
        flat = latent.flatten(1)
        low, high = flat.amin(1), flat.amax(1)  # aminmax(dim=1) takes twenty times as long
        inside = (low >= -LATENT_LIMIT) & (high <= LATENT_LIMIT)  # False for NaN
        if self.device.type != "cpu":
            index = torch.from_numpy(slots).to(self.device)
            inside &= self._in_range_N[index]
            self._in_range_N[index] = inside
            if not wait:
                return
        if not bool(inside.all()):
            outside = slots[~inside.cpu().numpy()].tolist()
            raise ValueError(
                f"action must be finite and within +-{LATENT_LIMIT:g}, which it is not in slot(s) {outside}: "
                "the policy has diverged"
            )

    def _is_every(self, slots: Slots) -> bool:
        return np.array_equal(slots, np.arange(self.num_slots))

    def _gather(self, prompt_ids: Slots) -> PromptEmbedding:
        key = prompt_ids.tobytes()
        if self._embedding is not None:
            known, embedding, version = self._embedding
            if known == key and _version(embedding) == version:
                return embedding
        embedding = self.pipeline.prompts.embeddings(prompt_ids)
        self._embedding = (key, embedding, _version(embedding))
        return embedding


def _version(embedding: PromptEmbedding) -> int:
    """Grows when somebody writes into the tensors."""
    return sum(tensor._version for tensor in embedding.to_observation().values())


def check_seed(seed: object) -> int | None:
    """Return `seed` as an int or None, else raise naming it."""
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed must be an int or None, got {seed!r}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    return int(seed)


def check_options(options: object, known: Sequence[str]) -> dict[str, Any]:
    """Return reset's `options` as a dict of known keys, else raise naming them."""
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise TypeError(f"options must be a dict or None, got {options!r}")
    unknown = [key for key in options if key not in known]
    if unknown:
        raise ValueError(f"options has unknown keys {unknown}; known are {list(known)}")
    return dict(options)


def _box(shape: tuple[int, ...]) -> spaces.Space[npt.NDArray[np.float32]]:
    return spaces.Box(-LATENT_LIMIT, LATENT_LIMIT, shape=shape, dtype=np.float32)


def _to_uint8(images_B3HW: Tensor) -> npt.NDArray[np.uint8]:
    return images_B3HW.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
