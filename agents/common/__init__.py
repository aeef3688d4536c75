"""What every agent shares, each written once.

distribution   LatentGaussian: the next latent, one sigma a sample
actor          DenoisingActor: UNet, guidance and transition kernel as a Tianshou actor
critic         LatentCritic: (latent, prompt, step) -> value
policy         DenoisingPolicy: a Tianshou policy that keeps the log-probability of what it did
venv           BatchedVenv: the vector environment as Tianshou's Collector wants it
buffer         LatentReplayBuffer: trajectories, each latent stored once
rollout        Rollout: whole episodes of a buffer, read in micro-batches
algorithm      DenoisingAlgorithm, PolicyGradient: what the project's algorithms share
advantages     PerPromptStatistics: mean and standard deviation of each prompt's rewards
optim          adamw and other optimizers over the trainable parameters; Accumulator
lora           add_lora, save_lora, load_lora
reference      Reference: the pretrained policy; ReferenceOutputs: its outputs, computed once
sampling       sample_pictures: pictures from seeds, as diffusers draws them
micro_batch    seconds_a_transition: which size of micro-batch a machine likes best
memory         is_out_of_memory: whether an error says that memory ran out
timer          PhaseTimer: where the time of an iteration goes
checkpoint     files that are whole or not there; random states
"""

import importlib
from typing import Any

_HOMES = {
    "BatchedVenv": "venv",
    "DenoisingActor": "actor",
    "DenoisingPolicy": "policy",
    "LatentCritic": "critic",
    "LatentGaussian": "distribution",
    "LatentReplayBuffer": "buffer",
    "PerPromptStatistics": "advantages",
    "adamw": "optim",
    "add_lora": "lora",
    "load_lora": "lora",
    "sample_pictures": "sampling",
    "save_lora": "lora",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first asked for: the command's help needs none of them."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"agents.common.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
