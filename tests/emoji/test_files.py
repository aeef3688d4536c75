import shutil

import pytest
import torch
from torch import nn

from diffusion_gym.emoji.files import PIPELINE_FILES, load_weights, require_pipeline, save_weights
from diffusion_gym.emoji.preference import Preference
from diffusion_gym.emoji.quality import Quality
from diffusion_gym.emoji.reader import Reader
from diffusion_gym.emoji.sampling import load_pipeline, sample


def test_weights_come_back_as_they_were_in_half_precision(tmp_path):
    model, other = nn.Linear(4, 3), nn.Linear(4, 3)
    save_weights(model, tmp_path / "m.safetensors")
    load_weights(other, tmp_path / "m.safetensors", "reader")
    assert torch.equal(other.weight, model.weight.half().float())


@pytest.mark.parametrize("judge", [Reader, Preference, Quality])
def test_a_missing_file_is_named_with_the_command_that_makes_it(judge, tmp_path):
    part = judge.__name__.lower()
    with pytest.raises(FileNotFoundError, match=rf"{part}\.safetensors.*emoji\.pretrain {part}"):
        judge.load(path=tmp_path / f"{part}.safetensors")


@pytest.mark.parametrize("judge", [Reader, Preference, Quality])
@pytest.mark.parametrize("keep", [0, 4, 500])
def test_a_damaged_file_is_named_with_the_command_that_makes_it(judge, keep, tmp_path, tiny_weights):
    part = judge.__name__.lower()
    path = tmp_path / f"{part}.safetensors"
    path.write_bytes((tiny_weights / f"{part}.safetensors").read_bytes()[:keep])
    with pytest.raises((FileNotFoundError, ValueError), match=rf"{part}\.safetensors.*emoji\.pretrain {part}"):
        judge.load(path=path)


def test_the_weights_of_another_model_are_refused(tmp_path):
    save_weights(nn.Linear(2, 2), tmp_path / "reader.safetensors")
    with pytest.raises(ValueError, match="weights of another model"):
        Reader.load(path=tmp_path / "reader.safetensors")


@pytest.mark.parametrize("name", PIPELINE_FILES)
def test_each_file_of_the_pipeline_is_required(name, tmp_path, tiny_weights):
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny_weights / "pipeline", folder)
    assert require_pipeline(folder) == folder
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}.*emoji\.pretrain {PIPELINE_FILES[name]}"):
        require_pipeline(folder)


def test_a_truncated_unet_is_refused_before_it_is_loaded(tmp_path, tiny_weights):
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny_weights / "pipeline", folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"unet.*is damaged.*emoji\.pretrain generator"):
        load_pipeline(folder)


def test_the_pipeline_is_stored_in_half_precision_and_runs_in_diffusers_as_it_stands(tiny_weights):
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from safetensors import safe_open

    for name in PIPELINE_FILES:
        if name.endswith(".safetensors"):
            with safe_open(tiny_weights / "pipeline" / name, framework="pt") as file:
                assert {file.get_slice(key).get_dtype() for key in file.keys()} <= {"F16", "I64"}  # noqa: SIM118
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_weights / "pipeline")
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    assert pipeline.scheduler.config.set_alpha_to_one is False
    images = pipeline("a xylophone of 漢字", num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 64, 64, 3)


def test_samples_depend_on_the_seed_and_on_nothing_else(tiny_weights):
    pipeline = load_pipeline(tiny_weights / "pipeline")
    first, again, other = (sample(pipeline, ["a cat"] * 3, seed=s, num_inference_steps=2) for s in (1, 1, 2))
    assert first.shape == (3, 3, 64, 64)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
