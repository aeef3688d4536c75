"""The parts of the emoji world, shrunk until they train in a second."""

from dataclasses import replace
from pathlib import Path

from diffusion_gym.emoji.pretrain import autoencoder, generator, preference, quality, reader
from diffusion_gym.emoji.pretrain.loop import LoopConfig


def tiny_loop(folder: Path, steps: int = 8, batch_size: int = 8, seed: int = 0) -> LoopConfig:
    """A few quick steps with a checkpoint after every second one."""
    return LoopConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=2e-3,
        warmup_steps=2,
        ema_decay=0.5,
        checkpoint_every=2,
        seed=seed,
        runs=folder,
    )


def tiny_configs(folder: Path, seed: int = 0) -> dict[str, object]:
    """The configuration of each part, shrunk."""
    loop = tiny_loop(folder, seed=seed)
    return {
        "autoencoder": autoencoder.AutoencoderConfig((8, 8, 8, 16), latent_channels=4, encoder_steps=6, loop=loop),
        "generator": generator.GeneratorConfig((16, 32), text_width=16, text_layers=1, scenes=24, loop=loop),
        "reader": reader.ReaderConfig(redrawn_scenes=0, loop=loop),
        "quality": quality.QualityConfig(loop=loop),
        "preference": preference.PreferenceConfig(
            few_step_samples=6, redrawn_prompts=0, loop=replace(loop, batch_size=8)
        ),
    }
