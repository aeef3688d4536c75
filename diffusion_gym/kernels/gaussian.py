"""Log-density and KL divergence of a diagonal Gaussian whose sigma is one number a sample.

Every function works in float32, whatever it is given (float64 stays float64), because at the last denoising
steps half precision cannot resolve a log-probability (its spacing there is wider than a PPO clip range).
"""

import math
from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["mean", "sum"]
REDUCTIONS: tuple[Reduction, ...] = ("mean", "sum")
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


def work_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype the maths is done in: float64 if any tensor is float64, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def check_reduction(reduction: str) -> Reduction:
    """Return `reduction` if it is "mean" or "sum", else raise ValueError."""
    if reduction not in REDUCTIONS:
        raise ValueError(f'reduction must be "mean" or "sum", got {reduction!r}')
    return reduction


def log_prob(action_BCHW: Tensor, mean_BCHW: Tensor, sigma_B111: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Log-density of Normal(mean, sigma^2 I) at `action`, one number a sample.

    Args:
        action_BCHW: the action that was taken, (B, ...). It is not detached here: detach it where the score
            function is wanted.
        mean_BCHW: the policy's mean, the same shape; carries the gradient.
        sigma_B111: standard deviation, (B, 1, ..., 1) or one number, greater than 0.
        reduction: "sum" is the log-density. "mean" divides it by the number of latent values; ratios of it
            are the D-th root of the density ratio. DDPO and DPOK use "mean" with a clip range of 1e-4: the
            reduction and the clip range are one choice.

    Returns:
        (B,) float32 (float64 if an input is float64).
    """
    check_reduction(reduction)
    dtype = work_dtype(action_BCHW, mean_BCHW)
    sigma = sigma_B111.to(dtype)
    z_BD = ((action_BCHW.to(dtype) - mean_BCHW.to(dtype)) / sigma).flatten(1)
    square_B = z_BD.square().mean(1) if reduction == "mean" else z_BD.square().sum(1)
    log_norm_B = sigma.log().flatten() + _LOG_SQRT_2PI
    return -0.5 * square_B - (log_norm_B if reduction == "mean" else log_norm_B * z_BD.shape[1])


def kl_divergence(
    mean_BCHW: Tensor, reference_BCHW: Tensor, sigma_B111: Tensor, *, reduction: Reduction = "mean"
) -> Tensor:
    """Exact KL(Normal(mean, sigma^2 I) || Normal(reference, sigma^2 I)) = |mean - reference|^2 / (2 sigma^2).

    Args:
        mean_BCHW: mean of the policy, (B, ...).
        reference_BCHW: mean of the reference policy under the same sigma, the same shape.
        sigma_B111: standard deviation, (B, 1, ..., 1) or one number, greater than 0.
        reduction: "sum" is the KL in nats; "mean" divides it by the number of latent values.

    Returns:
        (B,) float32 (float64 if an input is float64).
    """
    check_reduction(reduction)
    dtype = work_dtype(mean_BCHW, reference_BCHW)
    z_BD = ((mean_BCHW.to(dtype) - reference_BCHW.to(dtype)) / sigma_B111.to(dtype)).flatten(1)
    return 0.5 * (z_BD.square().mean(1) if reduction == "mean" else z_BD.square().sum(1))
