"""What can be set on the command line: one dataclass an agent, over what all agents share. Imports nothing heavy."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

_NOT_SETTINGS = ("out", "resume", "dry_run")
"""Fields that say what to do, not how a run is."""


@dataclass(kw_only=True)
class TrainConfig:
    """Settings of every agent."""

    agent: ClassVar[str] = ""

    out: Path = Path("runs/run")
    """Directory of the run. A new run needs a new or empty one."""
    resume: bool = False
    """Go on with the run in `out` from its last finished iteration."""
    dry_run: bool = False
    """Only print what the training would take: memory of the GPU, and the time of an iteration."""

    model: str = "emoji"
    """"emoji" for the embedded model; a directory in diffusers' format or a .safetensors file of Stable Diffusion 1.x,
    2.x or XL; or a hub id, with @revision behind it if need be."""
    reward: str = "emoji_preference"
    """A reward's name, module:function of your own, or the URL of a reward server (diffusion-gym serve); several with
    weights: emoji_preference=1,http://127.0.0.1:8000=0.2."""
    reward_sources: tuple[str, ...] = ()
    """Where rewards get their weights, as name=PATH or name=HUB_ID: pick_score=/models/PickScore_v1; other options of a
    reward as name.option=value. By default each reward's own hub id."""
    reward_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the rewards' networks run in."""
    async_rewards: bool = False
    """Sample the next pictures while the last ones are judged; with --slots smaller than --pictures. It hides the time
    of a reward on a server or another device, and changes no result."""
    prompts: tuple[str, ...] = ("emoji/probes",)
    """Prompts, or one name of a prompt set (emoji/probes, emoji/train), or one .txt or .jsonl file."""
    steps: int = 10
    """Denoising steps T in training. Few are cheap; a policy trained at 10 gains a little less when sampled at 20."""
    guidance_scale: float | None = None
    """Classifier-free guidance, part of the policy; by default the model's own."""
    eta: float | None = None
    """Noise level of DDIM; by default the model's own."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the frozen networks run in; adapters, latents and log-probabilities stay float32."""
    gradient_checkpointing: bool = False
    """Keep fewer of the UNet's intermediate results and compute them again: half the memory, a third more time."""
    attention_slicing: bool = False
    """Attention in slices: less memory without fused attention kernels, slower with them."""
    vae_slicing: bool = False
    """Decode one picture at a time."""
    compile: bool = False
    """Compile the UNet (torch.compile): minutes at the start, faster calls afterwards."""
    seed: int = 0
    """Of everything random. The same seed on the same machine gives the same run."""

    iterations: int = 25
    """Rollout and update, this often."""
    pictures: int = 48
    """Pictures an iteration."""
    slots: int | None = None
    """Pictures denoised at once, a divisor of `pictures`; by default all. Lower it when memory is short."""
    batch_size: int | None = None
    """Transitions an optimizer step; by default a third of those an update learns from (a half for ppo and sft, all for
    reinforce and a2c)."""
    passes: int = 2
    """How often an update goes through the transitions."""
    micro_batch_size: int = 64
    """Transitions in one call of the UNet in the update: memory and speed, never results."""
    learning_rate: float = 1e-3
    """Of AdamW. 1e-3 for the embedded model with adapters of rank 16; 3e-4 for Stable Diffusion with rank 4; 1e-5 for a
    whole UNet."""
    max_grad_norm: float | None = 1.0
    """Gradients are clipped to this L2 norm."""
    reduction: Literal["mean", "sum"] = "mean"
    """Over the latent's values in log-probabilities and KL; the clip range belongs to it."""
    full: bool = False
    """Train the whole UNet, not adapters; what is saved is then a pipeline directory."""
    lora_rank: int = 16
    """Rank of the adapters; 4 for Stable Diffusion."""
    lora_targets: Literal["attention", "all"] = "all"
    """Which layers get adapters: attention suffices for Stable Diffusion."""
    checkpoint_every: int = 1
    """Iterations between checkpoints. A run that is killed goes back to the last one."""

    def check(self) -> None:
        """Raise ValueError for settings that cannot work, before anything is loaded."""
        for name in ("steps", "iterations", "pictures", "passes", "micro_batch_size", "lora_rank", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"--learning-rate must be greater than 0, got {self.learning_rate}")
        if self.slots is not None and (self.slots < 1 or self.pictures % self.slots):
            raise ValueError(f"--slots must divide --pictures {self.pictures}, got {self.slots}")
        if self.async_rewards and (self.slots is None or self.slots >= self.pictures):
            raise ValueError(
                f"--async-rewards needs --slots smaller than --pictures {self.pictures}, got {self.slots}: with all "
                "pictures sampled at once there is nothing left to sample while they are judged"
            )
        if self.full and self.dtype != "float32":
            raise ValueError(
                f"--full trains the network's own weights, whose small updates vanish in {self.dtype}: use --dtype "
                "float32, or train adapters (leave --full out)"
            )
        if self.full and self.learning_rate > 1e-4:
            raise ValueError(
                f"--full with --learning-rate {self.learning_rate} destroys the network: use 1e-5 (at most 1e-4)"
            )
        if not self.prompts:
            raise ValueError("--prompts must name at least one prompt")
        prompt_spec(self.prompts)
        self.source_spec()

    def minibatch(self) -> int | None:
        """Transitions (pictures for supervised agents) an optimizer step; None for all of them."""
        return self.batch_size or max(1, self.pictures * self.steps // 2)

    def reward_spec(self) -> str | dict[str, float]:
        """The reward as `make_reward` takes it.

        Raises:
            ValueError: `reward` cannot be read.
        """
        if "=" not in self.reward and "," not in self.reward:
            return self.reward
        weights = {}
        for term in self.reward.split(","):
            name, _, weight = term.partition("=")
            try:
                weights[name.strip()] = float(weight or 1.0)
            except ValueError as error:
                raise ValueError(f"--reward: {weight!r} is not a weight; write name=weight,name=weight") from error
        return weights

    def source_spec(self) -> dict[str, str]:
        """The rewards' sources as `make_reward` takes them.

        Raises:
            ValueError: one of them is not of the form name=place.
        """
        return source_spec(self.reward_sources)

    def prompt_spec(self) -> str | list[str]:
        """The prompts as `load_prompts` takes them."""
        return prompt_spec(self.prompts)

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the agent's name; without what is no setting of the run itself."""
        values = {name: value for name, value in asdict(self).items() if name not in _NOT_SETTINGS}
        values |= {"prompts": list(self.prompts), "reward_sources": list(self.reward_sources)}
        return {"agent": self.agent, **values}


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

    def minibatch(self) -> int | None:
        """As `TrainConfig.minibatch`."""
        steps = max(1, round(self.timestep_fraction * self.steps))
        return self.batch_size or max(1, self.pictures * steps // 3)


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
        if self.rollouts < 1:
            raise ValueError(f"--rollouts must be 1 or more, got {self.rollouts}")
        if self.kl_weight == 0 and self.kl_form != "exact":
            raise ValueError(f"--kl-form {self.kl_form} has no effect with --kl-weight 0: leave one of them out")


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
    """DPOK's two: kl-o adds the distance to the pretrained model's predictions, kl-d a constant to every weight."""
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
        if self.regulariser_weight < 0:
            raise ValueError(f"--regulariser-weight must be 0 or more, got {self.regulariser_weight}")

    def minibatch(self) -> int | None:
        """As `TrainConfig.minibatch`."""
        return self.batch_size or max(1, self.pictures // 2)


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
        if self.micro_batch_size != 64:
            raise ValueError(f"--micro-batch-size has no effect with {self.agent}: lower --batch-size instead")
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


def prompt_spec(prompts: tuple[str, ...]) -> str | list[str]:
    """Prompts from the command line as `load_prompts` takes them.

    Raises:
        ValueError: a prompt set or file stands among several prompts.
    """
    sources = [text for text in prompts if text.startswith("emoji/") or text.endswith((".txt", ".jsonl"))]
    if sources and len(prompts) > 1:
        raise ValueError(f"--prompts takes one prompt set or file, or prompts, not {sources[0]!r} among others")
    return sources[0] if sources else list(prompts)


def source_spec(sources: tuple[str, ...]) -> dict[str, str]:
    """Sources of rewards from the command line as `make_reward` takes them.

    Raises:
        ValueError: one of them is not of the form name=place.
    """
    found = {}
    for text in sources:
        name, _, place = text.partition("=")
        if not name or not place:
            raise ValueError(f"--reward-sources: {text!r} must be name=PATH or name=HUB_ID")
        found[name] = place
    return found


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


@dataclass(kw_only=True)
class EvaluateConfig:
    """Pictures of the pretrained and of the trained model from the same noise, judged."""

    prompts: tuple[str, ...] = ()
    """Other prompts than those of the training: texts, or the name or file of a prompt set."""
    pictures: int = 64
    """Pictures a model, spread over the prompts."""
    seed: int = 10_000
    """Noise of the first picture; the i-th has seed + i. Not used in training."""
    steps: int | None = None
    """Denoising steps; by default those of the training."""
    batch_size: int = 32
    """Pictures at once."""
    rewards: tuple[str, ...] = field(default=())
    """Further rewards to report beside the one trained on."""
    reward_sources: tuple[str, ...] = ()
    """Where those rewards get their weights, as in training."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    def check(self) -> None:
        """Raise ValueError for settings that cannot work."""
        for name in ("pictures", "batch_size"):
            if getattr(self, name) < (2 if name == "pictures" else 1):
                raise ValueError(f"--{name.replace('_', '-')} is too small: {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"--seed must be 0 or more, got {self.seed}")
        source_spec(self.reward_sources)


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
