from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffusion_gym.emoji.pretrain import autoencoder, generator, preference, quality, reader
from diffusion_gym.emoji.pretrain.loop import LoopConfig

torch.set_num_threads(1)


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
        "reader": reader.ReaderConfig(loop=loop),
        "quality": quality.QualityConfig(loop=loop),
        "preference": preference.PreferenceConfig(few_step_samples=6, loop=replace(loop, batch_size=8)),
    }


@pytest.fixture(scope="session")
def tiny_autoencoder(tmp_path_factory):
    """An untrained autoencoder of the smallest size."""
    config = tiny_configs(tmp_path_factory.mktemp("runs"))["autoencoder"]
    return autoencoder.build_autoencoder(config).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory, tiny_autoencoder):
    """A weights folder with a tiny untrained pipeline, reader, preference and quality."""
    from diffusion_gym.emoji.files import save_weights
    from diffusion_gym.emoji.preference import PreferenceNet
    from diffusion_gym.emoji.quality import QualityNet
    from diffusion_gym.emoji.reader import ReaderNet

    out = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    unet = generator.build_unet((16, 32), 4, 16)
    text_encoder = generator.build_text_encoder(16, 1)
    generator.write_pipeline(unet, text_encoder, tiny_autoencoder, out / "pipeline")
    tiny_autoencoder.float()
    for name, net in (("reader", ReaderNet()), ("preference", PreferenceNet()), ("quality", QualityNet())):
        save_weights(net, out / f"{name}.safetensors")
    return out
