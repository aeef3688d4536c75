"""Where a model comes from - directory, single file, hub - and what is said when it cannot be had."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from single_files import same_weights

from diffusion_gym.pipelines import load_pipeline


@pytest.mark.parametrize("silent", [False, True], ids=["refused", "silent"])
def test_a_hub_that_cannot_be_reached_is_said_within_seconds(tmp_path, silent):
    code = (
        "import time, diffusers\n"
        "from huggingface_hub import HfApi, get_session, snapshot_download\n"
        "get_session()\n"
        "from diffusion_gym.pipelines import load_pipeline\n"
        "start = time.monotonic()\n"
        "try:\n    load_pipeline('owner/name@v2', device='cpu')\n"
        "except FileNotFoundError as error:\n    print(error)\n"
        "print(time.monotonic() - start)"
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if silent:
            listener.listen()
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        changes = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **changes}, capture_output=True, text=True, check=True
        )
    message, seconds = done.stdout.splitlines()
    assert "owner/name@v2" in message
    assert "hf download owner/name --revision v2" in message
    assert float(seconds) < 5.0


class _Marker:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_missing_damaged_foreign_and_dangerous_weights(tmp_path, make_tiny_model, part):
    model = make_tiny_model(tmp_path / "m")
    weights = next((model / part).glob("*.safetensors"))
    good = load_file(weights)

    def load():
        pipeline = load_pipeline(model, device="cpu")
        return pipeline.load_unet() if part == "unet" else pipeline.vae if part == "vae" else pipeline.prompts

    where = f"cannot load its {part} from {model / part}"
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=f"{where}.*no weights"):
        load()
    save_file(dict(list(good.items())[1:]), weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{where}.*1 tensors are missing"):
        load()
    name = next(n for n, v in good.items() if v.ndim == 2)
    save_file({**good, name: torch.ones(3, 3)}, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=where):
        load()
    save_file(good, weights, metadata={"format": "pt"})
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"{where}.*damaged"):
        load()
    weights.unlink()
    pickled = model / part / ("pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin")
    torch.save({**good, name: _Marker(tmp_path / "ran")}, pickled)
    with pytest.raises(ValueError, match=f"{where}.*more than tensors"):
        load()
    assert not (tmp_path / "ran").exists()
    torch.save(good, pickled)
    load()  # tensors alone are read from a pickle, too


def test_half_precision_files_alone_are_read(tmp_path, make_tiny_model):
    model = make_tiny_model(tmp_path / "m")
    expected = load_pipeline(model, device="cpu").load_unet()
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    assert same_weights(load_pipeline(model, device="cpu").load_unet(), expected)


def test_another_parametrisation_of_the_noise_is_refused(tmp_path, make_tiny_model):
    model = make_tiny_model(tmp_path / "m")
    path = model / "scheduler" / "scheduler_config.json"
    path.write_text('{"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_min": 0.002, "sigma_max": 80.0}')
    with pytest.raises(ValueError, match="EDMDPMSolverMultistepScheduler has no betas"):
        load_pipeline(model, device="cpu")
