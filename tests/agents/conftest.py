"""A small agent over the tiny model: four slots, three steps."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from tianshou.data import Collector
from tianshou.utils.torch_utils import policy_within_training_step

import diffusion_gym  # noqa: F401
from agents.common.actor import DenoisingActor
from agents.common.buffer import LatentReplayBuffer
from agents.common.lora import add_lora
from agents.common.policy import DenoisingPolicy
from agents.common.venv import BatchedVenv
from diffusion_gym.envs.vector import TextToImageVectorEnv


def redness(images: torch.Tensor, prompts: Any, metadata: Any) -> torch.Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 1].mean((1, 2))


@dataclass
class World:
    """An environment, a policy for it, and a collector that fills a buffer."""

    env: TextToImageVectorEnv
    policy: DenoisingPolicy
    buffer: Any
    collector: Collector[Any]
    num_steps: int

    def collect(self, seed: int = 0) -> None:
        """One rollout of whole episodes."""
        torch.manual_seed(seed)
        self.collector.reset(reset_buffer=False, gym_reset_kwargs={"seed": seed})
        self.collector.collect(n_step=len(self.collector.env) * self.num_steps)

    def update(self, algorithm: Any, batch_size: int | None = None, repeat: int = 1, seed: int = 0) -> Any:
        np.random.seed(seed)  # noqa: NPY002
        with policy_within_training_step(self.policy):
            return algorithm.update(buffer=self.buffer, batch_size=batch_size, repeat=repeat)

    def parameters(self) -> dict[str, torch.Tensor]:
        """Copies of what is trained."""
        return {n: p.detach().clone() for n, p in self.policy.named_parameters() if p.requires_grad}


def make_world(
    model: Path,
    *,
    num_envs: int = 4,
    num_steps: int = 3,
    lora: bool = True,
    reduction: Any = "mean",
    dtype: str = "float32",
    rollouts: int = 1,
    prompts: tuple[str, ...] = ("a cat", "a dog"),
    perturb: float = 0.0,
) -> World:
    env = gymnasium.make_vec(
        "TextToImage-v0",
        num_envs=num_envs,
        model=model,
        reward=redness,
        prompts=list(prompts),
        num_inference_steps=num_steps,
        device="cpu",
        dtype=dtype,
        prompt_embedding=False,
    )
    assert isinstance(env, TextToImageVectorEnv)
    torch.manual_seed(0)
    unet = env.pipeline.load_unet()
    if lora:
        add_lora(unet, rank=2, targets="all")
    else:
        unet.requires_grad_(True)
    if perturb:
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter.data += perturb * torch.randn_like(parameter)
    actor = DenoisingActor.from_pipeline(env.pipeline, env.kernel, unet=unet, guidance_scale=3.0)
    policy = DenoisingPolicy(actor=actor, action_space=env.single_action_space, reduction=reduction)
    buffer = LatentReplayBuffer(num_envs=num_envs, num_steps=num_steps, rollouts=rollouts)
    collector: Collector[Any] = Collector(policy, BatchedVenv(env), buffer)
    return World(env=env, policy=policy, buffer=buffer, collector=collector, num_steps=num_steps)


@pytest.fixture
def world(tiny_model: Path) -> Callable[..., World]:
    """Makes a `World` over the tiny model."""

    def make(**settings: Any) -> World:
        return make_world(tiny_model, **settings)

    return make


@pytest.fixture
def settings(tiny_model: Path, tiny_pipeline: Any, tmp_path: Path) -> dict[str, Any]:
    """Settings of a run that takes a second."""
    return {
        "out": tmp_path / "run",
        "model": str(tiny_model),
        "reward": "jpeg_incompressibility",
        "prompts": ("a cat", "a dog"),
        "steps": 3,
        "pictures": 4,
        "iterations": 2,
        "lora_rank": 2,
        "device": "cpu",
    }
