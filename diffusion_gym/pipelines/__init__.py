"""Stable-Diffusion-format models as separate parts.

pipeline = load_pipeline(directory_or_hub_id, device="cpu", dtype="float32")   # shared within the process
ids       = pipeline.prompts.ids(["a red cat"])           # (B,) int64 numpy; each prompt is encoded once
embedding = pipeline.prompts.embeddings(ids)              # PromptEmbedding: tokens_BLD, and for SDXL pooled_BP
kernel    = pipeline.kernel(20, sampler="ddim", eta=1.0)  # diffusion_gym.kernels.Kernel on the device
unet      = pipeline.load_unet()                          # the caller's own UNet2DConditionModel, frozen
denoiser  = pipeline.denoiser(unet, guidance_scale=5.0)   # nn.Module: UNet and guidance in one call
output    = denoiser(latent, kernel.timestep(step), embedding)   # (B, C, H, W) float32
images    = pipeline.decode(latent)                       # (B, 3, H, W) float32 in [0, 1]
pipeline.latent_shape, pipeline.image_shape, pipeline.embedding_shape, pipeline.sampling
"""

from diffusion_gym.pipelines.denoiser import Denoiser
from diffusion_gym.pipelines.model_files import ModelFiles, read_model_files
from diffusion_gym.pipelines.pipeline import Pipeline, load_pipeline
from diffusion_gym.pipelines.prompt_bank import PromptBank
from diffusion_gym.pipelines.prompt_embedding import PromptEmbedding
from diffusion_gym.pipelines.sampling import SamplingDefaults

__all__ = [
    "Denoiser",
    "ModelFiles",
    "Pipeline",
    "PromptBank",
    "PromptEmbedding",
    "SamplingDefaults",
    "load_pipeline",
    "read_model_files",
]
