"""Single-file checkpoints: what they are unpacked to, and what is said of those that are no whole models."""

import json
import os
import shutil
import time
from contextlib import contextmanager

import diffusers
import pytest
import torch
from fake_hub import serve
from safetensors.torch import load_file, save_file
from single_files import same_weights, save_single_file

from benchmarks.random_model import save_random_sdxl
from diffusion_gym.pipelines import load_pipeline, model_source, single_file


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


def test_a_link_to_a_single_file_keeps_its_name(tmp_path, checkpoint):
    pipe, file = checkpoint
    blob = tmp_path / "blobs" / "c0ffee"
    blob.parent.mkdir()
    file.rename(blob)
    file.symlink_to(blob)
    assert same_weights(load_pipeline(file, device="cpu").load_unet(), pipe.unet)


@pytest.fixture
def xl(tmp_path, monkeypatch):
    """A pipeline of SDXL's format, with its configuration where a file "xl.safetensors" expects it."""
    monkeypatch.setenv("DIFFUSION_GYM_CACHE", str(tmp_path / "cache"))
    model = save_random_sdxl(tmp_path / "whole")
    shutil.copytree(model, tmp_path / "xl", ignore=shutil.ignore_patterns("*.safetensors"))
    return diffusers.StableDiffusionXLPipeline.from_pretrained(model)


@contextmanager
def refused(match):
    """A ValueError within 5 seconds."""
    start = time.monotonic()
    with pytest.raises(ValueError, match=match):
        yield
    assert time.monotonic() - start < 5.0


def rewrite(file, change):
    """Save the tensors of a file as `change` makes them."""
    save_file(change(load_file(file)), file)


def test_a_single_file_of_sdxl_is_the_model_it_was_made_of(tmp_path, xl):
    pipeline = load_pipeline(save_single_file(xl, tmp_path / "xl.safetensors"), device="cpu")
    assert pipeline.files.family == "sdxl"
    assert pipeline.files.scheduler["prediction_type"] == "epsilon"
    assert same_weights(pipeline.load_unet(), xl.unet)
    tokens, _, pooled, _ = xl.encode_prompt("two dogs", device="cpu", do_classifier_free_guidance=False)
    ours = pipeline.prompts.embeddings(pipeline.prompts.ids(["two dogs"]))
    torch.testing.assert_close(ours.tokens_BLD, tokens, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.pooled_BP, pooled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("part", "prefix"), [("vae", "first_stage_model."), ("text_encoder", "cond_stage_model.")], ids=lambda v: v
)
def test_a_file_without_a_part_is_said_or_completed_from_beside(tmp_path, checkpoint, tiny_model, part, prefix):
    pipe, file = checkpoint
    rewrite(file, lambda tensors: {name: v for name, v in tensors.items() if not name.startswith(prefix)})
    with refused(rf"model .*model\.safetensors' has no {part}: .*{prefix}.*into '{tmp_path}/model/{part}'"):
        load_pipeline(file, device="cpu")
    shutil.copytree(tiny_model / part, tmp_path / "model" / part, dirs_exist_ok=True)
    pipeline = load_pipeline(file, device="cpu")
    assert same_weights(pipeline.load_unet(), pipe.unet)
    assert same_weights(pipeline.vae, pipe.vae)
    theirs, _ = pipe.encode_prompt("two dogs", "cpu", 1, False)
    ours = pipeline.prompts.embeddings(pipeline.prompts.ids(["two dogs"]))
    torch.testing.assert_close(ours.tokens_BLD, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kept", ["conditioner.embedders.0.", "model.diffusion_model."])
def test_a_file_of_sdxl_without_text_encoders_is_said(tmp_path, xl, kept):
    file = save_single_file(xl, tmp_path / "xl.safetensors")
    others = ("model.", "first_stage_model.", kept)
    rewrite(file, lambda tensors: {name: v for name, v in tensors.items() if name.startswith(others)})
    lacking = "text_encoder_2" if "embedders" in kept else "text_encoder"
    with refused(rf"has no {lacking}: .*conditioner\.embedders\."):
        load_pipeline(file, device="cpu")


CLIP = "cond_stage_model.transformer.text_model"


@pytest.mark.parametrize(
    ("part", "name", "says"),
    [
        ("unet", "model.diffusion_model.input_blocks.0.0.weight", "conv_in.weight"),
        ("unet", "model.diffusion_model.time_embed.0.weight", "time_embedding.linear_1.weight"),
        ("unet", "model.diffusion_model.output_blocks.0.1.proj_in.bias", "up_blocks.0.attentions.0.proj_in.bias"),
        ("unet", "model.diffusion_model.input_blocks.2.0.op.bias", "down_blocks.0.downsamplers.0.conv.bias"),
        ("vae", "first_stage_model.decoder.up.1.upsample.conv.bias", "decoder.up.1.upsample.conv.bias"),
        ("vae", "first_stage_model.decoder.conv_in.bias", "decoder.conv_in.bias"),
        ("vae", "first_stage_model.decoder.mid.attn_1.q.weight", "decoder.mid_block.attentions.0.to_q.weight"),
        ("text_encoder", f"{CLIP}.embeddings.position_embedding.weight", f"{CLIP}.embeddings.position_embedding"),
        ("text_encoder", f"{CLIP}.final_layer_norm.bias", "final_layer_norm.bias"),
    ],
)
def test_a_file_without_one_tensor_is_said(tmp_path, checkpoint, part, name, says):
    _, file = checkpoint
    rewrite(file, lambda tensors: {n: v for n, v in tensors.items() if n != name})
    with refused(
        rf"model .*model\.safetensors' lacks 1 of the {part}'s tensors, the first is {says}.*Get the file anew"
    ):
        load_pipeline(file, device="cpu")
    assert not (tmp_path / "cache").exists()


def test_each_part_keeps_its_dtype(checkpoint):
    pipe, file = checkpoint
    dtypes = {"model.": torch.float16, "first_stage_model.": torch.float32, "cond_stage_model.": torch.bfloat16}
    rewrite(file, lambda tensors: {n: v.to(dtypes[n.partition(".")[0] + "."]) for n, v in tensors.items()})
    pipeline = load_pipeline(file, device="cpu")
    directory = pipeline.files.source.directory
    for part, dtype in zip(("unet", "vae", "text_encoder"), dtypes.values(), strict=True):
        written = load_file(next((directory / part).glob("*.safetensors")))
        assert {value.dtype for value in written.values()} == {dtype}
    assert same_weights(pipeline.load_unet(), pipe.unet.half().float())
    rewrite(file, lambda tensors: {n: v.half() for n, v in tensors.items()})
    os.utime(file, ns=(1, 1))
    directory = model_source.find_model(file).directory
    size = sum(path.stat().st_size for path in directory.rglob("*.safetensors"))
    assert size < 1.1 * file.stat().st_size


def test_a_v_prediction_file_says_so_itself(tmp_path, xl):
    """Whatever the configuration beside it says, which is that of the model it is derived from."""
    file = save_single_file(xl, tmp_path / "xl.safetensors", v_pred=torch.empty(0))
    scheduler = load_pipeline(file, device="cpu").files.scheduler
    assert (scheduler["prediction_type"], scheduler["timestep_spacing"]) == ("v_prediction", "leading")
    save_single_file(xl, file, v_pred=torch.empty(0), ztsnr=torch.empty(0))
    pipeline = load_pipeline(file, device="cpu")
    kernel = pipeline.kernel(4)
    assert kernel.timesteps_T.tolist() == [999, 749, 499, 249]
    # The first latent is pure noise, so the model's output is minus the clean latent.
    assert float(kernel.x0_latent_T[0]) == 0.0
    assert float(kernel.x0_output_T[0]) == -1.0
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(pipeline.files.source.directory)
    assert type(pipe.scheduler) is diffusers.EulerDiscreteScheduler
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.scheduler.config.rescale_betas_zero_snr


def test_a_v_prediction_file_may_say_so_in_its_metadata(tmp_path, checkpoint):
    _, file = checkpoint
    save_file(load_file(file), file, metadata={"modelspec.prediction_type": "v"})
    assert load_pipeline(file, device="cpu").files.scheduler["prediction_type"] == "v_prediction"


def test_a_scheduler_that_cannot_start_in_pure_noise_is_replaced(tmp_path, checkpoint):
    pipe, file = checkpoint
    path = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "_class_name": "PNDMScheduler", "skip_prk_steps": True})
    )
    index = tmp_path / "model" / "model_index.json"
    index.write_text(index.read_text().replace("DDIMScheduler", "PNDMScheduler"))
    save_single_file(pipe, file, v_pred=torch.empty(0), ztsnr=torch.empty(0))
    scheduler = load_pipeline(file, device="cpu").files.scheduler
    assert scheduler["_class_name"] == "DDIMScheduler"
    assert scheduler["rescale_betas_zero_snr"]
    assert scheduler["beta_end"] == 0.012


