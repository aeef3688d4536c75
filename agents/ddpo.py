"""DDPO: denoising diffusion policy optimization (Black, Janner, Du, Kostrikov & Levine 2023, arXiv:2305.13301).

The denoising process is a T-step MDP with the reward at its end. Two estimators of the policy gradient (section 4.3):

    DDPO_SF   grad = E[ sum_t grad log p(x_{t-1} | x_t, c) A ]             one update a rollout
    DDPO_IS   loss = E[ max(-A rho_t, -A clip(rho_t, 1 - c, 1 + c)) ]      several, rho_t = p_theta / p_old

A is the final reward, normalised by the running statistics of its prompt and clamped to +-5.
"""

from typing import Any, Literal

import numpy as np
import torch
from tianshou.algorithm.optim import OptimizerFactory

from agents.common.advantages import Floats, PerPromptStatistics
from agents.common.algorithm import DenoisingStats, PolicyGradient, StepWeights, Terms
from agents.common.policy import DenoisingPolicy
from agents.common.rollout import Index, Rollout, Transitions


class DDPO(PolicyGradient):
    """DDPO as a Tianshou on-policy algorithm.

    Args:
        policy: the policy.
        optim: optimizer factory for the actor. DDPO: AdamW, learning rate 3e-4 with adapters of rank 4 on Stable
            Diffusion, 1e-5 for the whole UNet.
        estimator: "importance" (DDPO_IS) or "score" (DDPO_SF: one optimizer step an update, hence `repeat=1` and
            `batch_size=None`). Take "score" only to compare: it learns less from the same pictures.
        clip_range: c. 1e-4 for Stable Diffusion under mean reduction; about 1.64 / D for a latent of D values.
        advantage_clip: advantages are clamped to +- this.
        statistics: rewards are normalised by these; by default per prompt, over the last 32.
        timestep_fraction: share of the steps an update learns from; see `PolicyGradient`.
        step_weights: "uniform" or "equal_noise"; see `PolicyGradient`.
        micro_batch_size: transitions in one call of the UNet; memory and speed only.
        max_grad_norm: L2 norm gradients are clipped to; None leaves them.
    """

    def __init__(
        self,
        *,
        policy: DenoisingPolicy,
        optim: OptimizerFactory,
        estimator: Literal["importance", "score"] = "importance",
        clip_range: float = 1e-4,
        advantage_clip: float = 5.0,
        statistics: PerPromptStatistics | None = None,
        timestep_fraction: float = 1.0,
        step_weights: StepWeights = "uniform",
        micro_batch_size: int = 32,
        max_grad_norm: float | None = 1.0,
    ) -> None:
        if estimator not in ("importance", "score"):
            raise ValueError(f'estimator must be "importance" or "score", got {estimator!r}')
        if not advantage_clip > 0:
            raise ValueError(f"advantage_clip must be greater than 0, got {advantage_clip}")
        super().__init__(
            policy=policy,
            optim=optim,
            clip_range=clip_range,
            timestep_fraction=timestep_fraction,
            step_weights=step_weights,
            micro_batch_size=micro_batch_size,
            max_grad_norm=max_grad_norm,
        )
        self.estimator = estimator
        self.advantage_clip = advantage_clip
        self.statistics = PerPromptStatistics() if statistics is None else statistics

    def _update_with_batch(self, batch: Rollout, batch_size: int | None, repeat: int) -> DenoisingStats:
        if self.estimator == "score" and (repeat != 1 or batch_size is not None):
            raise ValueError(
                'estimator="score" is unbiased for one step only: use batch_size=None and repeat=1, or '
                f'estimator="importance" (got batch_size={batch_size}, repeat={repeat})'
            )
        return super()._update_with_batch(batch, batch_size, repeat)

    def _prepare(self, rollout: Rollout, rows: Index) -> Floats:
        prompts = rollout.prompts()
        self.statistics.update(prompts, rollout.reward_E)
        mean_E, std_E = self.statistics.mean_and_std(prompts, rollout.reward_E)
        advantage_E = np.clip((rollout.reward_E - mean_E) / (std_E + 1e-6), -self.advantage_clip, self.advantage_clip)
        return np.repeat(advantage_E, rollout.num_steps)

    def _terms(self, rollout: Rollout, transitions: Transitions, advantage_B: Any) -> Terms:
        t, actor = transitions, self.policy.actor
        mean_BCHW, _ = actor.mean_and_output(t.latent_BCHW, t.step_B, t.embedding)
        log_prob_B = actor.kernel.log_prob(t.action_BCHW, mean_BCHW, t.step_B, reduction=self.policy.reduction)
        advantage = torch.as_tensor(advantage_B, dtype=torch.float32, device=log_prob_B.device)
        ratio_B = torch.exp(log_prob_B - t.log_prob_B)
        if self.estimator == "score":
            return Terms(loss_B=-advantage * log_prob_B, ratio_B=ratio_B.detach())
        clipped_B = ratio_B.clamp(1.0 - self.clip_range, 1.0 + self.clip_range)
        loss_B = torch.maximum(-advantage * ratio_B, -advantage * clipped_B)
        return Terms(loss_B=loss_B, ratio_B=ratio_B.detach())

    def extra_state(self, *, transitions: bool = True) -> dict[str, Any]:
        """Running statistics of the rewards."""
        return {"statistics": self.statistics.state_dict()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take up what `extra_state` gave."""
        self.statistics.load_state_dict(state["statistics"])
