"""DDPM ancestral sampling (Ho et al. 2020, "Denoising Diffusion Probabilistic Models", equations 6 and 7).

    mean  = sqrt(abar_p) beta / (1 - abar_t) * x0 + sqrt(alpha) (1 - abar_p) / (1 - abar_t) * x
    alpha = abar_t / abar_p,  beta = 1 - alpha,  p = the next timestep of the schedule, abar_p = 1 after
    the last sigma^2 = beta ("fixed_large")  or  beta (1 - abar_p) / (1 - abar_t) ("fixed_small")

"fixed_small" has sigma = 0 at the last step, hence no density there. A configuration that does not name a
`variance_type` gets "fixed_large"; one that asks for "fixed_small" is refused.
"""

from collections.abc import Mapping
from typing import Any

import torch

from diffusion_gym.kernels.kernel import Kernel, build_kernel
from diffusion_gym.kernels.scheduler import clip_range, make_scheduler


def ddpm_kernel(scheduler_config: Mapping[str, Any], num_inference_steps: int) -> Kernel:
    """The kernel of `diffusers.DDPMScheduler.step`.

    Args:
        scheduler_config: configuration of any diffusers scheduler of the same noise schedule.
        num_inference_steps: T, from 1 to the number of training timesteps.

    Raises:
        ValueError: `num_inference_steps` is out of range, the variance is learned (sigma would be an
            output of the model, which this kernel does not have), or some step would have no density.
    """
    config = {"variance_type": "fixed_large", **scheduler_config}
    variance_type = config["variance_type"]
    if variance_type not in ("fixed_large", "fixed_small", "fixed_small_log"):
        raise ValueError(
            "scheduler variance_type must be 'fixed_large' (or 'fixed_small', 'fixed_small_log' where they have a "
            f"density), got {variance_type!r}: this kernel needs a sigma that the schedule alone decides"
        )
    scheduler = make_scheduler("DDPMScheduler", config, num_inference_steps)
    timesteps = scheduler.timesteps
    alpha_bar = scheduler.alphas_cumprod.double()
    at = alpha_bar[timesteps]
    ap = torch.cat([at[1:], torch.ones(1, dtype=at.dtype)])
    beta = 1 - at / ap
    variance = beta if variance_type == "fixed_large" else beta * (1 - ap) / (1 - at)
    # The scheduler adds no noise at timestep 0, whatever the variance.
    sigma = variance.clamp(min=0.0).sqrt() * (timesteps > 0)
    return build_kernel(
        "ddpm",
        timesteps=timesteps,
        alpha_bar=at,
        prediction_type=scheduler.config.prediction_type,
        sigma=sigma,
        mean_x0=ap.sqrt() * beta / (1 - at),
        mean_latent=(at / ap).sqrt() * (1 - ap) / (1 - at),
        mean_noise=torch.zeros_like(at),
        clip_x0=clip_range(scheduler.config),
        advice=(
            'For DDPM this is the last step: use variance_type="fixed_large" and steps_offset=1, that is '
            'sampler={"name": "ddpm", "variance_type": "fixed_large", "steps_offset": 1}, or sampler="ddim", which '
            "with eta=1 has the variance of fixed_small at every other step."
        ),
    )