SD2_KEY = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"


def test_a_file_of_stable_diffusion_2_needs_a_configuration_beside_it(tmp_path, checkpoint):
    pipe, file = checkpoint
    save_single_file(pipe, file, **{SD2_KEY: torch.zeros(1, 1024)})
    load_pipeline(file, device="cpu")  # the configuration beside it is taken
    shutil.rmtree(tmp_path / "model")
    os.utime(file, ns=(1, 1))
    with refused(
        r"Stable Diffusion 2\.x.*left the hub.*hf download .*--local-dir .*model.*directory in diffusers' format"
    ):
        load_pipeline(file, device="cpu")


def test_a_file_that_takes_a_mask_is_refused_before_anything_is_fetched(tmp_path, checkpoint):
    pipe, file = checkpoint
    shutil.rmtree(tmp_path / "model")
    first = "model.diffusion_model.input_blocks.0.0.weight"
    save_single_file(pipe, file, **{first: torch.zeros(16, 9, 3, 3)})
    with refused("of the kind inpainting"):
        load_pipeline(file, device="cpu")


def test_a_configuration_is_taken_from_the_hub_without_weights(tmp_path, checkpoint, tiny_model, monkeypatch):
    pipe, file = checkpoint
    shutil.rmtree(tmp_path / "model")
    monkeypatch.setitem(single_file._REPOSITORIES, "v1", "owner/name")
    with serve(tiny_model, tmp_path / "hub", monkeypatch) as hub:
        pipeline = load_pipeline(file, device="cpu")
        assert "vae/config.json" in hub.downloaded
        assert not [name for name in hub.downloaded if name.endswith(".safetensors")]
    assert same_weights(pipeline.load_unet(), pipe.unet)
