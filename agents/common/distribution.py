"""The distribution of the next latent."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from diffusion_gym.kernels import Reduction, log_prob


class LatentGaussian(Distribution):
    """Normal(mean, sigma^2 I) over a latent, one sigma a sample.

    Its log-probability is one number a sample, so stock algorithms need no `Independent`; its `stddev` is (B, 1), since
    Tianshou's Collector keeps every `stddev` it sees and a whole latent of them would cost more than the trajectory.

    Args:
        mean_BCHW: mean, float32; may carry a gradient.
        sigma_B111: standard deviation, greater than 0.
        reduction: "sum" is the log-density; "mean" divides it (and the entropy) by the number of latent values. The
            clip range of a ratio belongs to the reduction: 1e-4 on the mean over the 16,384 values of Stable Diffusion
            is 1.64 on the sum.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    has_rsample = False

    def __init__(self, mean_BCHW: Tensor, sigma_B111: Tensor, *, reduction: Reduction = "mean") -> None:
        self.loc = mean_BCHW
        self.sigma = sigma_B111
        self.reduction: Reduction = reduction
        super().__init__(mean_BCHW.shape[:1], mean_BCHW.shape[1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The mean, (B, C, H, W)."""
        return self.loc

    @property
    def mode(self) -> Tensor:
        """The mean, (B, C, H, W): the sampler without its noise, which draws other pictures."""
        return self.loc

    @property
    def stddev(self) -> Tensor:
        """Sigma, (B, 1)."""
        return self.sigma.reshape(-1, 1).expand(len(self.loc), 1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Mean plus sigma times noise from torch's global stream, float32, without gradient."""
        shape = torch.Size(sample_shape) + self.loc.shape
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return torch.addcmul(self.loc.expand(shape), self.sigma, noise)

    def log_prob(self, value: Tensor) -> Tensor:
        """Reduced log-density of latents (B, C, H, W), (B,) float32; `value` should carry no gradient."""
        return log_prob(value, self.loc, self.sigma, reduction=self.reduction)

    def entropy(self) -> Tensor:
        """Reduced entropy, (B,); constant, since the schedule sets sigma."""
        size = 1 if self.reduction == "mean" else self.event_shape.numel()
        return (0.5 + 0.5 * torch.log(2 * torch.pi * self.stddev[:, 0].square())) * size
