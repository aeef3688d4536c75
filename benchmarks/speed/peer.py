"""The peer: TRL's DDPOTrainer, the last version that has it, from a directory of its own."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

VERSION = "0.23.1"
INSTALL = f"pip install --target DIR --no-deps trl=={VERSION} datasets==4.4.1 pyarrow dill multiprocess xxhash"


@dataclass(frozen=True, kw_only=True)
class PeerSettings:
    """Settings of a training by the peer.

    Attributes:
        model: the model.
        reward: a reward's name.
        prompt: the one prompt.
        seed: of everything random.
        steps: denoising steps.
        pictures: pictures an epoch.
        sample_batch: pictures sampled at once.
        train_batch: pictures, each at one step, in one call of the UNet in the update.
        accumulation: such batches, over all trained steps, an optimizer step.
        inner_epochs: passes over an epoch's pictures.
        learning_rate: of AdamW.
        clip_range: of the ratio of mean log-probabilities.
        fraction: share of each picture's steps that is trained on.
        guided: guidance at the model's own scale in sampling and training; without it training calls the UNet once,
            while sampling still calls it twice, at a scale of 1.000001: the peer fails at 1.
        tracking: rewards remembered of the prompt; 0 normalises by each epoch's own.
        adapters: which layers get adapters, see `agents.common.lora`.
        rank: of the adapters.
    """

    model: str = "emoji"
    reward: str = "emoji_preference"
    prompt: str = "a cow on the moon"
    seed: int = 0
    steps: int = 10
    pictures: int = 48
    sample_batch: int = 48
    train_batch: int = 16
    accumulation: int = 1
    inner_epochs: int = 1
    learning_rate: float = 1e-3
    clip_range: float = 2e-3
    fraction: float = 1.0
    guided: bool = True
    tracking: int = 0
    adapters: Literal["attention", "all"] = "all"
    rank: int = 16


def make_trainer(directory: str, settings: PeerSettings) -> Any:
    """TRL's trainer; call it in a process of its own, since it is added to that process's path.

    Args:
        directory: where TRL is installed.
        settings: of the training.
    """
    import diffusers
    import torch
    import transformers

    from agents.common.lora import add_lora
    from diffusion_gym.pipelines import load_pipeline
    from diffusion_gym.rewards import make_reward

    for library in (diffusers.utils.logging, transformers.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    sys.path.append(directory)
    importlib.import_module("accelerate").PartialState(cpu=True)
    trl = importlib.import_module("trl")
    pipeline = load_pipeline(settings.model, device="cpu")
    reward = make_reward(settings.reward, device=torch.device("cpu"))
    guidance_scale = pipeline.sampling.guidance_scale if settings.guided else 1.000001

    class Adapted(trl.DefaultDDPOStableDiffusionPipeline):  # type: ignore[name-defined]
        """The peer's pipeline with adapters of any rank on any layers; its own are of rank 4, on attention."""

        def get_trainable_layers(self) -> Any:
            """Add the adapters."""
            add_lora(self.sd_pipeline.unet, rank=settings.rank, targets=settings.adapters)
            return self.sd_pipeline.unet

    def judge(images: torch.Tensor, prompts: Sequence[str], metadata: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        return reward(images, list(prompts), [{} for _ in prompts]).total, {}

    config = trl.DDPOConfig(
        seed=settings.seed,
        mixed_precision="no",
        allow_tf32=False,
        log_with=None,
        save_freq=10**9,
        sample_num_steps=settings.steps,
        sample_eta=pipeline.sampling.eta,
        sample_guidance_scale=guidance_scale,
        train_cfg=settings.guided,
        sample_batch_size=settings.sample_batch,
        sample_num_batches_per_epoch=settings.pictures // settings.sample_batch,
        train_batch_size=settings.train_batch,
        train_gradient_accumulation_steps=settings.accumulation,
        train_num_inner_epochs=settings.inner_epochs,
        train_learning_rate=settings.learning_rate,
        train_clip_range=settings.clip_range,
        train_timestep_fraction=settings.fraction,
        per_prompt_stat_tracking=settings.tracking > 0,
        per_prompt_stat_tracking_buffer_size=max(1, settings.tracking),
        per_prompt_stat_tracking_min_count=min(16, max(1, settings.tracking)),
    )
    trainer = trl.DDPOTrainer(config, judge, lambda: (settings.prompt, {}), Adapted(pipeline.model, use_lora=True))
    trainer.sd_pipeline.set_progress_bar_config(disable=True)
    return trainer


def is_installed(directory: Path) -> bool:
    """Whether the peer lies in a directory."""
    return (directory / f"trl-{VERSION}.dist-info").is_dir()
