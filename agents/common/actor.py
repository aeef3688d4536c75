"""The actor: UNet with guidance, and the sampler's transition kernel."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from diffusion_gym.kernels import Kernel
from diffusion_gym.pipelines import Denoiser, Pipeline, PromptBank, PromptEmbedding


class DenoisingActor(nn.Module):
    """Observation -> (mean, sigma) of the next latent, as Tianshou's actors are called.

    It stays in eval mode whatever Tianshou asks for: dropout in the update would make the ratio to the rollout differ
    from 1 before anything was learned.

    Args:
        denoiser: UNet with guidance; its trainable parameters are the policy's.
        kernel: the environment's transition kernel, on the denoiser's device (`env.kernel`).
        prompts: the prompt bank behind the observations' `prompt_id` (`env.pipeline.prompts`).
    """

    def __init__(self, denoiser: nn.Module, kernel: Kernel, prompts: PromptBank | None) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.kernel = kernel
        self.prompts = prompts
        self._gathered: tuple[bytes, PromptEmbedding] | None = None
        self.eval()

    @classmethod
    def from_pipeline(
        cls,
        pipeline: Pipeline,
        kernel: Kernel,
        *,
        unet: nn.Module | None = None,
        guidance_scale: float | None = None,
        unconditional_gradient: bool = True,
    ) -> Self:
        """The actor of a pipeline, around `unet` (a newly loaded, frozen one if None).

        For the other arguments see `diffusion_gym.pipelines.Denoiser`.
        """
        denoiser: Denoiser = pipeline.denoiser(
            unet, guidance_scale=guidance_scale, unconditional_gradient=unconditional_gradient
        )
        return cls(denoiser, kernel, pipeline.prompts)

    @property
    def unet(self) -> Any:
        """The UNet."""
        return self.denoiser.unet

    @property
    def dtype(self) -> torch.dtype:
        """What the UNet runs in."""
        return getattr(self.denoiser, "dtype", torch.float32)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode."""
        return super().train(False)

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> tuple[tuple[Tensor, Tensor], Any]:
        """Mean (B, C, H, W) float32 and sigma (B, 1, 1, 1) of the next latent; and `state`, unused.

        Args:
            obs: observations with `latent`, `step`, and `prompt_embedding` or `prompt_id`; arrays or tensors.
            state: handed through.
            info: unused.
        """
        latent_BCHW, step_B = self.latent_and_step(obs)
        mean_BCHW, _ = self.mean_and_output(latent_BCHW, step_B, self.embedding(obs))
        return (mean_BCHW, self.kernel.sigma(step_B)), state

    def mean_and_output(
        self, latent_BCHW: Tensor, step_B: Tensor, embedding: PromptEmbedding | None
    ) -> tuple[Tensor, Tensor]:
        """Mean of the next latent and the guided model output it comes from, both (B, C, H, W) float32."""
        output = self.denoiser(latent_BCHW, self.kernel.timestep(step_B), embedding)
        return self.kernel.mean(output, latent_BCHW, step_B), output

    def latent_and_step(self, obs: Any) -> tuple[Tensor, Tensor]:
        """Latents (B, C, H, W) float32 and steps (B,) int64 of observations, on the device."""
        device = self.kernel.device
        latent = torch.as_tensor(obs.latent, dtype=torch.float32, device=device)
        return latent, torch.as_tensor(obs.step, dtype=torch.int64, device=device)

    def embedding(self, obs: Any) -> PromptEmbedding | None:
        """Embeddings of the B prompts: those observed, else those of the observed ids; the last gather is kept."""
        if "prompt_embedding" in obs:
            return PromptEmbedding.from_observation(obs, self.kernel.device)
        if self.prompts is None:
            return None
        ids_B = torch.as_tensor(obs.prompt_id, dtype=torch.int64).cpu()
        key = ids_B.numpy().tobytes()
        if self._gathered is None or self._gathered[0] != key:
            self._gathered = (key, self.prompts.embeddings(ids_B))
        return self._gathered[1]
