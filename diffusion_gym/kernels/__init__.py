"""Transition kernels: pure maths from a model output to the Gaussian over the next latent.

    kernel = make_kernel("ddim", scheduler_config, num_inference_steps=20, eta=1.0)
    mean   = kernel.mean(model_output, latent, step)    # (B, C, H, W) float32, gradient through the output
    action = kernel.sample(mean, noise, step)           # mean + sigma * noise
    logp   = kernel.log_prob(action, mean, step, reduction="mean")           # (B,) float32
    kl     = kernel.kl_divergence(mean, mean_ref, step, reduction="mean")    # (B,) float32
    kernel.timestep(step), kernel.sigma(step), kernel.predicted_x0(model_output, latent, step),
    kernel.num_steps

`step` is an int or an int64 tensor (B,) of decision indices 0..T-1 on the kernel's device, in any mixture.
Importing this package does not import diffusers.
"""

from collections.abc import Callable, Mapping
from typing import Any

from diffusion_gym.kernels.ddim import ddim_kernel
from diffusion_gym.kernels.ddpm import ddpm_kernel
from diffusion_gym.kernels.gaussian import REDUCTIONS, Reduction, kl_divergence, log_prob
from diffusion_gym.kernels.kernel import MIN_SIGMA, Kernel, Step

__all__ = [
    "MIN_SIGMA",
    "REDUCTIONS",
    "SAMPLERS",
    "Kernel",
    "Reduction",
    "Step",
    "ddim_kernel",
    "ddpm_kernel",
    "kl_divergence",
    "log_prob",
    "make_kernel",
]

SAMPLERS: dict[str, Callable[..., Kernel]] = {"ddim": ddim_kernel, "ddpm": ddpm_kernel}
"""The samplers by name."""

_REFUSED = {
    "euler_ancestral": (
        "its last step adds no noise (sigma_up = 0), so it has no density. The other steps are those of DDIM with "
        'eta=1 in other coordinates: use sampler="ddim", eta=1.0'
    ),
    "euler": "it is deterministic, so its steps have no density",
    "dpmsolver++": "it is deterministic and multistep, so its steps have no density",
    "pndm": "it is deterministic and multistep, so its steps have no density",
}

# Not the betas: those belong to the model's training.
_SCHEDULER_KEYS = frozenset(
    {
        "clip_sample",
        "clip_sample_range",
        "prediction_type",
        "rescale_betas_zero_snr",
        "set_alpha_to_one",
        "steps_offset",
        "thresholding",
        "timestep_spacing",
        "variance_type",
    }
)


def make_kernel(
    sampler: str | Mapping[str, Any],
    scheduler_config: Mapping[str, Any],
    num_inference_steps: int,
    eta: float | None = None,
) -> Kernel:
    """Build the kernel of a sampler.

    Args:
        sampler: "ddim" or "ddpm"; or a mapping {"name": ..., **overrides} whose other keys replace entries of
            `scheduler_config`, e.g. {"name": "ddim", "timestep_spacing": "trailing"}.
        scheduler_config: configuration of the model's diffusers scheduler (of any class).
        num_inference_steps: T.
        eta: noise level of DDIM, 0 < eta <= 1, by default 1. DDPM has no such choice: None or 1.

    Raises:
        ValueError, TypeError: an argument is not of these, or some step would have no density.
    """
    if isinstance(sampler, Mapping):
        overrides = {k: v for k, v in sampler.items() if k != "name"}
        name = sampler.get("name")
    else:
        overrides, name = {}, sampler
    if not isinstance(name, str):
        raise TypeError(f"sampler must be a name or a mapping with a 'name', got {sampler!r}")
    if name in _REFUSED:
        raise ValueError(f"sampler {name!r} cannot be a policy: {_REFUSED[name]}")
    if name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {sorted(SAMPLERS)}, got {name!r}")
    if eta is not None and (isinstance(eta, bool) or not isinstance(eta, int | float)):
        raise TypeError(f"eta must be a number, got {eta!r}")
    unknown = sorted(overrides.keys() - _SCHEDULER_KEYS)
    if unknown:
        raise ValueError(
            f"sampler has settings {unknown} that cannot be changed; those that can: {sorted(_SCHEDULER_KEYS)}"
        )
    if name != "ddim" and eta not in (None, 1):
        raise ValueError(f'eta must be 1 or left out with sampler="{name}", got {eta!r}')
    options = {"eta": float(eta)} if name == "ddim" and eta is not None else {}
    try:
        return SAMPLERS[name]({**scheduler_config, **overrides}, num_inference_steps, **options)
    except ValueError as error:
        if not overrides:
            raise
        raise ValueError(f"sampler={sampler!r}: {error}") from error
