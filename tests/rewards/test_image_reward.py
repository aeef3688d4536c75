"""ImageReward: the authors' numbers from the authors' weights, and no numbers from any others."""

import json
from pathlib import Path

import pytest
import reduced_image_reward as reduced
import safetensors.torch
import torch
from torch import nn

from diffusion_gym.rewards import image_reward, make_reward
from diffusion_gym.rewards.preprocess import clip_pixels

GOLDEN = json.loads(Path(__file__).with_name("golden").joinpath("image_reward.json").read_text())
IMAGES = [torch.from_numpy(picture).permute(2, 0, 1)[None] / 255 for picture in reduced.pictures()]
CPU = torch.device("cpu")
# Measured: 0 on the machine that recorded it, 3e-6 with other kernels. The slips below move features by over 1e-2.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The checkpoint under its published name, and a tokenizer."""
    directory = tmp_path_factory.mktemp("image_reward")
    torch.save(reduced.weights(GOLDEN["shapes"]), directory / "ImageReward.pt")
    (directory / "vocab.txt").write_text("\n".join(reduced.WORDS))
    return directory


@pytest.fixture
def judge(directory):
    return image_reward.image_reward(CPU, source=str(directory), tokenizer=str(directory))


def deviations(judge):
    """Largest deviations of features and rewards from the authors'."""
    pairs = list(zip(IMAGES, reduced.PROMPTS, strict=True))
    features = torch.cat([judge.features(image, [prompt]) for image, prompt in pairs])
    rewards = torch.cat([judge(image, [prompt], [{}]) for image, prompt in pairs])
    assert features.dtype == rewards.dtype == torch.float32
    return tuple(
        float((found - torch.tensor(recorded)).abs().max())
        for found, recorded in ((features, GOLDEN["features"]), (rewards, GOLDEN["rewards"]))
    )


def test_features_and_rewards_are_the_authors(judge):
    assert max(deviations(judge)) < TOLERANCE


def set_epsilon(network, epsilon):
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = epsilon


def test_the_golden_numbers_show_a_wrong_epsilon(judge):
    set_epsilon(judge._vision, 1e-5)
    assert min(deviations(judge)) > 100 * TOLERANCE
    set_epsilon(judge._vision, 1e-6)
    set_epsilon(judge._text, 1e-5)
    assert min(deviations(judge)) > 100 * TOLERANCE


@pytest.mark.parametrize("slip", ["no mask", "causal"])
def test_the_golden_numbers_show_wrong_attention(judge, slip):
    network = judge._text

    def text(*, attention_mask, is_decoder, **inputs):
        if slip == "no mask":
            return network(attention_mask=torch.ones_like(attention_mask), is_decoder=is_decoder, **inputs)
        return network(attention_mask=attention_mask, is_decoder=True, **inputs)

    judge._text = text
    assert min(deviations(judge)) > 100 * TOLERANCE


def test_the_golden_numbers_show_a_wrong_crop(judge, monkeypatch):
    monkeypatch.setattr(image_reward, "clip_pixels", lambda images, size, odd_margin: clip_pixels(images, size))
    assert min(deviations(judge)) > 100 * TOLERANCE


def test_by_name_in_batches(directory, judge):
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prompts = ["a cat", "a dog", "a cat on the moon", "a dog", "snow"]
    sources = {"image_reward": str(directory), "image_reward.tokenizer": str(directory / "vocab.txt")}
    scores = make_reward("image_reward", sources=sources)(images, prompts, [{}] * 5).total
    alone = [judge(images[i : i + 1], prompts[i : i + 1], [{}]) for i in range(5)]
    assert torch.equal(scores, torch.cat(alone))
    assert len(set(scores.tolist())) == 5


def test_half_precision_stays_near(directory, judge):
    half = image_reward.image_reward(CPU, source=str(directory), tokenizer=str(directory), dtype=torch.bfloat16)
    features = half.features(IMAGES[0], reduced.PROMPTS[:1])
    assert features.dtype == torch.float32
    exact = judge.features(IMAGES[0], reduced.PROMPTS[:1])
    assert 0 < float((features - exact).abs().max()) < 0.1


def test_safetensors_and_checkpoints_without_the_unused_parts_load(directory, judge, tmp_path):
    tensors = {k: v for k, v in reduced.weights(GOLDEN["shapes"]).items() if "_proj." not in k}
    tensors["blip.text_encoder.embeddings.position_ids"] = torch.arange(reduced.POSITIONS)[None]
    safetensors.torch.save_file(tensors, tmp_path / "ImageReward.safetensors")
    other = image_reward.image_reward(CPU, source=str(tmp_path), tokenizer=str(directory))
    assert torch.equal(other.features(IMAGES[0], reduced.PROMPTS[:1]), judge.features(IMAGES[0], reduced.PROMPTS[:1]))


def with_change(tensors, change):
    name, value = change
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    return tensors


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("blip.visual_encoder.pos_embed", None), "without pos_embed"),
        (("blip.visual_encoder.blocks.1.attn.qkv.bias", None), "without encoder.layers.1.self_attn.qkv.bias"),
        (("blip.visual_encoder.head.bias", torch.zeros(3)), "with head.bias as well"),
        (("blip.visual_encoder.norm.weight", torch.zeros(7)), r"post_layernorm.weight has shape \(7,\), not \(128,\)"),
        (("blip.text_encoder.encoder.layer.1.crossattention.self.key.weight", None), "crossattention"),
        (("blip.text_encoder.embeddings.word_embeddings.weight", torch.zeros(9, 96)), "width 96"),
        (("mlp.layers.7.weight", torch.zeros(2, 16)), "2 outputs"),
        (("mlp.layers.0.weight", torch.zeros(1024, 32)), r"shape \(1024, 32\), not \(1024, 64\)"),
        (("text_model.final_layer_norm.bias", torch.zeros(3)), "with text_model.final_layer_norm.bias"),
    ],
)
def test_other_architectures_are_refused(directory, tmp_path, change, says):
    path = tmp_path / "other.pt"
    torch.save(with_change(reduced.weights(GOLDEN["shapes"]), change), path)
    with pytest.raises(ValueError, match=rf"'image_reward'.*other.pt is not the ImageReward.*another arch.*{says}"):
        image_reward.image_reward(CPU, source=str(path), tokenizer=str(directory))


def test_a_tokenizer_of_another_network_is_refused(directory, tmp_path):
    words = [*reduced.WORDS, *(f"word{i}" for i in range(3))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    with pytest.raises(ValueError, match=rf"tokenizer: .* {len(words)} tokens, of which the network knows"):
        image_reward.image_reward(CPU, source=str(directory), tokenizer=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"image_reward.tokenizer=PATH"):
        image_reward.image_reward(CPU, source=str(directory), tokenizer=str(tmp_path / "nowhere"))
