"""The UNet with classifier-free guidance (Ho & Salimans 2022) in one batched call."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_gym.pipelines.prompt_embedding import PromptEmbedding


class Denoiser(nn.Module):
    """(latent, timestep, prompt embedding) -> guided model output; guidance is part of the policy.

    out = out_uncond + guidance_scale * (out_cond - out_uncond), as StableDiffusionPipeline combines them.
    Use the same denoiser for the rollout and for the update: another guidance scale is another policy.

    A UNet that was distilled to take the guidance scale as an input (LCM: `time_cond_proj_dim`) gets it as one, and
    only the conditional half runs.

    Args:
        unet: the UNet, with or without adapters; it stays a submodule (`self.unet`), so its trainable
            parameters are this module's.
        unconditional: embedding of the other half of the guidance, B = 1.
        guidance_scale: 1 or more. At 1 only the conditional half runs; 0, as cards of Turbo models have it for no
            guidance, is taken as 1.
        unconditional_gradient: False runs the unconditional half apart and without gradient. Training
            becomes about a third cheaper and its gradient another one; rollout and update still agree.
        time_ids: (6,), SDXL's original size, crop and target size (height before width); None elsewhere.
    """

    unconditional_LD: Tensor
    unconditional_P: Tensor | None
    time_ids_6: Tensor | None
    guidance_F: Tensor | None

    def __init__(
        self,
        unet: nn.Module,
        unconditional: PromptEmbedding,
        *,
        guidance_scale: float,
        unconditional_gradient: bool = True,
        time_ids: Tensor | None = None,
    ) -> None:
        super().__init__()
        if isinstance(guidance_scale, bool) or not isinstance(guidance_scale, int | float):
            raise TypeError(f"guidance_scale must be a number, got {guidance_scale!r}")
        if guidance_scale != 0 and not 1.0 <= guidance_scale < float("inf"):
            raise ValueError(f"guidance_scale must be 1 or 0 (no guidance), or more than 1, got {guidance_scale!r}")
        self.unet = unet
        self.guidance_scale = float(guidance_scale or 1.0)
        self.unconditional_gradient = unconditional_gradient
        # Kept here because adapters may bring parameters of another dtype into the UNet.
        self.dtype: torch.dtype = next(unet.parameters()).dtype
        width = getattr(unet, "config", {}).get("time_cond_proj_dim")
        guidance = None if width is None else guidance_embedding(self.guidance_scale - 1.0, width)
        device = unconditional.tokens_BLD.device
        for name, value in (
            ("unconditional_LD", unconditional.tokens_BLD[0]),
            ("unconditional_P", None if unconditional.pooled_BP is None else unconditional.pooled_BP[0]),
            ("time_ids_6", time_ids),
            ("guidance_F", guidance),
        ):
            moved = None if value is None else value.to(device, self.dtype)
            self.register_buffer(name, moved, persistent=False)

    @property
    def is_guided(self) -> bool:
        """Whether a call runs an unconditional half."""
        return self.guidance_scale > 1.0 and self.guidance_F is None

    def forward(self, latent_BCHW: Tensor, timestep_B: Tensor, embedding: PromptEmbedding | Tensor) -> Tensor:
        """Guided model output.

        Args:
            latent_BCHW: current latents, any float dtype.
            timestep_B: int64, (B,) or (), diffusion timesteps (not step indices), on the latents' device.
            embedding: of the B prompts; their token embeddings (B, L, D) alone will do where nothing is pooled.

        Returns:
            (B, C, H, W) float32, whatever the UNet runs in.
        """
        if isinstance(embedding, Tensor):
            embedding = PromptEmbedding(embedding)
        if not self.is_guided:
            return self.conditional(latent_BCHW, timestep_B, embedding)
        latent = latent_BCHW.to(self.dtype)
        timestep_B = timestep_B.expand(len(latent))
        cond, uncond = embedding.to(self.dtype), self._unconditional(len(latent))
        if self.unconditional_gradient or not torch.is_grad_enabled():
            out = self._call(torch.cat([latent, latent]), torch.cat([timestep_B, timestep_B]), uncond.followed_by(cond))
            out_uncond, out_cond = out.chunk(2)
        else:
            with torch.no_grad():
                out_uncond = self._call(latent, timestep_B, uncond)
            out_cond = self._call(latent, timestep_B, cond)
        return out_uncond + self.guidance_scale * (out_cond - out_uncond)

    def conditional(self, latent_BCHW: Tensor, timestep_B: Tensor, embedding: PromptEmbedding) -> Tensor:
        """The conditional half alone: what the denoising loss is of. Arguments and result as `forward`."""
        latent = latent_BCHW.to(self.dtype)
        return self._call(latent, timestep_B.expand(len(latent)), embedding.to(self.dtype))

    def _unconditional(self, count: int) -> PromptEmbedding:
        pooled = None if self.unconditional_P is None else self.unconditional_P[None]
        return PromptEmbedding(self.unconditional_LD[None], pooled).expand(count)

    def _call(self, latent: Tensor, timestep: Tensor, embedding: PromptEmbedding) -> Tensor:
        more: dict[str, Any] = {}
        if self.time_ids_6 is not None:
            more["added_cond_kwargs"] = {
                "text_embeds": embedding.pooled_BP,
                "time_ids": self.time_ids_6.expand(len(latent), -1),
            }
        if self.guidance_F is not None:
            more["timestep_cond"] = self.guidance_F.expand(len(latent), -1)
        found = self.unet(latent, timestep, encoder_hidden_states=embedding.tokens_BLD, return_dict=False, **more)
        return found[0].float()


def guidance_embedding(w: float, width: int) -> Tensor:
    """Sinusoidal features (width,) of a guidance weight w, as guidance-distilled models take it.

    Meng et al. 2023, "On Distillation of Guided Diffusion Models"; w = guidance_scale - 1, scaled by 1000.
    """
    half = width // 2
    frequency = torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10000.0) / (half - 1)))
    angle = 1000.0 * w * frequency
    return nn.functional.pad(torch.cat([angle.sin(), angle.cos()]), (0, width % 2))
