"""Pictures from seeds: the noise that diffusers draws for the same seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agents.common.actor import DenoisingActor
from agents.common.reference import Reference
from diffusion_gym.pipelines import Pipeline


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Sampled pictures.

    Attributes:
        images: (B, 3, H, W) float32 in [0, 1], on the CPU.
        kl: (B,) float32, KL to the reference along each picture's own path in nats, summed over the steps; None if no
            reference was given.
    """

    images: Tensor
    kl: Tensor | None


@torch.no_grad()
def sample_pictures(
    actor: DenoisingActor,
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    batch_size: int = 32,
    reference: Reference | None = None,
    use_reference: bool = False,
) -> Samples:
    """Sample one picture a prompt.

    Picture i depends on its prompt and seed alone. It is what `StableDiffusionPipeline` draws with
    `generator=[torch.Generator().manual_seed(seed) for seed in seeds]`, the same scheduler, guidance and eta.

    Args:
        actor: the policy's actor.
        pipeline: the model's pipeline.
        prompts: B prompts.
        seeds: B seeds.
        batch_size: pictures at once.
        reference: the pretrained policy, to measure the KL to, or to sample from.
        use_reference: sample from `reference`; `kl` is then 0.
    """
    images, kls = [], []
    for start in range(0, len(prompts), batch_size):
        texts, numbers = list(prompts[start : start + batch_size]), seeds[start : start + batch_size]
        latent, kl = _denoise(actor, pipeline, texts, numbers, reference, use_reference)
        images.append(pipeline.decode(latent).cpu())
        kls.append(kl.cpu())
    return Samples(images=torch.cat(images), kl=None if reference is None else torch.cat(kls))


def _denoise(
    actor: DenoisingActor,
    pipeline: Pipeline,
    prompts: list[str],
    seeds: Sequence[int],
    reference: Reference | None,
    use_reference: bool,
) -> tuple[Tensor, Tensor]:
    """Final latents and the KL along the way."""
    kernel, device = actor.kernel, actor.kernel.device
    streams: list[Any] = [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]

    def noise() -> Tensor:
        return torch.cat([torch.randn((1, *pipeline.latent_shape), generator=g) for g in streams]).to(device)

    embedding = pipeline.prompts.embeddings(pipeline.prompts.ids(prompts))
    latent = noise()
    kl_B = torch.zeros(len(prompts), device=device)
    for k in range(kernel.num_steps):
        step_B = torch.full((len(prompts),), k, dtype=torch.int64, device=device)
        output_ref = None if reference is None else reference.output(latent, step_B, embedding)
        if use_reference and output_ref is not None:
            mean = kernel.mean(output_ref, latent, step_B)
        else:
            mean, _ = actor.mean_and_output(latent, step_B, embedding)
            if output_ref is not None:
                mean_ref = kernel.mean(output_ref, latent, step_B)
                kl_B += kernel.kl_divergence(mean, mean_ref, step_B, reduction="sum")
        latent = kernel.sample(mean, noise(), step_B)
    return latent, kl_B
