"""Tianshou's own algorithms on denoising, as they are: what this field's methods are measured against.

    reinforce   Williams 1992
    a2c         Mnih et al. 2016 (arXiv:1602.01783)
    ppo         Schulman et al. 2017 (arXiv:1707.06347)

The reward comes with the last step and nothing is discounted, so every step's return is the picture's reward. A2C and
PPO subtract a value of (latent, prompt, step); Reinforce standardises returns by their running mean and deviation.
"""

from tianshou.algorithm import A2C, PPO, Reinforce
from tianshou.algorithm.algorithm_base import OnPolicyAlgorithm

from agents.common.critic import LatentCritic
from agents.common.optim import adamw
from agents.common.policy import DenoisingPolicy
from agents.config import A2CConfig, PPOConfig, StockConfig
from diffusion_gym.pipelines import Pipeline


def make_stock(config: StockConfig, policy: DenoisingPolicy, pipeline: Pipeline) -> OnPolicyAlgorithm[DenoisingPolicy]:
    """The algorithm of a configuration. Reinforce does not clip gradients: Tianshou's has no such argument."""
    optim = adamw(lr=config.learning_rate)
    if not isinstance(config, A2CConfig):
        return Reinforce(policy=policy, gamma=1.0, return_standardization=True, optim=optim)
    critic = LatentCritic(policy.actor, latent_shape=pipeline.latent_shape)
    if isinstance(config, PPOConfig):
        return PPO(
            policy=policy,
            critic=critic,
            optim=optim,
            eps_clip=config.clip_range,
            vf_coef=config.value_weight,
            ent_coef=0.0,  # sigma is the schedule's: the entropy is a constant
            max_grad_norm=config.max_grad_norm,
            gae_lambda=1.0,
            gamma=1.0,
        )
    return A2C(
        policy=policy,
        critic=critic,
        optim=optim,
        vf_coef=config.value_weight,
        ent_coef=0.0,
        max_grad_norm=config.max_grad_norm,
        gae_lambda=1.0,
        gamma=1.0,
    )
