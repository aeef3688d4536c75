"""The single environment: one denoising episode at a time."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch

from diffusion_gym.envs.core import EMBEDDED, RENDER_MODES, DenoisingCore, check_options, check_seed
from diffusion_gym.kernels import Kernel
from diffusion_gym.pipelines import Pipeline
from diffusion_gym.prompts import PromptSampler, PromptSet
from diffusion_gym.prompts.prompt_set import check_prompt
from diffusion_gym.rewards import RewardSpec, WeightedReward

Observation = dict[str, Any]
_SLOT = np.zeros(1, dtype=np.int64)


class TextToImageEnv(gymnasium.Env[Observation, npt.NDArray[np.float32]]):
    """The denoising process of a text-to-image diffusion model, one step a decision.

    ## Description
    The Markov decision process of DPOK (Fan et al. 2023): the state is a prompt, a noisy latent and how many denoising
    steps were taken; the action is the next, less noisy latent; after T steps the latent is decoded to a picture and
    a reward judges it. The UNet that proposes latents is the policy's, not the environment's, so a step is
    deterministic: the action becomes the latent. What a policy needs to propose actions (schedule, prompt embeddings,
    UNet) it finds in the attributes `kernel` and `pipeline`.

    ## Action Space
    `Box(-1000, 1000, (C, H, W), float32)`: the next latent. The bounds only catch divergence: a working model stays
    far within. Actions are taken as they are, in float32, never clipped or scaled.

    ## Observation Space
    `Dict` of:

    | key | space | meaning |
    |---|---|---|
    | `prompt_embedding` | `Box (L, D) float32` | last hidden state of the text encoder for the prompt |
    | `pooled_prompt_embedding` | `Box (P,) float32` | the pooled embedding that SDXL takes as well; only there |
    | `latent` | `Box (C, H, W) float32` | the current latent |
    | `step` | `Discrete(T + 1)` | steps taken so far; T only in the last observation |
    | `prompt_id` | `Discrete(65536)` | the prompt's position in `pipeline.prompts`, for this process |

    ## Rewards
    0 until the last step, then the weighted sum of the reward terms for the decoded picture. With discount 1 the
    return of every step is the final reward.

    ## Starting State
    The latent is standard normal noise. The prompt comes from the prompt set by the prompt sampler, or from
    `reset(options={"prompt": ...})`; a given prompt does not change the noise of a seed.

    ## Episode End
    The episode terminates after T = `num_inference_steps` steps and is never truncated.

    ## Information
    `reset` returns {"prompt": str}; the last step returns {"prompt": str, "image": (H, W, 3) uint8,
    "reward_terms": {name: float}}, each term without its weight; other steps return {}.

    ## Arguments
    All are keyword arguments of `gymnasium.make("TextToImage-v0", ...)`.

    * `model` ("emoji"): a directory in diffusers' Stable Diffusion format, a hub id, or "emoji", the embedded model.
    * `reward` (None): a name, a callable `(images (B, 3, H, W) in [0, 1], prompts, metadata) -> (B,)`, {name: weight},
      or a list of terms; see `diffusion_gym.rewards`. None is "emoji_preference", for the embedded model only.
    * `prompts` (None): a name, a .txt or .jsonl file, or a list; see `diffusion_gym.prompts`. None is "emoji/train",
      for the embedded model only.
    * `prompt_sampler` (None): "uniform", "cyclic", "weighted" or a PromptSampler. None is weighted if the prompts have
      weights, else uniform.
    * `num_inference_steps` (None): T; None is what the model recommends (20 unless its `sampling.json` says otherwise).
    * `sampler` ("ddim"): "ddim", "ddpm", or {"name": ..., **scheduler settings}; see `diffusion_gym.kernels`.
    * `eta` (None): noise level of DDIM, 0 < eta <= 1; None is what the model recommends (1).
    * `device` ("auto"): CUDA where there is one, else the CPU; or a torch device.
    * `dtype` ("float32"): what the networks run in; latents stay float32.
    * `render_mode` (None): "rgb_array" makes `render` return the decoded current latent, (H, W, 3) uint8.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        FileNotFoundError: weights of the embedded world are missing.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        *,
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
        self._core = DenoisingCore(
            num_slots=1,
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
        )
        self.render_mode = render_mode
        self.observation_space = self._core.observation_space()
        self.action_space = self._core.action_space()

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

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: starts the random stream (noise and prompts) afresh.
            options: {"prompt": str} chooses the prompt; it need not be in the prompt set.
        """
        seed = check_seed(seed)
        prompt = check_options(options, ("prompt",)).get("prompt")
        if prompt is not None:
            check_prompt(prompt, "options['prompt']")
        super().reset(seed=seed)
        self._core.rngs[0] = self.np_random
        self._core.reset(_SLOT, [seed], [prompt])
        return self._observe(), {"prompt": self._core.text(0)}

    def step(
        self, action: npt.NDArray[np.float32] | torch.Tensor
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Make `action`, (C, H, W), the current latent.

        Raises:
            TypeError, ValueError: the action is not of the shape, or not finite and within the space.
            RewardError: the reward failed; names the reward and the prompt. The step was not taken.
            gymnasium.error.ResetNeeded: there is no episode under way.
        """
        finished = self._core.step(_SLOT, _with_batch(action, self.action_space.shape))
        if finished is None:
            return self._observe(), 0.0, False, False, {}
        info = {
            "prompt": finished.prompts[0],
            "image": finished.images[0],
            "reward_terms": {name: float(values[0]) for name, values in finished.terms.items()},
        }
        return self._observe(), float(finished.total[0]), True, False, info

    def render(self) -> npt.NDArray[np.uint8] | None:
        """The current latent decoded, (H, W, 3) uint8; None without a render mode."""
        if self.render_mode is None:
            gymnasium.logger.warn('render() shows nothing without render_mode: make the environment with "rgb_array"')
            return None
        return self._core.pictures(_SLOT)[0]

    def _observe(self) -> Observation:
        tensors = self._core.observe(_SLOT)
        arrays = {name: tensor[0].cpu().numpy().copy() for name, tensor in tensors.items()}
        return {**arrays, "step": np.int64(arrays["step"]), "prompt_id": np.int64(arrays["prompt_id"])}


def _with_batch(action: Any, shape: tuple[int, ...] | None) -> Any:
    """The action with a batch axis of 1; the core checks the rest."""
    if isinstance(action, torch.Tensor):
        array: Any = action
    else:
        try:
            array = np.asarray(action)
        except ValueError as error:
            raise ValueError(f"action must be an array of shape {shape}, got a ragged one") from error
    if array.shape != shape:
        raise ValueError(f"action must have shape {shape}, got {tuple(array.shape)}")
    return array[None]
