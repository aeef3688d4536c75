"""What a command names, looked at before anything large is loaded: a typo should cost seconds."""

from agents.config import TrainConfig
from diffusion_gym.device import parse_device
from diffusion_gym.prompts import PromptSet, load_prompts
from diffusion_gym.rewards import check_reward


def check_inputs(config: TrainConfig) -> PromptSet:
    """Read the prompts, and see that the device is here and the reward has a name that exists; loads no weights.

    Raises:
        TypeError, ValueError: one of them is not to be had.
    """
    parse_device(config.device)
    prompts = load_prompts(config.prompt_spec())
    check_reward(config.reward_spec(), sources=config.source_spec())
    return prompts
