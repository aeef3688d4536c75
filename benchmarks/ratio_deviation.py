"""How far is the ratio from 1 before any update, in micro-batches of another size than the rollout's?

    python -m benchmarks.ratio_deviation [--model DIR] [--steps 50] [--pictures 8]

For the UNet in float32 (with its adapters apart, and merged into the weights in the rollout, as in training), bfloat16
and float16, and micro-batches of several sizes, prints the largest |ratio - 1| under mean reduction, and the same in
the rollout's own geometry (one denoising step of all pictures at once), as JSON. The policy is the pretrained model
with adapters moved off zero, so that they take part.
"""

import argparse
import json
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from tianshou.data import Collector

from agents.common.actor import DenoisingActor
from agents.common.buffer import LatentReplayBuffer
from agents.common.lora import add_lora, merged_adapters
from agents.common.policy import DenoisingPolicy
from agents.common.rollout import Index, Rollout, chunks
from agents.common.venv import BatchedVenv
from diffusion_gym.envs.vector import TextToImageVectorEnv

SIZES = (1, 2, 3, 8, 32, 64)
DTYPES = ("float32", "bfloat16", "float16")


def deviation(rollout: Rollout, parts: list[Index]) -> float:
    """The largest |ratio - 1| over micro-batches."""
    actor, worst = rollout.actor, 0.0
    for rows in parts:
        t = rollout.gather(rows)
        with torch.no_grad():
            mean, _ = actor.mean_and_output(t.latent_BCHW, t.step_B, t.embedding)
            log_prob = actor.kernel.log_prob(t.action_BCHW, mean, t.step_B, reduction="mean")
        worst = max(worst, float((torch.exp(log_prob - t.log_prob_B) - 1).abs().max()))
    return worst


def measure(
    model: str, *, steps: int, pictures: int, dtype: str, device: str, merged: bool = False
) -> dict[str, float]:
    """One rollout, rescored in micro-batches of each size."""
    torch.manual_seed(0)
    env = TextToImageVectorEnv(
        num_envs=pictures,
        model=model,
        reward="jpeg_compressibility",
        prompts=["a green rabbit", "a cat and a dog"],
        num_inference_steps=steps,
        device=device,
        dtype=dtype,
        prompt_embedding=False,
    )
    unet: Any = env.pipeline.load_unet()
    add_lora(unet, rank=4, targets="all")
    for parameter in unet.parameters():
        if parameter.requires_grad:
            parameter.data += 0.01 * torch.randn_like(parameter)
    actor = DenoisingActor.from_pipeline(env.pipeline, env.kernel, unet=unet)
    policy = DenoisingPolicy(actor=actor, action_space=env.single_action_space)
    buffer = LatentReplayBuffer(num_envs=pictures, num_steps=steps)
    collector: Collector[Any] = Collector(policy, BatchedVenv(env), buffer)
    collector.reset(gym_reset_kwargs={"seed": 0})
    with merged_adapters(unet) if merged else nullcontext():
        collector.collect(n_step=pictures * steps)
    rollout = Rollout(buffer, actor)
    shuffled = np.random.default_rng(0).permutation(len(rollout))
    found = {f"micro_batch_{size}": deviation(rollout, chunks(shuffled, size)) for size in SIZES}
    own = [np.flatnonzero(rollout.step_I == step) for step in range(steps)]
    return {"rollout_geometry": deviation(rollout, own), **found}


def main() -> None:
    """Print the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    settings = {"steps": given.steps, "pictures": given.pictures, "device": given.device}
    result = {dtype: measure(given.model, dtype=dtype, **settings) for dtype in DTYPES}
    result["float32, adapters merged"] = measure(given.model, dtype="float32", merged=True, **settings)
    print(json.dumps({"model": given.model, **settings, **result}, indent=2))


if __name__ == "__main__":
    main()
