"""Settings of each agent: one dataclass an agent."""

from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar, Literal

from agents.config.training import TrainConfig


@dataclass(kw_only=True)
class PolicyGradientConfig(TrainConfig):
    """Settings of DDPO and DPOK."""

    passes: int = 1
    """How often an update goes through the transitions. More learn more from a picture, and cost as much again."""
    clip_range: float = 2e-3
    """Of the ratio; it belongs to the reduction and the latent. 2e-3 for the embedded model's 512 values under mean,
    1e-4 for Stable Diffusion's 16,384; 0.1 to 0.2 under sum."""
    timestep_fraction: float = 0.5
    """Share of each picture's steps that an update learns from."""
    step_weights: Literal["uniform", "equal_noise"] = "equal_noise"
    """"equal_noise" weighs down the steps whose gradient is mostly noise (with few steps, the last but one), so that as
    many pictures teach more; "uniform" is the policy gradient as published."""

    def check(self) -> None:
        """As `TrainConfig.check`."""
        super().check()
        check_clip_range(self.clip_range, self.reduction)
        if not 0 < self.timestep_fraction <= 1:
            raise ValueError(f"--timestep-fraction must be in (0, 1], got {self.timestep_fraction}")

    def trained_steps(self) -> int:
        """Steps of a picture that an update learns from."""
        return max(1, round(self.timestep_fraction * self.steps))

    def transitions(self) -> int:
        """As `TrainConfig.transitions`."""
        return self.pictures * self.trained_steps()

    def minibatch(self) -> int | None:
        """As `TrainConfig.minibatch`."""
        return self.batch_size or ceil(self.transitions() / 3)


@dataclass(kw_only=True)
class DDPOConfig(PolicyGradientConfig):
    """DDPO (Black et al. 2023): PPO on the denoising steps, rewards normalised per prompt."""

    agent: ClassVar[str] = "ddpo"

    estimator: Literal["importance", "score"] = "importance"
    """"score" is DDPO_SF: one optimizer step an iteration, with --passes 1."""

    def check(self) -> None:
        """As `TrainConfig.check`."""
        super().check()
        if self.estimator == "score" and (self.passes != 1 or self.batch_size is not None):
            raise ValueError("--estimator score makes one optimizer step an iteration: use --passes 1, no --batch-size")

    def minibatch(self) -> int | None:
        """As `TrainConfig.minibatch`."""
        return None if self.estimator == "score" else super().minibatch()


@dataclass(kw_only=True)
class DPOKConfig(PolicyGradientConfig):
    """DPOK (Fan et al. 2023): policy gradient with the KL to the pretrained model."""

    agent: ClassVar[str] = "dpok"

    reward_weight: float = 1.0
    """Of the advantages, beside the KL's weight."""
    normalise: bool = True
    """Divide advantages by the deviation of their prompt's rewards; without, the reward's own scale counts."""
    kl_weight: float = 0.02
    """Raise it when pictures degrade while the reward rises; lower it when the reward does not rise."""
    kl_fraction: float = 1.0
    """Share of the transitions on which the KL is taken; 0.5 saves half of the pretrained model's calls."""
    kl_reference: Literal["pretrained", "rollout"] = "pretrained"
    """"rollout" takes the KL to the policy that drew the pictures: no calls of the pretrained model, but it holds back
    how far an update goes, not how far the policy gets in the end."""
    kl_form: Literal["exact", "unweighted"] = "exact"
    """"unweighted" is the released code's difference of noise predictions."""
    ratio_form: Literal["ppo", "clamped"] = "ppo"
    """"clamped" is the released code's, without PPO's minimum."""
    value_function: bool = False
    """Subtract a learned V(latent, prompt, step) from the reward; for several prompts."""
    rollouts: int = 1
    """Iterations whose pictures are kept and learned from again; the released code keeps about two."""

    def check(self) -> None:
        """As `TrainConfig.check`."""
        super().check()
        if not self.reward_weight > 0:
            raise ValueError(f"--reward-weight must be greater than 0, got {self.reward_weight}")
        if self.kl_weight < 0:
            raise ValueError(f"--kl-weight must be 0 or more, got {self.kl_weight}")
        if not 0 < self.kl_fraction <= 1:
            raise ValueError(f"--kl-fraction must be in (0, 1], got {self.kl_fraction}")
        if self.rollouts < 1:
            raise ValueError(f"--rollouts must be 1 or more, got {self.rollouts}")
        if self.kl_reference == "rollout" and self.kl_form != "exact":
            raise ValueError(f"--kl-reference rollout needs --kl-form exact, got {self.kl_form}")
        if self.kl_weight == 0 and self.kl_form != "exact":
            raise ValueError(f"--kl-form {self.kl_form} has no effect with --kl-weight 0: leave one of them out")

    def transitions(self) -> int:
        """As `TrainConfig.transitions`, once as many rollouts are there as are kept."""
        return super().transitions() * self.rollouts


