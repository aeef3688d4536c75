"""The transition kernel: how one denoising step turns a model output into a Gaussian over the next latent.

For every supported sampler the predicted clean latent and the mean of the next one are linear in the latent
and in the model output, with coefficients that depend on the step alone:

    x0_k   = x0_latent[k] * x + x0_output[k] * out
    mean_k = mean_latent[k] * x + mean_output[k] * out        next latent ~ Normal(mean_k, sigma[k]^2 I)

If the scheduler clips x0 ("clip_sample"), the mean moves by mean_x0[k] * (clip(x0_k) - x0_k). A sampler is
therefore a table of numbers, computed once (see `ddim.py`, `ddpm.py`), and a step is two fused
multiplications. Every function here is pure, takes any mixture of step indices in a batch, passes gradients
through the model output, and never waits for the device.
"""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from diffusion_gym.kernels import gaussian
from diffusion_gym.kernels.gaussian import Reduction, work_dtype

Step = int | Tensor
"""Which of the T decisions: one index for the whole batch, or an int64 tensor (B,) on the kernel's device."""

MIN_SIGMA = 1e-6
"""Below this, rounding a latent to float32 moves it by as much as the noise does: no usable density."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Kernel:
    """A sampler as per-step tensors: T Gaussian decisions, k = 0 (pure noise) to T - 1 (the clean latent).

    Attributes:
        sampler: name of the sampler, e.g. "ddim".
        timesteps_T: (T,) int64, the diffusion timestep the model is asked at, falling.
        sigma_T: (T,) float32, standard deviation of the next latent, all greater than 0.
        x0_latent_T: (T,) float32, the coefficient of the latent in the predicted clean latent.
        x0_output_T: (T,) float32, the coefficient of the model output in it.
        mean_latent_T: (T,) float32, the coefficient of the latent in the mean.
        mean_output_T: (T,) float32, the coefficient of the model output in the mean.
        mean_x0_T: (T,) float32, how the mean follows the predicted clean latent; used only with `clip_x0`.
        clip_x0: the range +-c that x0 is clipped to, or None.
    """

    sampler: str
    timesteps_T: Tensor
    sigma_T: Tensor
    x0_latent_T: Tensor
    x0_output_T: Tensor
    mean_latent_T: Tensor
    mean_output_T: Tensor
    mean_x0_T: Tensor
    clip_x0: float | None = None

    @property
    def num_steps(self) -> int:
        """T, the number of decisions in an episode."""
        return len(self.timesteps_T)

    @property
    def device(self) -> torch.device:
        """Where the tables lie."""
        return self.sigma_T.device

    def to(self, device: torch.device | str) -> Self:
        """The same kernel with its tables on `device`."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name.endswith("_T")}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})

    def timestep(self, step: Step) -> Tensor:
        """Diffusion timestep of `step`: int64, (B,) for a (B,) step and () for an int."""
        return self.timesteps_T[step]

    def sigma(self, step: Step) -> Tensor:
        """Standard deviation at `step`, float32: (B, 1, 1, 1) for a (B,) step and () for an int."""
        return _column(self.sigma_T, step)

    def predicted_x0(self, model_output_BCHW: Tensor, latent_BCHW: Tensor, step: Step) -> Tensor:
        """The clean latent the model output implies, clipped if the scheduler clips; (B, C, H, W) float32."""
        x0 = _mix(self.x0_latent_T, latent_BCHW, self.x0_output_T, model_output_BCHW, step)
        return x0 if self.clip_x0 is None else x0.clamp(-self.clip_x0, self.clip_x0)

    def mean(self, model_output_BCHW: Tensor, latent_BCHW: Tensor, step: Step) -> Tensor:
        """Mean of the next latent.

        Args:
            model_output_BCHW: what the denoiser returned after guidance; carries the gradient.
            latent_BCHW: the current latent.
            step: an int, or int64 (B,) with any mixture of steps, each in 0..T-1.

        Returns:
            (B, C, H, W) float32 (float64 if an input is float64).
        """
        mean = _mix(self.mean_latent_T, latent_BCHW, self.mean_output_T, model_output_BCHW, step)
        if self.clip_x0 is None:
            return mean
        x0 = _mix(self.x0_latent_T, latent_BCHW, self.x0_output_T, model_output_BCHW, step)
        shift = x0.clamp(-self.clip_x0, self.clip_x0) - x0
        return mean + _column(self.mean_x0_T, step).to(mean.dtype) * shift

    def sample(self, mean_BCHW: Tensor, noise_BCHW: Tensor, step: Step) -> Tensor:
        """The next latent, mean + sigma * noise, for standard normal `noise`; float32."""
        dtype = work_dtype(mean_BCHW)
        return torch.addcmul(mean_BCHW.to(dtype), self.sigma(step).to(dtype), noise_BCHW.to(dtype))

    def log_prob(self, action_BCHW: Tensor, mean_BCHW: Tensor, step: Step, *, reduction: Reduction = "mean") -> Tensor:
        """Log-density of `action` under Normal(mean, sigma_k), (B,) float32; see `gaussian.log_prob`."""
        return gaussian.log_prob(action_BCHW, mean_BCHW, self.sigma(step), reduction=reduction)

    def kl_divergence(
        self, mean_BCHW: Tensor, reference_BCHW: Tensor, step: Step, *, reduction: Reduction = "mean"
    ) -> Tensor:
        """Exact KL between two policies that share sigma_k, (B,) float32; see `gaussian.kl_divergence`."""
        return gaussian.kl_divergence(mean_BCHW, reference_BCHW, self.sigma(step), reduction=reduction)

    def kl_weight(self, step: Step) -> Tensor:
        """The w in KL = w |out - out_ref|^2 (sum over the latent, no clipping): mean_output^2 / (2 sigma^2).

        For DDIM with eta = 1 this is (1 - alpha) / (2 alpha (1 - abar_prev)), alpha = abar_t / abar_prev.
        DPOK's released code leaves it out.
        """
        return _column(self.mean_output_T, step).square() / (2.0 * self.sigma(step).square())


