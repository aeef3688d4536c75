"""Published settings by name: `diffusion-gym train sd15-dpok --model PATH`. Imports nothing heavy.

A preset is an agent's configuration. Where the released code of a method has a defect, the preset has the method
without it, and says so. Of the three none was run here at full size: they need a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from agents.config import DDPOConfig, DPOKConfig, TrainConfig

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
ANIMALS = ("a cat", "a dog", "a horse", "a rabbit", "a wolf", "a bear", "a lion", "a fox", "a duck", "a turtle")


@dataclass(frozen=True)
class Preset:
    """A configuration with the story behind it.

    Attributes:
        config: the configuration.
        description: what it is, for the command's help.
    """

    config: TrainConfig
    description: str


PRESETS = {
    "sd15-dpok": Preset(
        DPOKConfig(
            model=SD15,
            reward="image_reward",
            prompts=("A green colored rabbit.",),
            dtype="bfloat16",
            steps=50,
            guidance_scale=7.5,
            eta=1.0,
            iterations=2000,
            pictures=10,
            rollouts=2,
            timestep_fraction=0.48,
            batch_size=48,
            micro_batch_size=8,
            step_weights="uniform",
            learning_rate=1e-5,
            max_grad_norm=0.1,
            clip_range=1e-4,
            reward_weight=10.0,
            normalise=False,
            kl_weight=0.01,
            kl_form="unweighted",
            lora_rank=4,
            lora_targets="attention",
            checkpoint_every=10,
        ),
        "DPOK on Stable Diffusion 1.5 with ImageReward, one prompt (Fan et al. 2023): 20,000 pictures. The ratio is "
        "clipped as in PPO; the released code's clamp stops half of the gradients.",
    ),
    "sd15-ddpo": Preset(
        DDPOConfig(
            model=SD15,
            reward="aesthetic",
            prompts=ANIMALS,
            dtype="bfloat16",
            steps=50,
            guidance_scale=5.0,
            eta=1.0,
            iterations=200,
            pictures=256,
            slots=32,
            timestep_fraction=1.0,
            batch_size=6400,
            micro_batch_size=8,
            step_weights="uniform",
            learning_rate=3e-4,
            max_grad_norm=1.0,
            clip_range=1e-4,
            lora_rank=4,
            lora_targets="attention",
        ),
        "DDPO on Stable Diffusion 1.5 with the LAION aesthetic score (Black et al. 2023): 256 pictures an iteration, "
        "two updates. The prompts are ten animals; the paper has 45.",
    ),
    "sdxl-ddpo": Preset(
        DDPOConfig(
            model=SDXL,
            reward="pick_score",
            prompts=ANIMALS,
            dtype="bfloat16",
            steps=20,
            guidance_scale=5.0,
            eta=1.0,
            iterations=200,
            pictures=64,
            slots=8,
            async_rewards=True,
            timestep_fraction=0.5,
            batch_size=320,
            micro_batch_size=4,
            step_weights="uniform",
            learning_rate=3e-4,
            max_grad_norm=1.0,
            clip_range=2.5e-5,
            lora_rank=4,
            lora_targets="attention",
            gradient_checkpointing=True,
            vae_slicing=True,
        ),
        "DDPO's settings carried over to SDXL at 1024 x 1024 with PickScore, 20 steps, half of them trained; the clip "
        "range for its four times larger latents. Nobody published such a run: a place to begin.",
    ),
}
"""Presets by name."""


def expand_preset(argv: Sequence[str]) -> list[str]:
    """A command line with `--preset NAME` in the place where `train` takes an agent.

    Raises:
        ValueError: there is no such preset, or another agent's name stands beside it.
    """
    arguments = list(argv)
    found = next((i for i, text in enumerate(arguments) if text.partition("=")[0] == "--preset"), None)
    if found is None or arguments[0] != "train":
        return arguments
    _, equals, name = arguments.pop(found).partition("=")
    if not equals:
        name = arguments.pop(found) if found < len(arguments) else ""
    if name not in PRESETS:
        raise ValueError(f"--preset must be one of {sorted(PRESETS)}, got {name!r}")
    agent = PRESETS[name].config.agent
    if len(arguments) > 1 and not arguments[1].startswith("-"):
        given = arguments.pop(1)
        if given not in (agent, name):
            raise ValueError(f"--preset {name} is for the agent {agent}, got {given!r}")
    return ["train", name, *arguments[1:]]
