"""What can be set on the command line, as dataclasses. Imports nothing heavy.

training     TrainConfig: what all agents share
agents       one class an agent
evaluation   EvaluateConfig, SampleConfig
"""

from agents.config.agents import (
    AGENTS,
    A2CConfig,
    DDPOConfig,
    DPOKConfig,
    PolicyGradientConfig,
    PPOConfig,
    ReinforceConfig,
    SFTConfig,
    StockConfig,
    check_clip_range,
    config_from_json,
)
from agents.config.evaluation import EvaluateConfig, SampleConfig, SamplingConfig
from agents.config.training import TrainConfig, prompt_spec, source_spec

__all__ = [
    "AGENTS",
    "A2CConfig",
    "DDPOConfig",
    "DPOKConfig",
    "EvaluateConfig",
    "PPOConfig",
    "PolicyGradientConfig",
    "ReinforceConfig",
    "SFTConfig",
    "SampleConfig",
    "SamplingConfig",
    "StockConfig",
    "TrainConfig",
    "check_clip_range",
    "config_from_json",
    "prompt_spec",
    "source_spec",
]
