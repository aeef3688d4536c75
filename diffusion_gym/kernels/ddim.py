"""DDIM with noise (Song et al. 2021, "Denoising Diffusion Implicit Models", equations 12 and 16).

    sigma = eta * sqrt((1 - abar_p) / (1 - abar_t)) * sqrt(1 - abar_t / abar_p)
    mean  = sqrt(abar_p) * x0 + sqrt(1 - abar_p - sigma^2) * eps            p = the timestep before t

eta = 1 is the sampler of DDPO, DPOK and their followers. It is also Euler ancestral in other coordinates:
with x' = x / sqrt(abar) and s^2 = (1 - abar) / abar, the two steps are the same Gaussian.
"""

from collections.abc import Mapping
from typing import Any

import torch

from diffusion_gym.kernels.kernel import Kernel, build_kernel
from diffusion_gym.kernels.scheduler import clip_range, make_scheduler


def ddim_kernel(scheduler_config: Mapping[str, Any], num_inference_steps: int, eta: float = 1.0) -> Kernel:
    """The kernel of `diffusers.DDIMScheduler.step(..., eta=eta)`.

    Args:
        scheduler_config: configuration of any diffusers scheduler of the same noise schedule.
        num_inference_steps: T, from 1 to the number of training timesteps.
        eta: noise level, 0 < eta <= 1.

    Raises:
        ValueError: an argument is out of range, or some step would have no density: eta is 0, or the last
            step lands on abar = 1 (`set_alpha_to_one`) or does not move (timestep 0 with `steps_offset=0`).
    """
    if not 0.0 < eta <= 1.0:
        raise ValueError(
            f"eta must be greater than 0 and at most 1, got {eta!r}: with eta=0 DDIM is deterministic and its steps "
            "have no density"
        )
    scheduler = make_scheduler("DDIMScheduler", scheduler_config, num_inference_steps)
    timesteps = scheduler.timesteps
    previous = timesteps - scheduler.config.num_train_timesteps // num_inference_steps
    at = scheduler.alphas_cumprod[timesteps]
    ap = scheduler.alphas_cumprod[previous.clamp(min=0)].where(previous >= 0, scheduler.final_alpha_cumprod)
    # In float32, as the scheduler does it: 1 - at / ap cancels at the last steps, and the two should agree
    # there.
    sigma = eta * ((1 - ap) / (1 - at) * (1 - at / ap)).clamp(min=0.0).sqrt()
    return build_kernel(
        "ddim",
        timesteps=timesteps,
        alpha_bar=at.double(),
        prediction_type=scheduler.config.prediction_type,
        sigma=sigma.double(),
        mean_x0=ap.double().sqrt(),
        mean_latent=torch.zeros_like(ap, dtype=torch.float64),
        mean_noise=(1 - ap - sigma.square()).clamp(min=0.0).sqrt().double(),
        clip_x0=clip_range(scheduler.config),
        advice=(
            "For DDIM this is the last step: use a scheduler configuration with set_alpha_to_one=False and "
            'steps_offset=1, for instance sampler={"name": "ddim", "set_alpha_to_one": False, "steps_offset": 1}.'
        ),
    )
