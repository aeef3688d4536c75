"""HPS v2 (Wu et al. 2023, "Human Preference Score v2: A Solid Benchmark for Evaluating Human Preferences")."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_gym.rewards.base import Reward
from diffusion_gym.rewards.clip_model import (
    MODEL_FILES,
    Clip,
    find_tokenizer,
    load_clip_tokenizer,
    load_network,
    tokenizer_wanted,
)
from diffusion_gym.rewards.preprocess import normalize, to_uint8, unit_range
from diffusion_gym.rewards.sources import Wanted, find_files
from diffusion_gym.rewards.weights import Checkpoint, load_checkpoint

REPO = "xswu/HPSv2"
TOKENIZER_REPO = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
FILES = (("HPS_v2.1_compressed.pt",), ("HPS_v2_compressed.pt",), *MODEL_FILES)

_NAMES = {
    r"^visual\.class_embedding$": "vision_model.embeddings.class_embedding",
    r"^visual\.positional_embedding$": "vision_model.embeddings.position_embedding.weight",
    r"^visual\.conv1\.": "vision_model.embeddings.patch_embedding.",
    r"^visual\.ln_pre\.": "vision_model.pre_layrnorm.",
    r"^visual\.ln_post\.": "vision_model.post_layernorm.",
    r"^visual\.transformer\.resblocks\.": "vision_model.encoder.layers.",
    r"^visual\.proj$": "visual_projection.weight",
    r"^token_embedding\.": "text_model.embeddings.token_embedding.",
    r"^positional_embedding$": "text_model.embeddings.position_embedding.weight",
    r"^transformer\.resblocks\.": "text_model.encoder.layers.",
    r"^ln_final\.": "text_model.final_layer_norm.",
    r"^text_projection$": "text_projection.weight",
    r"\.ln_(\d)\.": r".layer_norm\1.",
    r"\.attn\.": ".self_attn.",
    r"\.mlp\.c_fc\.": ".mlp.fc1.",
    r"\.mlp\.c_proj\.": ".mlp.fc2.",
}
"""From open_clip's names to those of transformers."""


def hps_v2(
    device: torch.device, *, source: str = REPO, tokenizer: str | None = None, dtype: torch.dtype = torch.float32
) -> Reward:
    """Cosine of picture and prompt in a CLIP trained on people's choices; about 0.2 to 0.35.

    Args:
        device: where the network lies.
        source: file, directory or hub id of HPS_v2.1_compressed.pt or HPS_v2_compressed.pt, which are in open_clip's
            format; or a directory with the model in transformers' CLIP format.
        tokenizer: directory or hub id of its tokenizer. Without it, the one in the source's directory if there is
            one, else that of `TOKENIZER_REPO`.
        dtype: what the network runs in.

    Raises:
        FileNotFoundError: there is no such model or tokenizer, or the hub is out of reach.
        ValueError: one of them is damaged, of another kind, or does not belong to the other.
    """
    wanted = Wanted(reward="hps_v2", what="the HPS v2 model", repo=REPO, layouts=FILES)
    wanted_tokenizer = tokenizer_wanted("hps_v2", "tokenizer", TOKENIZER_REPO)
    files = find_files(source, wanted)
    directory = find_tokenizer(tokenizer, files[0].parent, wanted_tokenizer)
    network = load_network(files, wanted) if len(files) > 1 else from_open_clip(load_checkpoint(files[0], wanted))
    words = load_clip_tokenizer(directory, wanted_tokenizer, network)
    clip = Clip(network, tokenizer=words, device=device, dtype=dtype, preprocess=padded_pixels)

    def score(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return clip.cosine(images, prompts)

    return score


def padded_pixels(images_B3HW: Tensor, size: int = 224) -> Tensor:
    """HPS v2's preprocessing: 8 bits, long side to `size`, black to both sides of the short one, normalised.

    Args:
        images_B3HW: pictures in [0, 1].
        size: height and width of the result.

    Returns:
        (B, 3, size, size) float32 on the CPU.
    """
    images = unit_range(to_uint8(images_B3HW))
    height, width = images.shape[2:]
    scale = size / max(height, width)
    height, width = round(height * scale), round(width * scale)
    if scale != 1:
        images = nn.functional.interpolate(images, (height, width), mode="bicubic", antialias=True)
    top, left = (size - height) // 2, (size - width) // 2
    return normalize(nn.functional.pad(images, (left, size - width - left, top, size - height - top)))


def from_open_clip(checkpoint: Checkpoint) -> Any:
    """A transformers CLIPModel from an open_clip checkpoint of any size, e.g. ViT-H-14.

    Raises:
        ValueError: the checkpoint is of another architecture.
    """
    width, _, _, patch = checkpoint.shape("visual.conv1.weight", 4)
    vocabulary, text_width = checkpoint.shape("token_embedding.weight", 2)
    vision_config = {
        "hidden_size": width,
        "intermediate_size": checkpoint.shape("visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        "num_hidden_layers": checkpoint.depth("visual.transformer.resblocks."),
        "num_attention_heads": vision_heads(width),
        "image_size": isqrt(checkpoint.shape("visual.positional_embedding", 2)[0] - 1) * patch,
        "patch_size": patch,
    }
    text_config = {
        "vocab_size": vocabulary,
        "hidden_size": text_width,
        "intermediate_size": checkpoint.shape("transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        "num_hidden_layers": checkpoint.depth("transformer.resblocks."),
        "num_attention_heads": max(1, text_width // 64),
        "max_position_embeddings": checkpoint.shape("positional_embedding", 2)[0],
        # open_clip looks for the largest number in a prompt, which is the last token's.
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
    }
    width_out = checkpoint.shape("text_projection", 2)[1]
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        text_config={**text_config, "hidden_act": "gelu"},
        vision_config={**vision_config, "hidden_act": "gelu"},
        projection_dim=width_out,
    )
    return _converted(checkpoint).build(lambda: CLIPModel(config))


def vision_heads(width: int) -> int:
    """Attention heads of open_clip's vision transformers: 64 wide, and 16 of them from ViT-L (1024) on."""
    return max(1, min(width // 64, 16))


def _converted(checkpoint: Checkpoint) -> Checkpoint:
    """The tensors as a CLIPModel names and cuts them."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in checkpoint.renamed(_NAMES).tensors.items():
        before, joint, kind = name.partition("in_proj_")
        if joint:  # query, key and value lie on top of each other
            parts = zip("qkv", tensor.chunk(3), strict=True)
            tensors |= {f"{before}{letter}_proj.{kind}": part for letter, part in parts}
        else:
            tensors[name] = tensor.T if name.endswith("_projection.weight") else tensor
    return replace(checkpoint, tensors=tensors)
