import pytest
import torch
from tiny_emoji import tiny_configs

from diffusion_gym.emoji.pretrain import autoencoder, generator

torch.set_num_threads(1)


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
