"""Settings that all agents share."""

from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any, ClassVar, Literal

_NOT_SETTINGS = ("out", "resume", "dry_run", "profile")
"""Fields that say what to do, not how a run is."""
MANY = 64
"""Pictures from which on denoising more at once costs memory and wins nothing."""


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
    profile: bool = False
    """Print at the end where the time went, and write traces of a few calls of the UNet (trace_sample.json and
    trace_update.json, for chrome://tracing)."""

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
    """Prompts, or one name of a prompt set (emoji/probes, emoji/train, emoji/colored), or one .txt or .jsonl file."""
    steps: int = 10
    """Denoising steps T in training. Few are cheap; a policy trained at 10 gains a little less when sampled at 20."""
    guidance_scale: float | None = None
    """Classifier-free guidance, part of the policy; by default the model's own."""
    guided_training: bool = True
    """False trains the unguided policy, which takes half of the UNet's calls; evaluation and use are guided all the
    same. Guidance then carries what was learned further than training saw, in reward and in KL."""
    unconditional_gradient: bool = True
    """False leaves the guidance's unconditional half out of the gradient: an update costs a third less, and learns as
    if the adapters did not reach that half. The ratio stays exact."""
    merge_adapters: bool = True
    """Add the adapters into the weights while pictures are sampled, which is cheaper and moves the ratio by rounding
    (below 1e-6). Float32 and --reduction mean only; elsewhere it has no effect."""
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
    """Pictures denoised at once, a divisor of `pictures`; by default all, or of more than 64 a part of at most 64: more
    would not be faster. Lower it when memory is short."""
    batch_size: int | None = None
    """Transitions an optimizer step; by default a third of those an update learns from (a half for ppo, all for
    reinforce and a2c, half of an iteration's pictures for sft)."""
    passes: int = 2
    """How often an update goes through the transitions."""
    micro_batch_size: int = 64
    """Transitions in one call of the UNet in the update: memory and speed, never results."""
    measure_micro_batch: bool = False
    """Measure at the start which size, from --micro-batch-size downwards, this machine is fastest with, and use that.
    Sizes round differently, so that a run may then not repeat bit for bit."""
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
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"--batch-size must be 1 or more, got {self.batch_size}")
        if self.seed < 0:
            raise ValueError(f"--seed must be 0 or more, got {self.seed}")
        if self.guidance_scale is not None and self.guidance_scale != 0 and not self.guidance_scale >= 1:
            raise ValueError(f"--guidance-scale must be 1 or 0 (no guidance), or more, got {self.guidance_scale}")
        if self.eta is not None and not 0 < self.eta <= 1:
            raise ValueError(f"--eta must be greater than 0 and at most 1, got {self.eta}")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"--max-grad-norm must be greater than 0, got {self.max_grad_norm}")
        if not self.learning_rate > 0:
            raise ValueError(f"--learning-rate must be greater than 0, got {self.learning_rate}")
        if self.slots is not None and (self.slots < 1 or self.pictures % self.slots):
            raise ValueError(f"--slots must divide --pictures {self.pictures}, got {self.slots}")
        if self.async_rewards and self.num_slots() >= self.pictures:
            raise ValueError(
                f"--async-rewards needs --slots smaller than --pictures {self.pictures}, got {self.slots}: with "
                "all pictures sampled at once there is nothing left to sample while they are judged"
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

    def num_slots(self) -> int:
        """Pictures denoised at once."""
        if self.slots is not None:
            return self.slots
        parts = [size for size in range(MANY // 2, MANY + 1) if self.pictures % size == 0]
        return max(parts) if self.pictures > MANY and parts else self.pictures

    def training_guidance_scale(self) -> float | None:
        """Of the policy that is trained; None for the model's own."""
        return self.guidance_scale if self.guided_training else 1.0

    def merges_adapters(self) -> bool:
        """Whether rollouts run with the adapters in the weights."""
        # Sums over a latent would multiply the rounding by its size.
        fits = self.dtype == "float32" and self.reduction == "mean" and not self.compile
        return self.merge_adapters and fits and not self.full

    def transitions(self) -> int:
        """Transitions (pictures for supervised agents) an update learns from."""
        return self.pictures * self.steps

    def minibatch(self) -> int | None:
        """Transitions (pictures for supervised agents) an optimizer step; None for all of them."""
        return self.batch_size or ceil(self.transitions() / 2)

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