@dataclass(kw_only=True)
class SFTConfig(TrainConfig):
    """Reward-weighted supervised fine-tuning (Lee et al. 2023; the baseline in DPOK; RWR in DDPO)."""

    agent: ClassVar[str] = "sft"

    learning_rate: float = 2e-4
    """Of AdamW; 2e-5 for Stable Diffusion."""
    weighting: Literal["reward", "softmax", "top", "best"] = "softmax"
    """Weight of a picture: its reward (Lee, DPOK; rewards must not be negative, so they are shifted by --shift and cut
    at 0), exp(reward / temperature) over its prompt (RWR), 1 for the best tenth, or 1 for the best of each prompt."""
    temperature: float = 0.2
    """Of "softmax", in standard deviations of the rewards."""
    shift: float = 0.0
    """Added to rewards under "reward"."""
    regulariser: Literal["none", "kl-o", "kl-d"] = "none"
    """DPOK's two: kl-o adds the distance to the pretrained model's predictions, kl-d a constant to every weight. With
    several prompts and --pool 0 take kl-o: learning from one's own few pictures drifts, and rewards fall."""
    regulariser_weight: float = 2.0
    """gamma of the regulariser; 2 was the best of 0.1 to 5 in DPOK."""
    pool: int = 0
    """Pictures drawn once from the pretrained model and then learned from (offline, as Lee and DPOK's baseline);
    0 learns from each iteration's own pictures (RWR)."""

    def check(self) -> None:
        """As `TrainConfig.check`."""
        super().check()
        if not self.temperature > 0:
            raise ValueError(f"--temperature must be greater than 0, got {self.temperature}")
        if self.temperature != 0.2 and self.weighting != "softmax":
            raise ValueError(f"--temperature has no effect with --weighting {self.weighting}: leave it out")
        if self.reduction != "mean":
            raise ValueError("--reduction has no effect with sft, which has no log-probabilities: leave it out")
        if self.pool < 0 or self.pool % self.pictures:
            raise ValueError(f"--pool must be 0 or a multiple of --pictures {self.pictures}, got {self.pool}")
        if self.pool > (drawn := self.iterations * self.pictures):
            raise ValueError(
                f"--pool must be at most {drawn}, which is what --iterations {self.iterations} draw, got {self.pool}: "
                "nothing is learned before it is full"
            )
        if self.regulariser_weight < 0:
            raise ValueError(f"--regulariser-weight must be 0 or more, got {self.regulariser_weight}")

    def transitions(self) -> int:
        """As `TrainConfig.transitions`, once the pool is full."""
        return self.pool or self.pictures

    def minibatch(self) -> int | None:
        """As `TrainConfig.minibatch`; of a pool as many as without one."""
        return self.batch_size or ceil(self.pictures / 2)


