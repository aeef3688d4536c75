"""The micro-batch that a machine likes best."""

import time

import torch

from agents.common.actor import DenoisingActor
from agents.common.timer import wait_for
from diffusion_gym.pipelines import PromptEmbedding


def seconds_a_transition(
    actor: DenoisingActor, latent_shape: tuple[int, ...], embedding: PromptEmbedding, *, largest: int, repeats: int = 2
) -> dict[int, float]:
    """Measure a forward and backward pass through the denoiser at several sizes.

    The sizes are `largest` and its halves down to 1; those that memory does not hold are left out, and so are those
    below the first that is a tenth slower than the fastest so far.

    Args:
        actor: the policy's actor; its gradients are cleared.
        latent_shape: (C, H, W).
        embedding: of one prompt.
        largest: the largest size.
        repeats: passes that are timed, after one that is not; the fastest counts.

    Returns:
        Seconds a transition, by size.

    Raises:
        RuntimeError: memory does not hold even one transition.
    """
    found: dict[int, float] = {}
    size = largest
    while size >= 1:
        try:
            found[size] = min(_seconds(actor, latent_shape, embedding, size) for _ in range(repeats + 1)) / size
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        if found and found.get(size, 0.0) > 1.1 * min(found.values()):
            break
        size //= 2
    return found


def _seconds(actor: DenoisingActor, latent_shape: tuple[int, ...], embedding: PromptEmbedding, size: int) -> float:
    device = actor.kernel.device
    latent_BCHW = torch.zeros(size, *latent_shape, device=device)
    step_B = torch.zeros(size, dtype=torch.int64, device=device)
    wait_for(device)
    start = time.perf_counter()
    try:
        mean_BCHW, _ = actor.mean_and_output(latent_BCHW, step_B, embedding.expand(size))
        mean_BCHW.sum().backward()
        wait_for(device)
    finally:
        actor.zero_grad()
    return time.perf_counter() - start
