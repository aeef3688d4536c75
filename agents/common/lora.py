"""Low-rank adapters (Hu et al. 2022) on the UNet through peft, saved so that diffusers loads them."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

Targets = Literal["attention", "all"]

TARGETS: dict[str, tuple[str, ...]] = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "all": ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "conv1", "conv2", "conv_shortcut"),
}
"""Which layers get adapters. "attention" is DDPO's and DPOK's choice for Stable Diffusion."""

LORA_FILE = "pytorch_lora_weights.safetensors"


def add_lora(unet: Any, *, rank: int = 4, alpha: float | None = None, targets: Targets = "attention") -> None:
    """Add adapters in place: the UNet's only trainable parameters, float32, an identity until trained.

    Args:
        unet: a frozen diffusers UNet without adapters.
        rank: 4 for Stable Diffusion; small UNets with little attention take 16.
        alpha: the adapters' scale times the rank; by default the rank, so the scale is 1.
        targets: "attention", or "all": the projections and residual-block convolutions as well, for a UNet with few
            attention layers.

    Raises:
        ValueError: an argument is out of range.
    """
    from peft import LoraConfig

    if rank < 1:
        raise ValueError(f"lora_rank must be 1 or more, got {rank}")
    if targets not in TARGETS:
        raise ValueError(f"lora_targets must be one of {sorted(TARGETS)}, got {targets!r}")
    scale = rank if alpha is None else alpha
    unet.add_adapter(
        LoraConfig(r=rank, lora_alpha=scale, target_modules=list(TARGETS[targets]), init_lora_weights=True)
    )
    for parameter in unet.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def has_lora(unet: Any) -> bool:
    """Whether the UNet carries adapters."""
    return bool(getattr(unet, "_hf_peft_config_loaded", False))


@contextmanager
def merged_adapters(unet: Any) -> Iterator[None]:
    """Within it the adapters are part of the weights, which makes calls without gradient cheaper.

    Outputs differ from those of weights and adapters apart by rounding. Afterwards the weights are what they were, bit
    for bit: they are put back from a copy, since taking the adapters out again would round.

    Args:
        unet: a UNet with adapters, in float32. Half precision would round the adapters away.
    """
    from peft.tuners.lora import LoraLayer

    layers = [module for module in unet.modules() if isinstance(module, LoraLayer)]
    weights = [layer.get_base_layer().weight for layer in layers]
    kept = [weight.detach().clone() for weight in weights]
    try:
        for layer in layers:
            layer.merge()
        yield
    finally:
        for layer, weight, before in zip(layers, weights, kept, strict=True):
            layer.merged_adapters.clear()
            weight.data.copy_(before)


def save_lora(unet: Any, directory: str | os.PathLike[str]) -> Path:
    """Write the adapters so that `StableDiffusionPipeline.load_lora_weights(directory)` takes them.

    The file appears whole or not at all.

    Returns:
        The file.
    """
    from diffusers import StableDiffusionPipeline
    from peft import get_peft_model_state_dict

    adapter = unet.peft_config["default"]
    layers = {name: value.detach().cpu().contiguous() for name, value in get_peft_model_state_dict(unet).items()}
    directory = Path(directory)
    partial = f"partial-{LORA_FILE}"
    StableDiffusionPipeline.save_lora_weights(
        directory,
        unet_lora_layers=layers,
        weight_name=partial,
        unet_lora_adapter_metadata={**adapter.to_dict(), "target_modules": sorted(adapter.target_modules)},
    )
    os.replace(directory / partial, directory / LORA_FILE)
    return directory / LORA_FILE


def load_lora(unet: Any, directory: str | os.PathLike[str]) -> None:
    """Add the adapters that `save_lora` wrote, of the same rank and scale, to a UNet without any.

    Raises:
        FileNotFoundError: there are none.
    """
    from safetensors import safe_open

    path = Path(directory) / LORA_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {directory} holds no saved adapters")
    with safe_open(path, "pt") as file:
        layers = {name: file.get_tensor(name).to(torch.float32) for name in file.keys()}  # noqa: SIM118
        written = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    unet.load_lora_adapter(layers, prefix="unet", metadata=written or None)
