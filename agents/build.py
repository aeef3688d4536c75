"""Actor and algorithm of a configuration."""

from typing import Any

from tianshou.algorithm.algorithm_base import OnPolicyAlgorithm

from agents.common.actor import DenoisingActor
from agents.common.advantages import PerPromptStatistics
from agents.common.critic import LatentCritic
from agents.common.lora import add_lora
from agents.common.optim import adamw
from agents.common.policy import DenoisingPolicy
from agents.config import DDPOConfig, DPOKConfig, PolicyGradientConfig, SFTConfig, StockConfig, TrainConfig
from agents.ddpo import DDPO
from agents.dpok import DPOK
from agents.sft import RewardWeightedSFT
from agents.stock import make_stock
from diffusion_gym.pipelines import Pipeline


def make_actor(config: TrainConfig, pipeline: Pipeline, kernel: Any, *, training: bool = True) -> DenoisingActor:
    """The actor of a configuration, untrained: adapters that change nothing yet, or the whole UNet unfrozen.

    Args:
        config: settings.
        pipeline: of the model.
        kernel: the sampler's.
        training: as it is trained; False for as it is used, where the two differ.
    """
    unet: Any = pipeline.load_unet()
    if config.full:
        unet.requires_grad_(True)
    else:
        add_lora(unet, rank=config.lora_rank, targets=config.lora_targets)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.attention_slicing:
        unet.set_attention_slice("auto")
    if config.compile:
        unet.compile()
    return DenoisingActor.from_pipeline(
        pipeline,
        kernel,
        unet=unet,
        guidance_scale=config.training_guidance_scale() if training else config.guidance_scale,
        unconditional_gradient=config.unconditional_gradient,
    )


def make_algorithm(
    config: TrainConfig, policy: DenoisingPolicy, pipeline: Pipeline
) -> OnPolicyAlgorithm[DenoisingPolicy]:
    """The algorithm of a configuration."""
    if isinstance(config, StockConfig):
        return make_stock(config, policy, pipeline)
    common: dict[str, Any] = {
        "policy": policy,
        "optim": adamw(lr=config.learning_rate),
        "micro_batch_size": config.micro_batch_size,
        "max_grad_norm": config.max_grad_norm,
    }
    if isinstance(config, SFTConfig):
        return RewardWeightedSFT(
            **common,
            pipeline=pipeline,
            weighting=config.weighting,
            temperature=config.temperature,
            shift=config.shift,
            regulariser=config.regulariser,
            regulariser_weight=config.regulariser_weight,
            pool=config.pool,
        )
    assert isinstance(config, PolicyGradientConfig)
    common |= {
        "clip_range": config.clip_range,
        "timestep_fraction": config.timestep_fraction,
        "step_weights": config.step_weights,
        # Room for all rewards of a buffer, even if they are of one prompt.
        "statistics": PerPromptStatistics(size=max(32, config.pictures * getattr(config, "rollouts", 1))),
    }
    if isinstance(config, DDPOConfig):
        return DDPO(**common, estimator=config.estimator)
    assert isinstance(config, DPOKConfig)
    critic = LatentCritic(policy.actor, latent_shape=pipeline.latent_shape) if config.value_function else None
    return DPOK(
        **common,
        reward_weight=config.reward_weight,
        normalise=config.normalise,
        kl_weight=config.kl_weight,
        kl_fraction=config.kl_fraction,
        kl_reference=config.kl_reference,
        kl_form=config.kl_form,
        ratio_form=config.ratio_form,
        critic=critic,
        critic_optim=None if critic is None else adamw(lr=1e-4),
    )
