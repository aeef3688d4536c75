"""Rewards on CLIP: what transformers computes from the same weights, in the units of each paper."""

import re

import pytest
import safetensors.torch
import torch
import transformers
from tiny_clip import IMAGE_SIZE, LENGTH, WIDTH, save_tiny_clip, save_tiny_tokenizer
from torch import nn

from diffusion_gym.rewards import clip_model, make_reward, preprocess
from diffusion_gym.rewards.hps_v2 import padded_pixels, vision_heads

PROMPTS = ["a cat", "two dogs", "a cat and a dog on the moon, all of them green", "", "two dogs"]
HEAD = {0: (WIDTH, 10), 2: (10, 8), 4: (8, 6), 6: (6, 4), 7: (4, 1)}
# Batches are computed one picture at a time here and all at once by the reference.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def exact_gelu(tmp_path_factory):
    """Without a tokenizer of its own, and with the activation of OpenCLIP's models."""
    return save_tiny_clip(tmp_path_factory.mktemp("clip"), activation="gelu", tokenizer=False)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return save_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def pictures(height=40, width=40, n=5):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(height))


def image_processor(size):
    kind = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    return kind(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def processed(images, size):
    """Pixels from transformers' own processor, which gets 8-bit pictures."""
    eight_bit = [(image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy() for image in images]
    return image_processor(size)(images=eight_bit, return_tensors="pt").pixel_values


def outputs(directory, tokenizer, pixels, prompts=PROMPTS):
    """What transformers' model says of pictures and prompts."""
    model = transformers.CLIPModel.from_pretrained(directory).eval()
    tokens = transformers.CLIPTokenizer.from_pretrained(tokenizer)(
        prompts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    with torch.no_grad():
        return model(**tokens, pixel_values=pixels), model


@pytest.mark.parametrize("shape", [(64, 64), (28, 28), (224, 224), (97, 64), (51, 131), (20, 47), (300, 225)])
@pytest.mark.parametrize("size", [28, 224])
def test_pixels_are_those_of_the_pil_processor(shape, size):
    images = pictures(*shape, n=2)
    assert torch.equal(preprocess.clip_pixels(images, size), processed(images, size))


def test_an_odd_margin_is_rounded_as_asked():
    """28x31 leaves 3 columns: transformers crops from the first on, torchvision from the second (1.5 -> 2)."""
    images = pictures(28, 31, n=1)
    whole = preprocess.normalize(preprocess.unit_range(preprocess.to_uint8(images)))
    assert torch.equal(preprocess.clip_pixels(images, 28), whole[..., 1:29])
    assert torch.equal(preprocess.clip_pixels(images, 28, odd_margin="even"), whole[..., 2:30])


def test_values_beyond_the_range_are_clipped():
    images = torch.tensor([-0.5, 0.5, 1.5])[:, None, None].expand(3, 32, 32)[None]
    assert set(preprocess.to_uint8(images).ravel().tolist()) == {0, 128, 255}


def test_clip_score_is_100_times_the_cosine_or_0(directory):
    images = pictures(46, 46)
    scores = make_reward("clip_score", sources={"clip_score": str(directory)})(images, PROMPTS, [{}] * 5).total
    found, model = outputs(directory, directory, processed(images, IMAGE_SIZE))
    cosine = found.logits_per_image.diagonal() / model.logit_scale.exp()
    assert cosine.min() < 0 < cosine.max(), "the case must have both signs"
    torch.testing.assert_close(scores, 100 * cosine.clamp(min=0), **CLOSE)


def test_pick_score_is_the_logit(directory):
    images = pictures(50, 44)
    scores = make_reward("pick_score", sources={"pick_score": str(directory)})(images, PROMPTS, [{}] * 5).total
    found, _ = outputs(directory, directory, processed(images, IMAGE_SIZE))
    torch.testing.assert_close(scores, found.logits_per_image.diagonal(), **CLOSE)


def test_pick_score_takes_the_processor_asked_for(directory, exact_gelu, tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'laion/CLIP-ViT-H-14.*--reward-sources pick_score.processor=PATH"):
        make_reward("pick_score", sources={"pick_score": str(exact_gelu)})
    sources = {"pick_score": str(exact_gelu), "pick_score.processor": str(tokenizer)}
    images = pictures()
    scores = make_reward("pick_score", sources=sources)(images, PROMPTS, [{}] * 5).total
    found, _ = outputs(exact_gelu, tokenizer, processed(images, IMAGE_SIZE))
    torch.testing.assert_close(scores, found.logits_per_image.diagonal(), **CLOSE)
    other = save_tiny_tokenizer(tmp_path, end="a")
    with pytest.raises(ValueError, match=r"'pick_score', processor: .* ends a prompt, the network expects"):
        make_reward("pick_score", sources={"pick_score": str(directory), "pick_score.processor": str(other)})


def head_tensors(seed=0, **shapes):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for i, (inputs, out) in (HEAD | {int(k): v for k, v in shapes.items()}).items():
        tensors[f"layers.{i}.weight"] = torch.randn(out, inputs, generator=generator)
        tensors[f"layers.{i}.bias"] = torch.randn(out, generator=generator)
    return tensors


@pytest.mark.parametrize("name", ["aesthetic-model.pth", "sac+logos+ava1-l14-linearMSE.pth", "mine.safetensors"])
def test_aesthetic_is_the_linear_stack_on_the_unit_vector(directory, tmp_path, name):
    tensors = head_tensors()
    if name.endswith(".pth"):
        torch.save(tensors, tmp_path / name)
        source = tmp_path
    else:
        safetensors.torch.save_file(tensors, tmp_path / name)
        source = tmp_path / name
    images = pictures(30, 60)
    sources = {"aesthetic": str(source), "aesthetic.clip": str(directory)}
    scores = make_reward("aesthetic", sources=sources)(images, PROMPTS, [{}] * 5).total
    found, _ = outputs(directory, directory, processed(images, IMAGE_SIZE))
    stack = nn.Sequential(*(nn.Linear(*HEAD[i]) for i in HEAD))
    stack.load_state_dict(
        {f"{list(HEAD).index(int(k.split('.')[1]))}.{k.split('.')[2]}": v for k, v in tensors.items()}
    )
    with torch.no_grad():
        expected = stack(nn.functional.normalize(found.image_embeds, dim=-1)).squeeze(1)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"0": (WIDTH + 1, 10)}, r"layers.0.weight has shape \(10, 25\), not \(10, 24\)"),
        ({"4": (7, 6)}, "layers.4.weight has shape"),
        ({"7": (4, 2)}, "2 outputs, not one score"),
        ({"9": (1, 1)}, "with layers.9.bias, layers.9.weight as well"),
    ],
)
def test_other_heads_are_refused(directory, tmp_path, change, says):
    torch.save(head_tensors(**change), tmp_path / "aesthetic-model.pth")
    with pytest.raises(ValueError, match=rf"'aesthetic'.*LAION's aesthetic predictor.*{says}"):
        make_reward("aesthetic", sources={"aesthetic": str(tmp_path), "aesthetic.clip": str(directory)})