def build_kernel(
    sampler: str,
    *,
    timesteps: Tensor,
    alpha_bar: Tensor,
    prediction_type: str,
    sigma: Tensor,
    mean_x0: Tensor,
    mean_latent: Tensor,
    mean_noise: Tensor,
    clip_x0: float | None,
    advice: str,
) -> Kernel:
    """Compose a sampler's mean with the prediction type and check that every step has a density.

    The sampler is given as mean = mean_x0 * x0 + mean_latent * x + mean_noise * eps, all (T,) float64.

    Args:
        sampler: name for error messages.
        timesteps: (T,) int64.
        alpha_bar: (T,) float64, the cumulative alpha product at each timestep.
        prediction_type: "epsilon", "v_prediction" or "sample".
        sigma: (T,) float64.
        mean_x0: coefficient of the predicted clean latent.
        mean_latent: coefficient of the current latent.
        mean_noise: coefficient of the predicted noise.
        clip_x0: clipping range of the predicted clean latent, or None.
        advice: what to change where sigma is 0, for the error message.

    Raises:
        ValueError: the prediction type is unknown, a coefficient is not finite, or sigma is 0 at some step.
    """
    signal, spread = alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt()
    zero, one = torch.zeros_like(signal), torch.ones_like(signal)
    # x0 = x0_latent * x + x0_output * out, and the same for the noise.
    if prediction_type == "epsilon":
        x0_latent, x0_output, noise_latent, noise_output = 1.0 / signal, -spread / signal, zero, one
    elif prediction_type == "v_prediction":
        x0_latent, x0_output, noise_latent, noise_output = signal, -spread, spread, signal
    elif prediction_type == "sample":
        x0_latent, x0_output, noise_latent, noise_output = zero, one, 1.0 / spread, -signal / spread
    else:
        raise ValueError(
            f"scheduler prediction_type must be 'epsilon', 'v_prediction' or 'sample', got {prediction_type!r}"
        )
    table = {
        "sigma_T": sigma,
        "x0_latent_T": x0_latent,
        "x0_output_T": x0_output,
        "mean_latent_T": mean_x0 * x0_latent + mean_latent + mean_noise * noise_latent,
        "mean_output_T": mean_x0 * x0_output + mean_noise * noise_output,
        "mean_x0_T": mean_x0,
    }
    for name, values in table.items():
        if not bool(values.isfinite().all()):
            k = int((~values.isfinite()).nonzero()[0])
            raise ValueError(
                f"the schedule has no finite {name.removesuffix('_T')} at step {k} (timestep {int(timesteps[k])}) for "
                f"sampler={sampler!r} and prediction_type={prediction_type!r}; choose another sampler, eta or "
                "num_inference_steps"
            )
    if bool((sigma < MIN_SIGMA).any()):
        k = int((sigma < MIN_SIGMA).nonzero()[0])
        raise ValueError(
            f"sampler={sampler!r} adds no noise at step {k} of {len(sigma)} (timestep {int(timesteps[k])}, sigma "
            f"{float(sigma[k]):.3g}): a step without noise has no density, hence no log-probability, ratio or KL. "
            f"{advice}"
        )
    tables = {name: values.to(torch.float32) for name, values in table.items()}
    return Kernel(sampler=sampler, timesteps_T=timesteps.to(torch.int64), clip_x0=clip_x0, **tables)


def _column(table_T: Tensor, step: Step) -> Tensor:
    """The entries of a per-step table, shaped to broadcast over (B, C, H, W)."""
    value = table_T[step]
    return value if value.ndim == 0 else value.view(-1, 1, 1, 1)


def _mix(a_T: Tensor, x_BCHW: Tensor, b_T: Tensor, y_BCHW: Tensor, step: Step) -> Tensor:
    """a_k x + b_k y in float32 (float64 if either is)."""
    dtype = work_dtype(x_BCHW, y_BCHW)
    scaled = _column(a_T, step).to(dtype) * x_BCHW.to(dtype)
    return torch.addcmul(scaled, _column(b_T, step).to(dtype), y_BCHW.to(dtype))
