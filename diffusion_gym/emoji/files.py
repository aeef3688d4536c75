"""Finding and loading the shipped weights, with errors that say how to make them again."""

from __future__ import annotations

from pathlib import Path

from torch import nn

PIPELINE_FILES = {
    "model_index.json": "generator",
    "sampling.json": "generator",
    "scheduler/scheduler_config.json": "generator",
    "text_encoder/config.json": "generator",
    "text_encoder/model.safetensors": "generator",
    "tokenizer/tokenizer.json": "generator",
    "unet/config.json": "generator",
    "unet/diffusion_pytorch_model.safetensors": "generator",
    "vae/config.json": "autoencoder",
    "vae/diffusion_pytorch_model.safetensors": "autoencoder",
}
"""The files of the pipeline directory -> the part whose training makes them."""


def rebuild_hint(part: str) -> str:
    """Says how to make the weights of a part again."""
    return f"reinstall diffusion-gym, or rebuild it with: python -m diffusion_gym.emoji.pretrain {part}"


def require(path: Path, part: str) -> Path:
    """Returns `path`, a file made by training `part`.

    Raises:
        FileNotFoundError: it is not there, or it is empty.
    """
    if not path.is_file() or path.stat().st_size == 0:
        raise FileNotFoundError(f"{path} is missing or empty; {rebuild_hint(part)}")
    return path


def check_safetensors(path: Path, part: str) -> Path:
    """Reads the header of a weights file and compares it with the file's length.

    Raises:
        FileNotFoundError: it is missing or empty.
        ValueError: it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    require(path, part)
    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); {rebuild_hint(part)}") from error
    return path


def require_pipeline(folder: Path) -> Path:
    """Returns `folder` when it holds every file of the embedded model, whole.

    Raises:
        FileNotFoundError: a file is missing or empty.
        ValueError: a weights file is damaged.
    """
    for name, part in PIPELINE_FILES.items():
        check = check_safetensors if name.endswith(".safetensors") else require
        check(folder / name, part)
    return folder


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes a model's state as float16 safetensors."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().half().contiguous().cpu() for name, value in model.state_dict().items()}
    save_file(state, path)


def load_weights(model: nn.Module, path: Path, part: str) -> None:
    """Loads what `save_weights` wrote, as float32, into a model of the same shape.

    Raises:
        FileNotFoundError: the file is missing or empty.
        ValueError: the file is damaged, or holds other weights.
    """
    from safetensors.torch import load_file

    state = {name: value.float() for name, value in load_file(check_safetensors(path, part)).items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} holds the weights of another model ({error}); {rebuild_hint(part)}") from error
