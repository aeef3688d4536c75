"""The UNet with classifier-free guidance (Ho & Salimans 2022) in one batched call."""

import torch
from torch import Tensor, nn


class Denoiser(nn.Module):
    """(latent, timestep, prompt embedding) -> guided model output; guidance is part of the policy.

    out = out_uncond + guidance_scale * (out_cond - out_uncond), as StableDiffusionPipeline combines them.
    Use the same denoiser for the rollout and for the update: another guidance scale is another policy.

    Args:
        unet: the UNet, with or without adapters; it stays a submodule (`self.unet`), so its trainable
            parameters are this module's.
        unconditional_LD: embedding of the empty prompt, (L, D).
        guidance_scale: 1 or more. At 1 only the conditional half runs.
        unconditional_gradient: False runs the unconditional half apart and without gradient. Training
            becomes about a third cheaper and its gradient another one; rollout and update still agree.
    """

    unconditional_LD: Tensor

    def __init__(
        self,
        unet: nn.Module,
        unconditional_LD: Tensor,
        *,
        guidance_scale: float,
        unconditional_gradient: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(guidance_scale, bool) or not isinstance(guidance_scale, int | float):
            raise TypeError(f"guidance_scale must be a number, got {guidance_scale!r}")
        if not 1.0 <= guidance_scale < float("inf"):
            raise ValueError(f"guidance_scale must be 1 (no guidance) or more, got {guidance_scale!r}")
        self.unet = unet
        self.guidance_scale = float(guidance_scale)
        self.unconditional_gradient = unconditional_gradient
        # Kept here because adapters may bring parameters of another dtype into the UNet.
        self.dtype: torch.dtype = next(unet.parameters()).dtype
        self.register_buffer("unconditional_LD", unconditional_LD.to(self.dtype), persistent=False)

    def forward(self, latent_BCHW: Tensor, timestep_B: Tensor, prompt_embedding_BLD: Tensor) -> Tensor:
        """Guided model output.

        Args:
            latent_BCHW: current latents, any float dtype.
            timestep_B: int64, (B,) or (), diffusion timesteps (not step indices), on the latents' device.
            prompt_embedding_BLD: embeddings of the prompts.

        Returns:
            (B, C, H, W) float32, whatever the UNet runs in.
        """
        latent = latent_BCHW.to(self.dtype)
        cond_BLD = prompt_embedding_BLD.to(self.dtype)
        timestep_B = timestep_B.expand(len(latent))
        if self.guidance_scale == 1.0:
            return self._call(latent, timestep_B, cond_BLD)
        uncond_BLD = self.unconditional_LD.expand_as(cond_BLD)
        if self.unconditional_gradient or not torch.is_grad_enabled():
            out = self._call(
                torch.cat([latent, latent]),
                torch.cat([timestep_B, timestep_B]),
                torch.cat([uncond_BLD, cond_BLD]),
            )
            uncond, cond = out.chunk(2)
        else:
            with torch.no_grad():
                uncond = self._call(latent, timestep_B, uncond_BLD)
            cond = self._call(latent, timestep_B, cond_BLD)
        return uncond + self.guidance_scale * (cond - uncond)

    def _call(self, latent: Tensor, timestep: Tensor, embedding: Tensor) -> Tensor:
        return self.unet(latent, timestep, encoder_hidden_states=embedding, return_dict=False)[0].float()
