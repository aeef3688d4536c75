"""What policy-gradient algorithms over denoising share: minibatches, exact gradient accumulation, diagnostics."""

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import time
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from tianshou.algorithm.algorithm_base import OnPolicyAlgorithm, TrainingStats
from tianshou.algorithm.optim import OptimizerFactory
from tianshou.data import ReplayBuffer
from tianshou.utils.torch_utils import torch_train_mode
from torch import Tensor

from agents.common.advantages import Floats
from agents.common.optim import Accumulator, loss_scaler
from agents.common.policy import DenoisingPolicy
from agents.common.rollout import Index, Rollout, Transitions, chunks
from agents.common.timer import PhaseTimer
from diffusion_gym.pipelines import PromptEmbedding

StepWeights = Literal["uniform", "equal_noise"]


@dataclass(kw_only=True)
class DenoisingStats(TrainingStats):
    """Diagnostics of one update.

    Attributes:
        loss: mean over the optimizer steps.
        grad_norm: mean L2 norm before clipping.
        gradient_steps: optimizer steps on the policy.
        overflowed_steps: steps left out because a float16 gradient overflowed; a few at the start are normal.
        ratio_deviation: largest |ratio - 1| before the first optimizer step. Anything above 1e-6 (mean reduction,
            float32) on new transitions means that rollout and update do not agree.
        clip_fraction: share of transitions whose ratio left the clip range.
        skipped_fraction: share of transitions that contribute nothing (their advantage is 0) and were left out.
        kl: KL to the pretrained model in nats a picture, summed over its steps (DPOK's bound); None where it is not
            computed.
        kl_to_rollout: likewise, KL to the policy that drew the pictures.
        value_loss: mean squared error of the value function; None without one.
    """

    loss: float = 0.0
    grad_norm: float = 0.0
    gradient_steps: int = 0
    overflowed_steps: int = 0
    ratio_deviation: float | None = None
    clip_fraction: float | None = None
    skipped_fraction: float | None = None
    kl: float | None = None
    kl_to_rollout: float | None = None
    value_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What one micro-batch contributes.

    Attributes:
        loss_B: loss of each transition; carries the gradient.
        ratio_B: density ratio of the policy to the one that acted, detached.
        kl_B: KL of each step in nats, detached; None without a reference.
    """

    loss_B: Tensor
    ratio_B: Tensor
    kl_B: Tensor | None = None


class DenoisingAlgorithm(OnPolicyAlgorithm[DenoisingPolicy]):
    """Base of the project's algorithms: `update` reads the buffer in micro-batches and never copies it.

    Args:
        policy: the policy.
        optim: optimizer factory for the actor; see `agents.common.optim.adamw`.
        micro_batch_size: transitions in one call of the UNet. It sets memory and speed and changes nothing else: the
            gradients of a minibatch are accumulated exactly.
        max_grad_norm: L2 norm gradients are clipped to; None leaves them.
    """

    def __init__(
        self,
        *,
        policy: DenoisingPolicy,
        optim: OptimizerFactory,
        micro_batch_size: int = 32,
        max_grad_norm: float | None = 1.0,
    ) -> None:
        if micro_batch_size < 1:
            raise ValueError(f"micro_batch_size must be 1 or more, got {micro_batch_size}")
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be greater than 0 or None, got {max_grad_norm}")
        super().__init__(policy=policy)
        self.optim = self._create_optimizer(policy.actor, optim)
        self.scaler = loss_scaler(policy.actor.dtype, policy.actor.kernel.device)
        self.micro_batch_size = micro_batch_size
        self.max_grad_norm = max_grad_norm
        self.timer: PhaseTimer | None = None
        """Times the phases of an update, if somebody wants to know them."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Within it is a phase of its own for the timer."""
        return nullcontext() if self.timer is None else self.timer.phase(name)

    def update(self, buffer: ReplayBuffer, batch_size: int | None, repeat: int) -> DenoisingStats:
        """Learn from the episodes in the buffer.

        Args:
            buffer: whole episodes.
            batch_size: transitions an optimizer step; None for all of them.
            repeat: passes over the episodes.

        Raises:
            RuntimeError: not called within a training step (Tianshou's trainers see to it; elsewhere use
                `tianshou.utils.torch_utils.policy_within_training_step`).
            ValueError: the buffer is empty or holds parts of episodes.
            FloatingPointError: a gradient is not finite.
        """
        if not self.policy.is_within_training_step:
            raise RuntimeError(
                "update() was called outside of a training step: use policy_within_training_step(policy)"
            )
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, or None, got {batch_size}")
        start = time()
        rollout = Rollout(buffer, self.policy.actor)
        with torch_train_mode(self):
            stats = self._update_with_batch(rollout, batch_size, repeat)
        for lr_scheduler in self.lr_schedulers:
            lr_scheduler.step()
        stats.train_time = time() - start
        return stats

    def predict(self, latent_BCHW: Tensor, step_B: Tensor, embedding: PromptEmbedding) -> Tensor:
        """The output that a micro-batch's loss comes from, with gradient: the calls that `micro_batch` times.

        Args:
            latent_BCHW: latents, float32.
            step_B: steps, int64.
            embedding: of the B prompts.
        """
        return self.policy.actor.mean_and_output(latent_BCHW, step_B, embedding)[0]

    @abstractmethod
    def _update_with_batch(self, batch: Rollout, batch_size: int | None, repeat: int) -> DenoisingStats:
        """Learn from a rollout; called by `update`."""

    def extra_state(self, *, transitions: bool = True) -> dict[str, Any]:
        """State beyond parameters and optimizers that a checkpoint needs.

        Args:
            transitions: whether the buffer's transitions are saved too; else what belongs to them is left out.
        """
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take up what `extra_state` gave."""


class PolicyGradient(DenoisingAlgorithm):
    """Base of DDPO and DPOK: which transitions, in which batches, and what is measured.

    Args:
        policy: the policy.
        optim: optimizer factory for the actor.
        clip_range: c; ratios outside 1 +- c count as clipped. It belongs to the policy's reduction.
        timestep_fraction: share of each episode's steps that an update learns from, chosen at random. 0.5 halves the
            cost of an update at the price of a noisier gradient.
        step_weights: how much each step's advantages count. "uniform" is the policy gradient itself. The noise of a
            step's score grows with the square root of its KL per change of the model output; with few DDIM steps that
            KL is dozens of times larger at the last step but one than elsewhere, and its noise drowns the rest.
            "equal_noise" divides it out (weights of mean 1): a positive combination of the steps' gradients instead of
            their sum. A KL term is not touched.
        micro_batch_size: transitions in one call of the UNet.
        max_grad_norm: L2 norm gradients are clipped to; None leaves them.
    """

    def __init__(
        self,
        *,
        policy: DenoisingPolicy,
        optim: OptimizerFactory,
        clip_range: float,
        timestep_fraction: float = 1.0,
        step_weights: StepWeights = "uniform",
        micro_batch_size: int = 32,
        max_grad_norm: float | None = 1.0,
    ) -> None:
        if step_weights not in ("uniform", "equal_noise"):
            raise ValueError(f'step_weights must be "uniform" or "equal_noise", got {step_weights!r}')
        if not clip_range > 0:
            raise ValueError(f"clip_range must be greater than 0, got {clip_range}")
        if not 0 < timestep_fraction <= 1:
            raise ValueError(f"timestep_fraction must be in (0, 1], got {timestep_fraction}")
        super().__init__(policy=policy, optim=optim, micro_batch_size=micro_batch_size, max_grad_norm=max_grad_norm)
        self.clip_range = clip_range
        self.timestep_fraction = timestep_fraction
        self.step_weights: StepWeights = step_weights

    def step_weight_T(self) -> Floats:
        """Weight of each step's advantages, (T,) float64, of mean 1."""
        kernel = self.policy.actor.kernel
        if self.step_weights == "uniform":
            return np.ones(kernel.num_steps)
        steps = torch.arange(kernel.num_steps, device=kernel.device)
        weight_T = kernel.kl_weight(steps).flatten().double().cpu().numpy() ** -0.5
        return weight_T / weight_T.mean()

    def _update_with_batch(self, batch: Rollout, batch_size: int | None, repeat: int) -> DenoisingStats:
        rows = batch.choose(self.timestep_fraction)
        advantage_I = self._prepare(batch, rows) * self.step_weight_T()[batch.step_I]
        optimizer = self.optim._optim
        losses: list[Tensor] = []
        norms: list[float] = []
        ratios: list[Tensor] = []
        kls: list[Tensor] = []
        first: list[Tensor] = []
        skipped = overflowed = 0
        for _ in range(repeat):
            for minibatch in chunks(rows[np.random.permutation(len(rows))], batch_size):  # noqa: NPY002
                accumulator = Accumulator(optimizer, max_grad_norm=self.max_grad_norm, scaler=self.scaler)
                total = torch.zeros((), device=self.policy.actor.kernel.device)
                useful = minibatch[self._contributes(minibatch, advantage_I[minibatch])]
                skipped += len(minibatch) - len(useful)
                # With nothing to learn from the gradient is 0, which the optimizer's momentum must see.
                for micro in chunks(useful if len(useful) else minibatch[:1], self.micro_batch_size):
                    terms = self._terms(batch, batch.gather(micro), advantage_I[micro])
                    loss = terms.loss_B.sum() / len(minibatch)
                    accumulator.add(loss)
                    total = total + loss.detach()
                    ratios.append(terms.ratio_B)
                    if terms.kl_B is not None:
                        kls.append(terms.kl_B)
                    if not norms:
                        first.append(terms.ratio_B)
                norm = accumulator.step()
                if norm is None:
                    overflowed += 1
                else:
                    norms.append(norm)
                losses.append(total)
        ratio = torch.cat(ratios)
        return DenoisingStats(
            loss=float(torch.stack(losses).mean()),
            grad_norm=float(np.mean(norms)) if norms else 0.0,
            gradient_steps=len(norms),
            overflowed_steps=overflowed,
            ratio_deviation=float((torch.cat(first) - 1.0).abs().max()),
            clip_fraction=float(((ratio - 1.0).abs() > self.clip_range).float().mean()),
            skipped_fraction=skipped / (repeat * len(rows)),
            kl=float(torch.cat(kls).mean()) * batch.num_steps if kls else None,
        )

    def _contributes(self, rows: Index, advantage_B: Floats) -> npt.NDArray[np.bool_]:
        """Which transitions have a gradient that is not 0 for certain, (B,)."""
        return advantage_B != 0

    @abstractmethod
    def _prepare(self, rollout: Rollout, rows: Index) -> Any:
        """Once an update, before the first gradient: the advantage of each transition, (I,) float64."""

    @abstractmethod
    def _terms(self, rollout: Rollout, transitions: Transitions, advantage_B: Any) -> Terms:
        """Loss and diagnostics of a micro-batch."""
