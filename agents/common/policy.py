"""The policy: Tianshou's, over latents."""

from typing import Any, cast

import gymnasium
import numpy as np
import torch
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.data import Batch
from torch import Tensor

from agents.common.actor import DenoisingActor
from agents.common.distribution import LatentGaussian
from diffusion_gym.kernels import Reduction


class DenoisingPolicy(ProbabilisticActorPolicy):
    """Normal(mean, sigma_k) over the next latent; what it did and how likely that was are stored.

    Stock `tianshou.algorithm.Reinforce`, `A2C` and `PPO` train it unchanged. Actions reach the environment exactly as
    they were drawn and scored: no scaling, no clipping, float32.

    Args:
        actor: what gives mean and sigma.
        action_space: the environment's (`env.single_action_space` of the vector environment).
        observation_space: the environment's.
        reduction: over the latent's values in log-probabilities, ratios and KL. "mean" is what DDPO and DPOK use with a
            clip range of 1e-4 (larger for smaller latents: the same band on the density is 1.64 / D). Choose "sum" for
            true densities, with a clip range of 0.1 to 0.2; in float32 its ratios are exact to some 1e-4 only.
    """

    actor: DenoisingActor
    keeps_mean = False
    """Whether rollouts store each transition's mean too, as much again as the latents."""

    def __init__(
        self,
        *,
        actor: DenoisingActor,
        action_space: gymnasium.Space[Any],
        observation_space: gymnasium.Space[Any] | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        if reduction not in ("mean", "sum"):
            raise ValueError(f'reduction must be "mean" or "sum", got {reduction!r}')
        self.reduction: Reduction = reduction
        super().__init__(
            actor=cast(Any, actor),
            dist_fn=self.distribution,
            deterministic_eval=False,
            action_space=action_space,
            observation_space=observation_space,
            action_scaling=False,
            action_bound_method=None,
        )

    def distribution(self, mean_and_sigma: tuple[Tensor, Tensor]) -> LatentGaussian:
        """The distribution of an actor's output."""
        mean_BCHW, sigma_B111 = mean_and_sigma
        return LatentGaussian(mean_BCHW, sigma_B111, reduction=self.reduction)

    def forward(self, batch: Any, state: Any = None) -> Any:
        """Draw the next latents.

        Args:
            batch: observations. One without `act` comes from a rollout, and there nothing is differentiated: Tianshou's
                Collector leaves gradients on, and a UNet's intermediate results are far larger than its pictures.
            state: unused.

        Returns:
            A Batch of `act` (B, C, H, W), `dist`, and what the Collector stores: `policy.log_prob` (B,) float32 and, if
            `keeps_mean`, `policy.mean` (B, C, H, W) float32.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and "act" in batch):
            mean_and_sigma, _ = self.actor(batch.obs)
        dist = self.distribution(mean_and_sigma)
        act = dist.sample()
        with torch.no_grad():
            log_prob = dist.log_prob(act)
        stored = Batch(log_prob=log_prob, mean=dist.loc) if self.keeps_mean else Batch(log_prob=log_prob)
        return Batch(act=act, dist=dist, policy=stored)

    def map_action(self, act: Any) -> Any:
        """The action itself."""
        return act

    def map_action_inverse(self, act: Any) -> Any:
        """The action itself."""
        return np.asarray(act)
