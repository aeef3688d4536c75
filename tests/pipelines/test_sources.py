"""Where a model comes from - directory, single file, hub - and what is said when it cannot be had."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from single_files import same_weights, save_single_file

from diffusion_gym import hub
from diffusion_gym.pipelines import load_pipeline, model_source


@pytest.fixture
def checkpoint(tmp_path, tiny_model, monkeypatch):
    """A single-file checkpoint, with its configuration in a directory beside it."""
    monkeypatch.setenv("DIFFUSION_GYM_CACHE", str(tmp_path / "cache"))
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_model)
    file = save_single_file(pipe, tmp_path / "model.safetensors")
    shutil.copytree(tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    return pipe, file


def test_a_single_file_is_the_model_it_was_made_of(checkpoint):
    pipe, file = checkpoint
    pipeline = load_pipeline(file, device="cpu")
    assert pipeline.model == str(file)
    assert same_weights(pipeline.load_unet(), pipe.unet)
    assert same_weights(pipeline.vae, pipe.vae)
    theirs, _ = pipe.encode_prompt("two dogs", "cpu", 1, False)
    ours = pipeline.prompts.embeddings(pipeline.prompts.ids(["two dogs"]))
    torch.testing.assert_close(ours.tokens_BLD, theirs, rtol=1e-5, atol=1e-6)


def test_a_single_file_is_unpacked_once_and_again_when_it_changes(checkpoint):
    _, file = checkpoint
    first = load_pipeline(file, device="cpu").files.source.directory
    written = (first / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    assert load_pipeline(file, device="cpu").files.source.directory == first
    assert (first / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == written
    os.utime(file, ns=(1, 1))
    assert model_source.find_model(file).directory != first
    assert not [path for path in first.parent.iterdir() if path.name.startswith(".")]  # nothing half done is left


def test_single_files_that_are_no_models_are_refused(tmp_path, checkpoint):
    _, file = checkpoint
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:1000])
    save_file({"unet.lora_A": torch.ones(1)}, tmp_path / "lora.safetensors")
    (tmp_path / "old.ckpt").write_bytes(b"x")
    for name, says in [("cut.safetensors", "damaged"), ("lora.safetensors", "unet.lora_A"), ("old.ckpt", "pickle")]:
        with pytest.raises(ValueError, match=f"model .*{name}.*{says}"):
            load_pipeline(tmp_path / name, device="cpu")
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        load_pipeline(tmp_path / "none.safetensors", device="cpu")
    shutil.rmtree(tmp_path / "model")
    (tmp_path / "alone.safetensors").write_bytes(file.read_bytes())
    with pytest.raises(FileNotFoundError, match="hf download"):
        load_pipeline(tmp_path / "alone.safetensors", device="cpu")


def test_hub_models_come_from_one_commit_part_by_part(tmp_path, tiny_model, monkeypatch):
    cached = tmp_path / "models--owner--name" / "snapshots" / "c0ffee"
    asked = []

    def snapshot(model, *, files, ignore=(), revision=None, what="model"):
        asked.append((model, tuple(files), revision))
        pattern = "*.safetensors" if files == model_source._CONFIGURATIONS else ""
        shutil.copytree(tiny_model, cached, dirs_exist_ok=True, ignore=shutil.ignore_patterns(pattern))
        return cached

    monkeypatch.setattr(hub, "snapshot", snapshot)
    pipeline = load_pipeline("owner/name@v1.2", device="cpu")
    assert pipeline.model == "owner/name@v1.2"
    assert asked == [("owner/name", model_source._CONFIGURATIONS, "v1.2")]
    assert not list(cached.rglob("*.safetensors"))
    pipeline.load_unet()
    assert asked[1:] == [("owner/name", ("unet/*",), "c0ffee")]
    pipeline.prompts.ids(["a cat"])
    assert {call[1:] for call in asked[2:]} == {(("tokenizer/*",), "c0ffee"), (("text_encoder/*",), "c0ffee")}


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


def test_a_link_to_a_single_file_keeps_its_name(tmp_path, checkpoint):
    pipe, file = checkpoint
    blob = tmp_path / "blobs" / "c0ffee"
    blob.parent.mkdir()
    file.rename(blob)
    file.symlink_to(blob)
    assert same_weights(load_pipeline(file, device="cpu").load_unet(), pipe.unet)


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