@dataclass(kw_only=True)
class StockConfig(TrainConfig):
    """Settings of Tianshou's own algorithms, which learn from every step of every picture."""

    passes: int = 1
    """How often an update goes through the transitions."""
    micro_batch_size: int = 64
    """Not used: these algorithms take a whole minibatch at once. Lower --batch-size when memory is short."""

    def check(self) -> None:
        """As `TrainConfig.check`."""
        super().check()
        if self.micro_batch_size != 64 or self.measure_micro_batch:
            raise ValueError(
                f"--micro-batch-size and --measure-micro-batch have no effect with {self.agent}: lower --batch-size "
                "instead"
            )
        if self.dtype == "float16":
            raise ValueError(f"--dtype float16 loses the small gradients of {self.agent}: use bfloat16 or float32")

    def minibatch(self) -> int | None:
        """As `TrainConfig.minibatch`; all of them unless --batch-size says otherwise."""
        return self.batch_size


@dataclass(kw_only=True)
class ReinforceConfig(StockConfig):
    """Tianshou's Reinforce (Williams 1992), returns standardised by their running mean and deviation."""

    agent: ClassVar[str] = "reinforce"

    max_grad_norm: float | None = None
    """Not used: Tianshou's Reinforce does not clip gradients."""

    def check(self) -> None:
        """As `TrainConfig.check`."""
        super().check()
        if self.max_grad_norm is not None:
            raise ValueError("--max-grad-norm has no effect with reinforce, which does not clip: leave it out")


@dataclass(kw_only=True)
class A2CConfig(StockConfig):
    """Tianshou's A2C (Mnih et al. 2016) with a value function on (latent, prompt, step)."""

    agent: ClassVar[str] = "a2c"

    value_weight: float = 0.5
    """Of the value function's loss."""

    def check(self) -> None:
        """As `TrainConfig.check`."""
        super().check()
        if self.value_weight < 0:
            raise ValueError(f"--value-weight must be 0 or more, got {self.value_weight}")


@dataclass(kw_only=True)
class PPOConfig(A2CConfig):
    """Tianshou's PPO (Schulman et al. 2017) with a value function on (latent, prompt, step)."""

    agent: ClassVar[str] = "ppo"

    passes: int = 2
    """How often an update goes through the transitions."""
    clip_range: float = 2e-3
    """Of the ratio; see DDPO's."""

    def check(self) -> None:
        """As `TrainConfig.check`."""
        super().check()
        check_clip_range(self.clip_range, self.reduction)

    def minibatch(self) -> int | None:
        """As `TrainConfig.minibatch`; half of them unless --batch-size says otherwise."""
        return TrainConfig.minibatch(self)


def check_clip_range(clip_range: float, reduction: str) -> None:
    """Raise ValueError for a clip range that cannot work under a reduction."""
    if not clip_range > 0:
        raise ValueError(f"--clip-range must be greater than 0, got {clip_range}")
    if reduction == "mean" and clip_range > 0.05:
        raise ValueError(
            f"--clip-range {clip_range} never clips a ratio of mean log-probabilities: use 2e-3 (embedded model) or "
            "1e-4 (Stable Diffusion), or --reduction sum"
        )


AGENTS: dict[str, type[TrainConfig]] = {
    config.agent: config for config in (DDPOConfig, DPOKConfig, SFTConfig, ReinforceConfig, A2CConfig, PPOConfig)
}
"""Agents by name."""


def config_from_json(values: dict[str, Any], **changes: Any) -> TrainConfig:
    """The configuration that `to_json` wrote.

    Raises:
        ValueError: it names an unknown agent, or settings that this version does not know.
    """
    values = dict(values)
    agent = values.pop("agent", None)
    if agent not in AGENTS:
        raise ValueError(f"agent must be one of {sorted(AGENTS)}, got {agent!r}")
    values |= {name: tuple(values.get(name, ())) for name in ("prompts", "reward_sources")}
    try:
        return AGENTS[agent](**{**values, **changes})
    except TypeError as error:
        raise ValueError(f"the run was written by another version of diffusion-gym ({error})") from error