TO_OPEN_CLIP = {
    r"^vision_model\.embeddings\.class_embedding": "visual.class_embedding",
    r"^vision_model\.embeddings\.position_embedding\.weight": "visual.positional_embedding",
    r"^vision_model\.embeddings\.patch_embedding": "visual.conv1",
    r"^vision_model\.pre_layrnorm": "visual.ln_pre",
    r"^vision_model\.post_layernorm": "visual.ln_post",
    r"^vision_model\.encoder\.layers": "visual.transformer.resblocks",
    r"^text_model\.embeddings\.token_embedding": "token_embedding",
    r"^text_model\.embeddings\.position_embedding\.weight": "positional_embedding",
    r"^text_model\.encoder\.layers": "transformer.resblocks",
    r"^text_model\.final_layer_norm": "ln_final",
    r"\.layer_norm": ".ln_",
    r"\.self_attn\.": ".attn.",
    r"\.mlp\.fc1": ".mlp.c_fc",
    r"\.mlp\.fc2": ".mlp.c_proj",
}


def open_clip(directory):
    """The tensors of a saved CLIPModel under open_clip's names, whose projections stand on the right."""
    tensors = {}
    for name, tensor in safetensors.torch.load_file(directory / "model.safetensors").items():
        for pattern, replacement in TO_OPEN_CLIP.items():
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor
    tensors["visual.proj"] = tensors.pop("visual_projection.weight").T.contiguous()
    tensors["text_projection"] = tensors.pop("text_projection.weight").T.contiguous()
    for name in [name for name in tensors if ".q_proj." in name]:
        parts = [tensors.pop(name.replace(".q_proj.", f".{letter}_proj.")) for letter in "qkv"]
        tensors[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return tensors


@pytest.mark.parametrize("form", ["file", "nested", "transformers"])
def test_hps_is_the_cosine_without_the_logit_scale(exact_gelu, tokenizer, tmp_path, form):
    tensors = open_clip(exact_gelu)
    torch.save({"state_dict": tensors} if form == "nested" else tensors, tmp_path / "HPS_v2.1_compressed.pt")
    source = {"file": tmp_path / "HPS_v2.1_compressed.pt", "nested": tmp_path, "transformers": exact_gelu}[form]
    images = pictures(36, 52)
    sources = {"hps_v2": str(source), "hps_v2.tokenizer": str(tokenizer)}
    scores = make_reward("hps_v2", sources=sources)(images, PROMPTS, [{}] * 5).total
    found, model = outputs(exact_gelu, tokenizer, padded_pixels(images, IMAGE_SIZE))
    torch.testing.assert_close(scores, found.logits_per_image.diagonal() / model.logit_scale.exp(), **CLOSE)


@pytest.mark.parametrize("missing", ["visual.conv1.weight", "text_projection", "transformer.resblocks.1.ln_1.bias"])
def test_hps_refuses_other_checkpoints(exact_gelu, tokenizer, tmp_path, missing):
    tensors = open_clip(exact_gelu)
    del tensors[missing]
    torch.save(tensors, tmp_path / "HPS_v2.1_compressed.pt")
    with pytest.raises(ValueError, match=r"'hps_v2'.*is not the HPS v2 model.*another architecture, without"):
        make_reward("hps_v2", sources={"hps_v2": str(tmp_path), "hps_v2.tokenizer": str(tokenizer)})


def test_heads_of_open_clips_vision_transformers():
    """ViT-B, L, H, g and bigG in open_clip's own configurations."""
    assert [vision_heads(width) for width in (768, 1024, 1280, 1408, 1664)] == [12, 16, 16, 16, 16]


def test_hps_pads_the_short_side_with_black():
    images = pictures(20, 56, n=2)
    pixels = padded_pixels(images, 28)
    black = preprocess.normalize(torch.zeros(1, 3, 9, 28)).expand(2, 3, 9, 28)
    assert torch.equal(pixels[:, :, :9], black)
    assert torch.equal(pixels[:, :, 19:], black)
    eight_bit = (images * 255).round() / 255
    half = nn.functional.interpolate(eight_bit, (10, 28), mode="bicubic", antialias=True)
    torch.testing.assert_close(pixels[:, :, 9:19], preprocess.normalize(half))
    torch.testing.assert_close(padded_pixels(images.mT, 28), pixels.mT)


def clip(directory, **options):
    wanted = clip_model.tokenizer_wanted("clip_score", "source", "owner/name")
    network = clip_model.load_network([directory / "config.json", directory / "model.safetensors"], wanted)
    tokenizer = clip_model.load_clip_tokenizer(directory, wanted, network)
    options = {"device": torch.device("cpu"), "dtype": torch.float32} | options
    return clip_model.Clip(network, tokenizer=tokenizer, **options)


def test_a_prompt_is_embedded_once(directory, monkeypatch):
    monkeypatch.setattr(clip_model, "_REMEMBERED", 3)
    model = clip(directory)
    calls = []
    model._network.text_model.register_forward_hook(lambda *_: calls.append(1))
    first = model.embed_prompts(["a", "b", "a", "b"])
    assert torch.equal(first[:2], first[2:])
    assert torch.equal(model.embed_prompts(["b"])[0], first[1])
    assert len(calls) == 2
    model.embed_prompts(["c", "d", "e"])
    assert list(model._prompts) == ["c", "d", "e"], "old prompts are forgotten"
    assert torch.equal(model.embed_prompts(["a"])[0], first[0])


def test_scores_do_not_depend_on_the_batch(directory):
    reward = make_reward("pick_score", sources={"pick_score": str(directory)})
    images = pictures()
    alone = [reward(images[i : i + 1], PROMPTS[i : i + 1], [{}]).total for i in range(5)]
    assert torch.equal(reward(images, PROMPTS, [{}] * 5).total, torch.cat(alone))


def test_half_precision_stays_near_and_gives_float32(directory):
    exact, half = clip(directory), clip(directory, dtype=torch.bfloat16)
    found = half.embed_images(pictures())
    assert found.dtype == half.embed_prompts(PROMPTS).dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(5))
    assert 0 < float((found - exact.embed_images(pictures())).abs().max()) < 0.05


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("config.json", '{"model_type": "siglip"}', "model_type is 'siglip', not 'clip'"),
        ("config.json", "{", "damaged"),
        ("config.json", '{"model_type": "clip", "text_config": 3}', "damaged"),
        ("tokenizer.json", "{}", "damaged"),
    ],
)
def test_damaged_directories_are_named(directory, tmp_path, name, text, says):
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"'clip_score', source: .*{re.escape(str(tmp_path))}.*{says}.*hf download"):
        make_reward("clip_score", sources={"clip_score": str(tmp_path)})
