"""The micro-batch that a machine likes best."""

import time

import torch

from agents.common.algorithm import DenoisingAlgorithm
from agents.common.memory import is_out_of_memory
from agents.common.timer import wait_for
from diffusion_gym.pipelines import PromptEmbedding


def seconds_a_transition(
    algorithm: DenoisingAlgorithm,
    latent_shape: tuple[int, ...],
    embedding: PromptEmbedding,
    *,
    largest: int,
    repeats: int = 2,
) -> dict[int, float]:
    """Measure a forward and backward pass of the algorithm's update at several sizes.

    The sizes are `largest` and its halves down to 1; those that memory does not hold are left out, and so are those
    below the first that is a tenth slower than the fastest so far.

    Args:
        algorithm: whose `predict` is timed; gradients are cleared.
        latent_shape: (C, H, W).
        embedding: of one prompt.
        largest: the largest size.
        repeats: passes that are timed, after one that is not; the fastest counts.

    Returns:
        Seconds a transition, by size.

    Raises:
        RuntimeError, MemoryError: memory does not hold even one transition.
    """
    found: dict[int, float] = {}
    size = largest
    while size >= 1:
        try:
            _, *timed = [_seconds(algorithm, latent_shape, embedding, size) for _ in range(repeats + 1)]
            found[size] = min(timed) / size
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        if found and found.get(size, 0.0) > 1.1 * min(found.values()):
            break
        size //= 2
    return found


def _seconds(
    algorithm: DenoisingAlgorithm, latent_shape: tuple[int, ...], embedding: PromptEmbedding, size: int
) -> float:
    actor = algorithm.policy.actor
    device = actor.kernel.device
    latent_BCHW = torch.zeros(size, *latent_shape, device=device)
    step_B = torch.zeros(size, dtype=torch.int64, device=device)
    wait_for(device)
    start = time.perf_counter()
    try:
        algorithm.predict(latent_BCHW, step_B, embedding.expand(size)).sum().backward()
        wait_for(device)
    finally:
        actor.zero_grad()
    return time.perf_counter() - start
