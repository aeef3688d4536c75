"""Reward-weighted supervised fine-tuning: the baselines that reinforcement learning is measured against.

    min  E_{(x_0, z)} E_{t, eps} [ w(x_0, z) |eps - eps_theta(x_t, t, z)|^2 ]  + regulariser

    Lee et al. 2023 (arXiv:2302.12192)   w = r, pictures drawn once from the pretrained model, plus the ordinary loss on
                                         pretraining pictures
    DPOK's baseline (Fan et al. 2023)    w = r, or w = r + gamma ("kl-d"), or + gamma |eps_theta - eps_pre|^2 ("kl-o")
    RWR (Black et al. 2023)              w = softmax(r / temperature) per prompt or the best tenth, again each round
    best of n                            w = 1 for each prompt's best picture

Negative weights would be unbounded gradient ascent, so weights are cut at 0.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from tianshou.algorithm.optim import OptimizerFactory
from torch import Tensor

from agents.common.advantages import Floats
from agents.common.algorithm import DenoisingAlgorithm, DenoisingStats
from agents.common.optim import Accumulator
from agents.common.policy import DenoisingPolicy
from agents.common.reference import Reference
from agents.common.rollout import Index, Rollout, chunks
from diffusion_gym.pipelines import Pipeline, PromptEmbedding

Weighting = Literal["reward", "softmax", "top", "best"]


def picture_weights(
    weighting: Weighting, reward_P: Floats, prompts: Sequence[str], *, temperature: float = 0.2, shift: float = 0.0
) -> Floats:
    """Weight of each picture, (P,), not negative, of mean 1 (all 0 if no picture deserves any).

    Args:
        weighting: "reward": max(r + shift, 0); "softmax": exp(r / (temperature std)) over the pictures of its prompt;
            "top": 1 from the prompt's 90th percentile up; "best": 1 for the prompt's best.
        reward_P: rewards.
        prompts: P prompts.
        temperature: of "softmax", in standard deviations of all rewards.
        shift: of "reward".
    """
    weight_P = np.zeros(len(reward_P))
    keys = np.array(prompts, dtype=object)
    spread = temperature * (reward_P.std() + 1e-8)
    for prompt in dict.fromkeys(prompts):
        own = np.flatnonzero(keys == prompt)
        reward = reward_P[own]
        if weighting == "reward":
            weight_P[own] = np.maximum(reward + shift, 0.0)
        elif weighting == "softmax":
            weight = np.exp((reward - reward.max()) / spread)
            weight_P[own] = weight / weight.sum() * len(own)
        elif weighting == "top":
            weight_P[own] = reward >= np.percentile(reward, 90)
        else:
            weight_P[own[reward.argmax()]] = 1.0
    mean = weight_P.mean()
    return weight_P / mean if mean > 0 else weight_P


class RewardWeightedSFT(DenoisingAlgorithm):
    """Weighted denoising regression on finished pictures, as a Tianshou on-policy algorithm.

    Args:
        policy: the policy.
        pipeline: the model, for its noise schedule and prompts.
        optim: optimizer factory for the actor.
        weighting: see `picture_weights`.
        temperature: see `picture_weights`.
        shift: see `picture_weights`.
        regulariser: "none", "kl-o" or "kl-d"; without one, long runs lose picture quality.
        regulariser_weight: gamma.
        pool: 0 learns from each update's own pictures. Otherwise the first updates only gather this many pictures (of
            the pretrained model, as nothing was learned yet), and later ones learn from these.
        pretraining: latents (P, C, H, W) and prompts of pretraining pictures; Lee et al.'s second term with weight
            `pretraining_weight`.
        pretraining_weight: beta of Lee et al.
        micro_batch_size: pictures in one call of the UNet; memory and speed only.
        max_grad_norm: L2 norm gradients are clipped to; None leaves them.
    """

    def __init__(
        self,
        *,
        policy: DenoisingPolicy,
        pipeline: Pipeline,
        optim: OptimizerFactory,
        weighting: Weighting = "softmax",
        temperature: float = 0.2,
        shift: float = 0.0,
        regulariser: Literal["none", "kl-o", "kl-d"] = "none",
        regulariser_weight: float = 2.0,
        pool: int = 0,
        pretraining: tuple[Tensor, Sequence[str]] | None = None,
        pretraining_weight: float = 1.0,
        micro_batch_size: int = 32,
        max_grad_norm: float | None = 1.0,
    ) -> None:
        if weighting not in ("reward", "softmax", "top", "best"):
            raise ValueError(f'weighting must be "reward", "softmax", "top" or "best", got {weighting!r}')
        if regulariser not in ("none", "kl-o", "kl-d"):
            raise ValueError(f'regulariser must be "none", "kl-o" or "kl-d", got {regulariser!r}')
        super().__init__(policy=policy, optim=optim, micro_batch_size=micro_batch_size, max_grad_norm=max_grad_norm)
        self.pipeline = pipeline
        self.weighting: Weighting = weighting
        self.temperature = temperature
        self.shift = shift
        self.regulariser = regulariser
        self.regulariser_weight = regulariser_weight
        self.pool = pool
        self.pretraining = pretraining
        self.pretraining_weight = pretraining_weight
        self._reference = Reference(policy.actor) if regulariser == "kl-o" else None
        self._latent_PCHW: Tensor | None = None
        self._prompts: list[str] = []
        self._reward_P: Floats = np.zeros(0)
        self._alpha_bar_T = _alpha_bar(pipeline).to(policy.actor.kernel.device)

    @property
    def wants_pictures(self) -> bool:
        """Whether the next update makes use of a new rollout."""
        return self.pool == 0 or len(self._prompts) < self.pool

    def _update_with_batch(self, batch: Rollout, batch_size: int | None, repeat: int) -> DenoisingStats:
        if self.wants_pictures:
            self._gather(batch)
        if len(self._prompts) < self.pool:
            return DenoisingStats()
        return self.learn(batch_size, repeat)

    def learn(self, batch_size: int | None, repeat: int) -> DenoisingStats:
        """Passes over the gathered pictures.

        Args:
            batch_size: pictures an optimizer step; None for all.
            repeat: passes.
        """
        if self._latent_PCHW is None:
            raise ValueError("no pictures gathered yet: update from a rollout first")
        weight_P = picture_weights(
            self.weighting, self._reward_P, self._prompts, temperature=self.temperature, shift=self.shift
        )
        if not weight_P.any():
            raise ValueError(
                f"no picture has a positive weight (the best reward is {self._reward_P.max():.3g}): raise shift "
                '(--shift) until good pictures count, or use weighting="softmax"'
            )
        if self.regulariser == "kl-d":
            weight_P = weight_P + self.regulariser_weight
        losses: list[float] = []
        norms: list[float] = []
        for _ in range(repeat):
            for minibatch in chunks(np.random.permutation(len(weight_P)), batch_size):  # noqa: NPY002
                norm, loss = self._step(minibatch, weight_P)
                norms += [] if norm is None else [norm]
                losses.append(loss)
        return DenoisingStats(
            loss=float(np.mean(losses)),
            grad_norm=float(np.mean(norms)) if norms else 0.0,
            gradient_steps=len(norms),
            overflowed_steps=len(losses) - len(norms),
        )

    def _step(self, minibatch: Index, weight_P: Floats) -> tuple[float | None, float]:
        """One optimizer step; returns the gradient's norm, None if it overflowed, and the loss."""
        assert self._latent_PCHW is not None
        x0_BCHW = self._latent_PCHW[torch.from_numpy(minibatch)]
        prompts = [self._prompts[i] for i in minibatch]
        weight_B = torch.from_numpy(weight_P[minibatch]).float()
        if self.pretraining is not None:
            latent_PCHW, texts = self.pretraining
            chosen = np.random.randint(len(texts), size=len(minibatch))  # noqa: NPY002
            x0_BCHW = torch.cat([x0_BCHW, latent_PCHW[torch.from_numpy(chosen)].float().cpu()])
            prompts += [texts[i] for i in chosen]
            weight_B = torch.cat([weight_B, torch.full((len(chosen),), self.pretraining_weight)])
        # Drawn for the whole minibatch, so that micro-batches change nothing.
        timestep_B = torch.randint(len(self._alpha_bar_T), (len(x0_BCHW),))
        noise_BCHW = torch.randn_like(x0_BCHW)
        accumulator = Accumulator(self.optim._optim, max_grad_norm=self.max_grad_norm, scaler=self.scaler)
        total = 0.0
        for rows in chunks(np.arange(len(x0_BCHW)), self.micro_batch_size):
            part = torch.from_numpy(rows)
            loss_B = self._losses(
                x0_BCHW[part], [prompts[i] for i in rows], weight_B[part], timestep_B[part], noise_BCHW[part]
            )
            loss = loss_B.sum() / len(minibatch)
            accumulator.add(loss)
            total += float(loss.detach())
        return accumulator.step(), total

    def _losses(
        self, x0_BCHW: Tensor, prompts: Sequence[str], weight_B: Tensor, timestep_B: Tensor, noise_BCHW: Tensor
    ) -> Tensor:
        """Weighted denoising loss of each picture, (B,)."""
        device = self._alpha_bar_T.device
        x0, weight_B, timestep_B, noise = (t.to(device) for t in (x0_BCHW, weight_B, timestep_B, noise_BCHW))
        signal = self._alpha_bar_T[timestep_B].sqrt().view(-1, 1, 1, 1)
        spread = (1.0 - self._alpha_bar_T[timestep_B]).sqrt().view(-1, 1, 1, 1)
        latent = signal * x0 + spread * noise
        kind = self.pipeline.files.scheduler.get("prediction_type", "epsilon")
        target = {"epsilon": noise, "v_prediction": signal * noise - spread * x0, "sample": x0}[kind]
        embedding = self.pipeline.prompts.embeddings(self.pipeline.prompts.ids(list(prompts)))
        output, base = self._outputs(latent, timestep_B, embedding)
        loss_B = weight_B * (output - target).square().flatten(1).mean(1)
        if base is not None:
            loss_B = loss_B + self.regulariser_weight * (output - base).square().flatten(1).mean(1)
        return loss_B

    def _outputs(
        self, latent_BCHW: Tensor, timestep_B: Tensor, embedding: PromptEmbedding
    ) -> tuple[Tensor, Tensor | None]:
        """The policy's output and, if the regulariser asks for it, the pretrained model's.

        The conditional ones alone: guidance is no part of the denoising loss.
        """
        actor = self.policy.actor
        output = actor.denoiser.conditional(latent_BCHW, timestep_B, embedding)
        if self._reference is None:
            return output, None
        with torch.no_grad(), self._reference.active():
            return output, actor.denoiser.conditional(latent_BCHW, timestep_B, embedding)

    def predict(self, latent_BCHW: Tensor, step_B: Tensor, embedding: PromptEmbedding) -> Tensor:
        """As `DenoisingAlgorithm.predict`."""
        return self._outputs(latent_BCHW, self.policy.actor.kernel.timestep(step_B), embedding)[0]

    def _gather(self, rollout: Rollout) -> None:
        """Take the finished latents, in the place of the last ones or in addition to them."""
        last = rollout.index_I[rollout.num_steps - 1 :: rollout.num_steps]
        latent = torch.as_tensor(rollout.buffer.act[last], dtype=torch.float32).clone()
        if self.pool and self._latent_PCHW is not None:
            self._latent_PCHW = torch.cat([self._latent_PCHW, latent])
            self._prompts = self._prompts + rollout.prompts()
            self._reward_P = np.concatenate([self._reward_P, rollout.reward_E])
        else:
            self._latent_PCHW, self._prompts, self._reward_P = latent, rollout.prompts(), rollout.reward_E

    def extra_state(self, *, transitions: bool = True) -> dict[str, Any]:
        """The pool of pictures."""
        if not self.pool:
            return {}
        return {"latents": self._latent_PCHW, "prompts": self._prompts, "rewards": torch.from_numpy(self._reward_P)}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take up what `extra_state` gave."""
        if state:
            self._latent_PCHW, self._prompts = state["latents"], list(state["prompts"])
            self._reward_P = state["rewards"].numpy()


def _alpha_bar(pipeline: Pipeline) -> Tensor:
    """The cumulative alpha product of all training timesteps, float32."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(dict(pipeline.files.scheduler)).alphas_cumprod.float()
