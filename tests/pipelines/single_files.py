"""Writes a small model as one file with the tensor names of the original Stable Diffusion code."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding": "token_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "fc1": "c_fc",
    "fc2": "c_proj",
    "self_attn": "attn",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def save_single_file(pipe: Any, path: Path, **more: torch.Tensor) -> Path:
    """Save a Stable Diffusion 1.x or XL pipeline of diffusers with one layer a block, and more tensors."""
    tensors = {f"model.diffusion_model.{_unet(n, pipe.unet)}": v for n, v in pipe.unet.state_dict().items()}
    blocks = len(pipe.vae.config.block_out_channels)
    for name, value in pipe.vae.state_dict().items():
        renamed = _vae(name, blocks)
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", renamed):
            value = value[..., None, None]
        tensors[f"first_stage_model.{renamed}"] = value
    second = getattr(pipe, "text_encoder_2", None)
    prefix = "conditioner.embedders.0.transformer." if second else "cond_stage_model.transformer."
    for name, value in pipe.text_encoder.state_dict().items():
        tensors[prefix + (name if name.startswith("text_model.") else f"text_model.{name}")] = value
    if second is not None:
        tensors.update(_open_clip(second.state_dict(), "conditioner.embedders.1.model."))
    save_file({name: value.contiguous().clone() for name, value in (tensors | more).items()}, path)
    return path


def _open_clip(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of a CLIPTextModelWithProjection by the names of OpenCLIP, which has q, k and v in one."""
    renamed = {}
    for name, value in state.items():
        name = name.removeprefix("text_model.")
        for theirs, ours in OPEN_CLIP.items():
            name = name.replace(theirs, ours)
        if name.startswith("text_projection"):
            renamed["text_projection"] = value.T
        elif match := re.fullmatch(r"(.*\.attn\.)q_proj\.(weight|bias)", name):
            parts = [state[full] for full in _qkv(state, value)]
            renamed[f"{match[1]}in_proj_{match[2]}"] = torch.cat(parts)
        elif not re.search(r"\.[kv]_proj\.", name):
            renamed[name] = value
    return {prefix + name: value for name, value in renamed.items()}


def _qkv(state: dict[str, torch.Tensor], query: torch.Tensor) -> list[str]:
    """The names of q, k and v of one attention, by the tensor of its q."""
    name = next(name for name, value in state.items() if value is query)
    return [name.replace("q_proj", f"{letter}_proj") for letter in "qkv"]


def _unet(name: str, unet: Any) -> str:
    for ours, theirs in UNET.items():
        if name.startswith(ours + "."):
            name = name.replace(ours, theirs, 1)
            return _resnet(name) if re.match(r"middle_block\.[02]", name) else name
    kind, block, rest = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(.*)", name).groups()
    layers, first = unet.config.layers_per_block, int(block)
    if kind == "down":
        if rest.startswith("downsamplers"):
            return f"input_blocks.{(first + 1) * (layers + 1)}.0.op." + rest.rpartition(".")[2]
        part, layer, rest = rest.split(".", 2)
        place = f"input_blocks.{1 + first * (layers + 1) + int(layer)}.{int(part == 'attentions')}.{rest}"
    else:
        if rest.startswith("upsamplers"):
            slot = 1 + ("CrossAttn" in unet.config.up_block_types[first])
            return f"output_blocks.{first * (layers + 1) + layers}.{slot}.conv." + rest.rpartition(".")[2]
        part, layer, rest = rest.split(".", 2)
        place = f"output_blocks.{first * (layers + 1) + int(layer)}.{int(part == 'attentions')}.{rest}"
    return _resnet(place) if part == "resnets" else place


def _resnet(name: str) -> str:
    for ours, theirs in RESNET.items():
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def _vae(name: str, blocks: int) -> str:
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{blocks - 1 - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if "mid_block.attentions.0" in name:
        name = name.replace("mid_block.attentions.0", "mid.attn_1")
        for ours, theirs in VAE_ATTENTION.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
    return name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether two modules have the same tensors."""
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
