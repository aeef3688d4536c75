"""How much memory does a rollout of Stable Diffusion's size take, stored and in an update?

    python -m benchmarks.buffer_memory            # 64 pictures, 50 steps, latents (4, 64, 64)

Fills the project's buffer and reads every transition in micro-batches, as an update does. Prints JSON: bytes stored,
and how far the process's peak memory rose above that.
"""

import json
import resource
from typing import Any

import numpy as np
import torch
from tianshou.data import Batch

from agents.common.actor import DenoisingActor
from agents.common.buffer import LatentReplayBuffer
from agents.common.rollout import Rollout, chunks
from diffusion_gym.kernels import make_kernel

SHAPE = (4, 64, 64)
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}


def fill(buffer: LatentReplayBuffer, shape: tuple[int, ...]) -> LatentReplayBuffer:
    """Fill a buffer with one rollout of noise, as a Collector would."""
    num_envs = buffer.buffer_num
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((num_envs, *shape), dtype=np.float32)
    for step in range(buffer.num_steps):
        action = rng.standard_normal((num_envs, *shape), dtype=np.float32)
        last = step == buffer.num_steps - 1
        buffer.add(
            Batch(
                obs=Batch(latent=latent, step=np.full(num_envs, step), prompt_id=np.zeros(num_envs, dtype=np.int64)),
                act=action,
                rew=np.full(num_envs, float(last)),
                terminated=np.full(num_envs, last),
                truncated=np.zeros(num_envs, dtype=bool),
                obs_next=Batch(latent=action),
                info=Batch(),
                policy=Batch(log_prob=torch.zeros(num_envs)),
            )
        )
        latent = action
    return buffer


def peak() -> int:
    """Peak memory of the process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(num_envs: int = 64, num_steps: int = 50, micro_batch_size: int = 16) -> dict[str, Any]:
    """Fill, read, and report."""
    actor = DenoisingActor(torch.nn.Identity(), make_kernel("ddim", SCHEDULE, num_steps), None)
    before = peak()
    buffer = fill(LatentReplayBuffer(num_envs=num_envs, num_steps=num_steps), SHAPE)
    filled = peak()
    buffer.hasnull()
    rollout = Rollout(buffer, actor)
    for rows in chunks(np.random.default_rng(0).permutation(len(rollout)), micro_batch_size):
        rollout.gather(rows)
    mib = 2**20
    return {
        "pictures": num_envs,
        "steps": num_steps,
        "latent": SHAPE,
        "stored_mib": round(buffer.nbytes() / mib, 1),
        "peak_rise_while_filling_mib": round((filled - before) / mib, 1),
        "peak_rise_in_update_mib": round((peak() - filled) / mib, 1),
    }


def main() -> None:
    """Print the measurement."""
    print(json.dumps(measure(), indent=2))


if __name__ == "__main__":
    main()
