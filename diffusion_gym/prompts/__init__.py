"""Prompt sets and the samplers that draw from them.

    prompts = load_prompts("emoji/train")          # or a list, a .txt or .jsonl file, a PromptSet
    sampler = make_sampler("uniform", prompts)     # or "cyclic", "weighted", any PromptSampler
    index   = sampler.index(rng, start=0, turn=0)  # position in prompts.texts

A text file has one prompt a line. A JSONL file has one string or object a line: {"prompt": ..., "weight": ..., ...};
every other key of an object is metadata and reaches the reward.
"""

from diffusion_gym.prompts.prompt_set import PromptSet, load_prompts, register_prompts
from diffusion_gym.prompts.samplers import (
    CyclicSampler,
    PromptSampler,
    UniformSampler,
    WeightedSampler,
    make_sampler,
)

__all__ = [
    "CyclicSampler",
    "PromptSampler",
    "PromptSet",
    "UniformSampler",
    "WeightedSampler",
    "load_prompts",
    "make_sampler",
    "register_prompts",
]
