"""DPOK: policy optimization with KL regularization (Fan et al. 2023, arXiv:2305.16381).

    max  E[ alpha r(x_0, z) ] - beta sum_t E[ KL( p_theta(x_{t-1} | x_t, z) || p_pre(x_{t-1} | x_t, z) ) ]

by the gradient of its equation for online RL: score function with importance ratio for the reward, and the gradient of
each step's KL at the latents that were visited. The reward may be replaced by r - V(x_t, z, t).

What the paper's released code does differently are options: an unweighted mean squared difference of the noise
predictions for the KL (`kl_form="unweighted"`), a clamp of the ratio without PPO's minimum, so no gradient at all
outside the band (`ratio_form="clamped"`), and raw rewards (`normalise=False`). Its numbers are those of the preset
`sd15-dpok`.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from tianshou.algorithm.optim import OptimizerFactory
from tianshou.data import Batch
from torch import Tensor

from agents.common.advantages import Floats, PerPromptStatistics
from agents.common.algorithm import DenoisingStats, PolicyGradient, StepWeights, Terms
from agents.common.critic import LatentCritic
from agents.common.optim import Accumulator
from agents.common.policy import DenoisingPolicy
from agents.common.reference import Reference, ReferenceOutputs
from agents.common.rollout import Index, Rollout, Transitions, chunks


class DPOK(PolicyGradient):
    """DPOK as a Tianshou on-policy algorithm.

    Args:
        policy: the policy. Make the algorithm before training it: the reference is the policy as it is now, which with
            adapters is the pretrained UNet with the adapters off.
        optim: optimizer factory for the actor.
        reward_weight: alpha. With normalised advantages leave it at 1 and set `kl_weight`.
        kl_weight: beta. Raise it when pictures degrade while the reward rises, lower it when the reward stays. Under
            mean reduction it multiplies the KL's mean over the latent, as alpha does the log-probability's: the ratio
            of the two weights means the same under either reduction. At 0 no reference is computed.
        kl_fraction: share of the transitions, chosen at random in each update, on which the KL is taken; it counts that
            much more there, so the gradient stays unbiased. 0.5 saves half of the reference's calls at the price of a
            noisier KL.
        kl_reference: what the KL is taken to. "pretrained", as published; or "rollout", the policy that drew the
            pictures, whose means rollouts then store: no reference calls at all, but it restrains how far one update
            goes, not how far the policy gets in the end. Its gradient is 0 in an update's first optimizer step.
        kl_form: "exact", the Gaussian KL with the schedule's factor; or "unweighted", the mean squared difference of
            the model outputs, which weighs the last steps far less.
        ratio_form: "ppo", the pessimistic minimum; or "clamped", without it, as published.
        advantage_clip: normalised advantages are clamped to +- this, so that one odd picture among equals does not take
            the whole gradient.
        normalise: divide advantages by the standard deviation of their prompt's rewards and, without a critic, subtract
            their mean.
        clip_range: of the ratio; 1e-4 for Stable Diffusion under mean reduction, about 1.64 / D for D latent values.
        critic: value function, trained here on final rewards; it helps with several prompts.
        critic_optim: its optimizer factory; learning rate 1e-4 in the paper.
        value_steps: optimizer steps on the critic an update.
        value_batch_size: transitions a step on the critic.
        statistics: the prompts' reward statistics; by default over the last 32. With more pictures of one prompt in the
            buffer than that, give it room for all of them.
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
        reward_weight: float = 1.0,
        kl_weight: float = 0.02,
        kl_fraction: float = 1.0,
        kl_reference: Literal["pretrained", "rollout"] = "pretrained",
        kl_form: Literal["exact", "unweighted"] = "exact",
        ratio_form: Literal["ppo", "clamped"] = "ppo",
        normalise: bool = True,
        advantage_clip: float = 5.0,
        clip_range: float = 1e-4,
        critic: LatentCritic | None = None,
        critic_optim: OptimizerFactory | None = None,
        value_steps: int = 5,
        value_batch_size: int = 256,
        statistics: PerPromptStatistics | None = None,
        timestep_fraction: float = 1.0,
        step_weights: StepWeights = "uniform",
        micro_batch_size: int = 32,
        max_grad_norm: float | None = 1.0,
    ) -> None:
        if kl_form not in ("exact", "unweighted"):
            raise ValueError(f'kl_form must be "exact" or "unweighted", got {kl_form!r}')
        if kl_reference not in ("pretrained", "rollout"):
            raise ValueError(f'kl_reference must be "pretrained" or "rollout", got {kl_reference!r}')
        if kl_reference == "rollout" and kl_form != "exact":
            raise ValueError(f'kl_reference="rollout" stores means: kl_form must be "exact", got {kl_form!r}')
        if ratio_form not in ("ppo", "clamped"):
            raise ValueError(f'ratio_form must be "ppo" or "clamped", got {ratio_form!r}')
        if not kl_weight >= 0:
            raise ValueError(f"kl_weight must be 0 or more, got {kl_weight}")
        if not 0 < kl_fraction <= 1:
            raise ValueError(f"kl_fraction must be in (0, 1], got {kl_fraction}")
        if not advantage_clip > 0:
            raise ValueError(f"advantage_clip must be greater than 0, got {advantage_clip}")
        if (critic is None) != (critic_optim is None):
            raise ValueError("critic and critic_optim belong together: give both or neither")
        super().__init__(
            policy=policy,
            optim=optim,
            clip_range=clip_range,
            timestep_fraction=timestep_fraction,
            step_weights=step_weights,
            micro_batch_size=micro_batch_size,
            max_grad_norm=max_grad_norm,
        )
        self.reward_weight = reward_weight
        self.kl_weight = kl_weight
        self.kl_fraction = kl_fraction
        self.kl_reference = kl_reference
        self.kl_form = kl_form
        self.ratio_form = ratio_form
        self.normalise = normalise
        self.advantage_clip = advantage_clip
        self.critic = critic
        self.critic_optim = (
            None if critic is None or critic_optim is None else self._create_optimizer(critic, critic_optim)
        )
        self.value_steps = value_steps
        self.value_batch_size = value_batch_size
        self.statistics = PerPromptStatistics() if statistics is None else statistics
        # Not a submodule: the reference is neither trained nor saved.
        asked = kl_weight > 0 and kl_reference == "pretrained"
        self.reference_outputs = ReferenceOutputs(Reference(policy.actor)) if asked else None
        policy.keeps_mean = kl_weight > 0 and kl_reference == "rollout"
        self._compared_I = np.zeros(0, dtype=np.bool_)
        self._compared_weight = kl_weight
        self._newest_serial = -1
        self._updates = 0

    def _update_with_batch(self, batch: Rollout, batch_size: int | None, repeat: int) -> DenoisingStats:
        value_loss = None if self.critic is None else self._fit_critic(batch)
        stats = super()._update_with_batch(batch, batch_size, repeat)
        stats.value_loss = value_loss
        if self.kl_reference == "rollout":
            stats.kl, stats.kl_to_rollout = None, stats.kl
        return stats

    def _prepare(self, rollout: Rollout, rows: Index) -> Floats:
        self._updates += 1
        serial_I = self._serial(rollout)
        self._compute_reference(rollout, self._choose_compared(rollout, rows), serial_I)
        prompts, reward_E = rollout.prompts(), rollout.reward_E
        new_E = serial_I[rollout.index_I[:: rollout.num_steps]] > self._newest_serial
        self._newest_serial = int(serial_I[rollout.index_I].max())
        self.statistics.update([p for p, new in zip(prompts, new_E, strict=True) if new], reward_E[new_E])
        mean_E, std_E = self.statistics.mean_and_std(prompts, reward_E)
        if self.critic is not None:
            advantage_I = np.repeat(reward_E, rollout.num_steps)
            advantage_I[rows] -= self._values(rollout, rows)
        else:
            advantage_I = np.repeat(reward_E - mean_E if self.normalise else reward_E, rollout.num_steps)
        if self.normalise:
            advantage_I = advantage_I / (np.repeat(std_E, rollout.num_steps) + 1e-6)
            advantage_I = np.clip(advantage_I, -self.advantage_clip, self.advantage_clip)
        return advantage_I

    def _terms(self, rollout: Rollout, transitions: Transitions, advantage_B: Any) -> Terms:
        t, actor = transitions, self.policy.actor
        kernel, reduction = actor.kernel, self.policy.reduction
        mean_BCHW, output_BCHW = actor.mean_and_output(t.latent_BCHW, t.step_B, t.embedding)
        log_prob_B = kernel.log_prob(t.action_BCHW, mean_BCHW, t.step_B, reduction=reduction)
        weight_B = self.reward_weight * torch.as_tensor(advantage_B, dtype=torch.float32, device=log_prob_B.device)
        ratio_B = torch.exp(log_prob_B - t.log_prob_B)
        clipped_B = ratio_B.clamp(1.0 - self.clip_range, 1.0 + self.clip_range)
        loss_B = -weight_B * clipped_B
        if self.ratio_form == "ppo":
            loss_B = torch.maximum(-weight_B * ratio_B, loss_B)
        if not self.kl_weight:
            return Terms(loss_B=loss_B, ratio_B=ratio_B.detach())
        compared = np.flatnonzero(self._compared_I[t.rows])
        at = torch.from_numpy(compared).to(output_BCHW.device)
        if self.reference_outputs is None:
            assert t.mean_BCHW is not None
            reference_BCHW, mean_ref_BCHW = None, t.mean_BCHW[at]
        else:
            reference_BCHW = self.reference_outputs.get(rollout.index_I[t.rows[compared]], output_BCHW.device)
            mean_ref_BCHW = kernel.mean(reference_BCHW, t.latent_BCHW[at], t.step_B[at])
        kl_B = kernel.kl_divergence(mean_BCHW[at], mean_ref_BCHW, t.step_B[at], reduction=reduction)
        if self.kl_form == "exact" or reference_BCHW is None:
            penalty_B = kl_B
        else:
            penalty_B = (output_BCHW[at] - reference_BCHW).square().flatten(1).mean(1)
        nats_B = kl_B.detach() * (mean_BCHW[0].numel() if reduction == "mean" else 1)
        loss_B = loss_B.index_add(0, at, self._compared_weight * penalty_B)
        return Terms(loss_B=loss_B, ratio_B=ratio_B.detach(), kl_B=nats_B)

    def _contributes(self, rows: Index, advantage_B: Floats) -> npt.NDArray[np.bool_]:
        useful = super()._contributes(rows, advantage_B)
        return useful | self._compared_I[rows] if self.kl_weight else useful

    def _choose_compared(self, rollout: Rollout, rows: Index) -> Index:
        """Choose the transitions on which the KL is taken; returns their rows."""
        count = max(1, round(self.kl_fraction * len(rows)))
        chosen = rows if count == len(rows) else np.random.permutation(rows)[:count]  # noqa: NPY002
        self._compared_I = np.zeros(len(rollout), dtype=np.bool_)
        self._compared_I[chosen] = True
        self._compared_weight = self.kl_weight * len(rows) / count
        return chosen

    def _serial(self, rollout: Rollout) -> Index:
        """A number for each place of the buffer; a stock buffer counts as overwritten in each update."""
        if rollout.serial is not None:
            return rollout.serial
        size = rollout.buffer.maxsize
        return np.arange(size) + self._updates * size

    def _compute_reference(self, rollout: Rollout, rows: Index, serial_I: Index) -> None:
        if self.reference_outputs is None:
            return
        missing = self.reference_outputs.missing(rollout.index_I[rows], serial_I)
        for micro in chunks(rows[np.isin(rollout.index_I[rows], missing)], self.micro_batch_size):
            t = rollout.gather(micro)
            with self.phase("reference"):
                self.reference_outputs.compute(rollout.index_I[micro], serial_I, t.latent_BCHW, t.step_B, t.embedding)

    def _fit_critic(self, rollout: Rollout) -> float:
        """Regress the final reward: the mean squared error, averaged over the steps (before each)."""
        assert self.critic is not None
        assert self.critic_optim is not None
        losses = []
        for _ in range(self.value_steps):
            count = min(self.value_batch_size, len(rollout))
            rows = np.random.permutation(len(rollout))[:count]  # noqa: NPY002
            accumulator = Accumulator(self.critic_optim._optim, max_grad_norm=None)
            value_B = self.critic(self._observations(rollout, rows)).flatten()
            target_B = torch.as_tensor(
                rollout.reward_E[rollout.episode(rows)], dtype=torch.float32, device=value_B.device
            )
            loss = (value_B - target_B).square().mean()
            accumulator.add(loss)
            accumulator.step()
            losses.append(float(loss.detach()))
        return float(np.mean(losses))

    @torch.no_grad()
    def _values(self, rollout: Rollout, rows: Index) -> Floats:
        assert self.critic is not None
        parts: list[Tensor] = [
            self.critic(self._observations(rollout, part)).flatten() for part in chunks(rows, self.value_batch_size)
        ]
        return torch.cat(parts).double().cpu().numpy()

    @staticmethod
    def _observations(rollout: Rollout, rows: Index) -> Batch:
        return rollout.buffer.get(rollout.index_I[rows], "obs")

    def extra_state(self, *, transitions: bool = True) -> dict[str, Any]:
        """Reward statistics, and reference outputs of the rollouts that are kept."""
        outputs = self.reference_outputs if transitions else None
        reference = None if outputs is None else outputs.state_dict()
        return {
            "statistics": self.statistics.state_dict(),
            "reference": reference,
            "newest_serial": self._newest_serial,
            "updates": self._updates,
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take up what `extra_state` gave."""
        self.statistics.load_state_dict(state["statistics"])
        if self.reference_outputs is not None and state["reference"] is not None:
            self.reference_outputs.load_state_dict(state["reference"])
        self._newest_serial, self._updates = state["newest_serial"], state["updates"]
