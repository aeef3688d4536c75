"""Pipelines against diffusers' own StableDiffusionPipeline, on a tiny random model."""

import gc
import json
import shutil

import diffusers
import numpy as np
import pytest
import torch

from diffusion_gym.pipelines import load_pipeline


@pytest.fixture(scope="module")
def reference(tiny_model):
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_shapes(tiny_pipeline):
    assert tiny_pipeline.latent_shape == (4, 8, 8)
    assert tiny_pipeline.image_shape == (3, 16, 16)
    assert tiny_pipeline.embedding_shape == (12, 16)


def test_one_process_shares_one_pipeline(tiny_model, tiny_pipeline):
    assert load_pipeline(str(tiny_model), device="cpu", dtype=torch.float32) is tiny_pipeline
    assert load_pipeline(tiny_model, device="cpu", dtype="bfloat16") is not tiny_pipeline


def test_a_pipeline_nobody_holds_is_freed(tmp_path, make_tiny_model):
    model = make_tiny_model(tmp_path / "m")
    first = load_pipeline(model, device="cpu")
    bank = first.prompts
    del first
    gc.collect()
    assert load_pipeline(model, device="cpu").prompts is not bank


def test_embeddings_are_those_of_diffusers(tiny_pipeline, reference):
    prompts = ["a cat", "two dogs", "a cat"]
    ids = tiny_pipeline.prompts.ids(prompts)
    assert ids[0] == ids[2] != ids[1]
    ours = tiny_pipeline.prompts.embeddings(ids)
    theirs, unconditional = reference.encode_prompt(prompts, "cpu", 1, True)
    assert ours.pooled_BP is None
    torch.testing.assert_close(ours.tokens_BLD, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tiny_pipeline.prompts.unconditional.tokens_BLD, unconditional[:1], rtol=1e-5, atol=1e-6)


def test_a_prompt_is_encoded_once(tmp_path, make_tiny_model):
    pipeline = load_pipeline(make_tiny_model(tmp_path / "m"), device="cpu")
    calls = []
    encode = pipeline.prompts._encode
    pipeline.prompts._encode = lambda prompt: (calls.append(prompt), encode(prompt))[1]
    prompts = [f"prompt {i % 20}" for i in range(60)]
    ids = pipeline.prompts.ids(prompts)  # more than the table first holds
    assert len(calls) == 20 == len(pipeline.prompts)
    assert [pipeline.prompts.text(i) for i in ids] == prompts
    before = pipeline.prompts.embeddings(ids).tokens_BLD
    again = pipeline.prompts.ids(prompts[::-1])
    assert len(calls) == 20
    assert torch.equal(pipeline.prompts.embeddings(again).tokens_BLD, before.flip(0))


def test_an_embedding_does_not_depend_on_its_neighbours(tmp_path, make_tiny_model):
    model = make_tiny_model(tmp_path / "m")
    one = load_pipeline(model, device="cpu")
    alone = one.prompts.embeddings(one.prompts.ids(["a wolf"])).tokens_BLD[0]
    del one
    gc.collect()
    other = load_pipeline(model, device="cpu")
    together = other.prompts.embeddings(other.prompts.ids(["a cow", "a bee", "a wolf"])).tokens_BLD[2]
    assert torch.equal(alone, together)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_denoiser_is_the_guided_unet_of_diffusers(tiny_pipeline, reference, guidance_scale):
    latent = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([951, 1, 401])
    embedding = tiny_pipeline.prompts.embeddings(tiny_pipeline.prompts.ids(["a", "b", "c"]))
    denoiser = tiny_pipeline.denoiser(guidance_scale=guidance_scale)
    with torch.no_grad():
        ours = denoiser(latent, timestep, embedding)
        cond = reference.unet(latent, timestep, embedding.tokens_BLD).sample
        uncond_embedding = tiny_pipeline.prompts.unconditional.tokens_BLD.expand(3, -1, -1)
        uncond = reference.unet(latent, timestep, uncond_embedding).sample
    assert (cond - uncond).abs().max() > 1e-3
    torch.testing.assert_close(ours, uncond + guidance_scale * (cond - uncond), rtol=1e-4, atol=1e-5)


def test_denoiser_makes_one_call_and_half_a_batch_without_guidance(tiny_pipeline):
    latent, timestep = torch.zeros(3, 4, 8, 8), torch.tensor(1)
    embedding = tiny_pipeline.prompts.embeddings(np.zeros(3, dtype=np.int64))
    for scale, batch in [(1.0, 3), (5.0, 6)]:
        denoiser = tiny_pipeline.denoiser(guidance_scale=scale)
        batches = []
        denoiser.unet.register_forward_pre_hook(lambda _, args, seen=batches: seen.append(len(args[0])))
        denoiser(latent, timestep, embedding)
        assert batches == [batch]


def test_unconditional_gradient_can_be_left_out(tiny_pipeline):
    torch.manual_seed(1)
    latent, timestep = torch.randn(2, 4, 8, 8), torch.tensor([981, 1])
    embedding = tiny_pipeline.prompts.embeddings(tiny_pipeline.prompts.ids(["a", "b"]))
    outputs, gradients = [], []
    for whole in (True, False):
        denoiser = tiny_pipeline.denoiser(guidance_scale=3.0, unconditional_gradient=whole)
        weight = denoiser.unet.conv_in.weight.requires_grad_()
        out = denoiser(latent, timestep, embedding)
        outputs.append(out.detach())
        gradients.append(torch.autograd.grad(out.square().sum(), weight)[0])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(gradients[0], gradients[1], rtol=1e-2)


def test_denoiser_trains_adapters_of_its_unet(tiny_pipeline):
    unet = tiny_pipeline.load_unet()
    assert not any(p.requires_grad for p in unet.parameters())
    assert not unet.training
    assert tiny_pipeline.load_unet() is not unet
    unet.conv_out.requires_grad_()
    denoiser = tiny_pipeline.denoiser(unet)
    assert [p for p in denoiser.parameters() if p.requires_grad] == list(unet.conv_out.parameters())
    assert not any("unconditional" in name for name in denoiser.state_dict())


@pytest.mark.parametrize(("scale", "error"), [(0.5, ValueError), ("3", TypeError), (float("nan"), ValueError)])
def test_guidance_scale_is_checked(tiny_pipeline, scale, error):
    with pytest.raises(error, match="guidance_scale"):
        tiny_pipeline.denoiser(guidance_scale=scale)


def test_decoder_is_that_of_diffusers_in_chunks_of_any_size(tiny_pipeline, reference, monkeypatch):
    latent = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        decoded = reference.vae.decode(latent / reference.vae.config.scaling_factor).sample
    theirs = reference.image_processor.postprocess(decoded, output_type="pt")
    for chunk in (1, 2, 5):
        monkeypatch.setattr(tiny_pipeline, "decode_chunk", chunk)
        ours = tiny_pipeline.decode(latent)
        assert ours.shape == (5, 3, 16, 16)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_picture_does_not_depend_on_how_many_others_are_decoded(tiny_pipeline):
    latent = torch.randn(9, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    together = tiny_pipeline.decode(latent)
    for size in (1, 2, 3, 7):
        assert torch.equal(torch.cat([tiny_pipeline.decode(part) for part in latent.split(size)]), together)


def test_bfloat16_networks_keep_float32_results(tiny_model, tiny_pipeline):
    pipeline = load_pipeline(tiny_model, device="cpu", dtype="bfloat16")
    denoiser = pipeline.denoiser(guidance_scale=2.0)
    assert denoiser.dtype == torch.bfloat16
    embedding = pipeline.prompts.embeddings(pipeline.prompts.ids(["a cat"]))
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = denoiser(latent, torch.tensor([500]), embedding)
        exact = tiny_pipeline.denoiser(guidance_scale=2.0)(latent, torch.tensor([500]), embedding)
    assert embedding.tokens_BLD.dtype == out.dtype == pipeline.decode(latent).dtype == torch.float32
    torch.testing.assert_close(out, exact, rtol=0.1, atol=0.1)


def test_parts_are_loaded_only_when_asked_for(tmp_path, make_tiny_model):
    model = make_tiny_model(tmp_path / "m")
    shutil.rmtree(model / "unet")
    (model / "unet").mkdir()
    source = make_tiny_model(tmp_path / "n")
    shutil.copy(source / "unet" / "config.json", model / "unet")
    pipeline = load_pipeline(model, device="cpu")
    pipeline.decode(torch.zeros(1, *pipeline.latent_shape))
    pipeline.prompts.ids(["a"])
    with pytest.raises(ValueError, match="cannot load its unet"):
        pipeline.load_unet()


def test_kernel_takes_the_models_schedule_and_defaults(tmp_path, make_tiny_model):
    model = make_tiny_model(tmp_path / "m", prediction_type="v_prediction")
    (model / "sampling.json").write_text('{"guidance_scale": 3.0, "num_inference_steps": 7, "eta": 0.5}')
    pipeline = load_pipeline(model, device="cpu")
    kernel = pipeline.kernel()
    assert kernel.num_steps == 7
    half = pipeline.kernel(7, sampler={"name": "ddim", "prediction_type": "epsilon"}, eta=0.5)
    assert torch.equal(kernel.sigma_T, half.sigma_T)
    assert not torch.equal(kernel.x0_latent_T, half.x0_latent_T)
    assert pipeline.denoiser().guidance_scale == 3.0


def test_old_scheduler_files_are_corrected_as_diffusers_does(tmp_path, make_tiny_model):
    model = make_tiny_model(tmp_path / "m")
    path = model / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "steps_offset": 0, "clip_sample": True}))
    kernel = load_pipeline(model, device="cpu").kernel(20)
    with pytest.warns(FutureWarning):
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(model)
    pipe.scheduler.set_timesteps(20)
    assert kernel.timesteps_T.tolist() == pipe.scheduler.timesteps.tolist()
    assert kernel.clip_x0 is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"transformer": ["diffusers", "SD3Transformer2DModel"]}, "SD3"),
        ({"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}, "tokenizer_2 is missing"),
        ({"unet": ["diffusers", "UNet3DConditionModel"]}, "unet is UNet3DConditionModel"),
        ({"vae": None}, "vae is missing"),
    ],
)
def test_other_formats_are_refused_with_the_reason(tmp_path, change, says, make_tiny_model):
    model = make_tiny_model(tmp_path / "m")
    index = json.loads((model / "model_index.json").read_text())
    index.update(change)
    (model / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"model .*{says}"):
        load_pipeline(model, device="cpu")


@pytest.mark.parametrize(
    ("change", "says"), [({"in_channels": 9}, "9 channels"), ({"sample_size": None}, "sample_size")]
)
def test_other_unets_are_refused_with_the_reason(tmp_path, change, says, make_tiny_model):
    model = make_tiny_model(tmp_path / "m")
    path = model / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=says):
        load_pipeline(model, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"model": "no/such-model-here"}, ValueError, "model"),
        ({"model": "/no/such/directory"}, ValueError, "model"),
        ({"model": ""}, ValueError, "model"),
        ({"model": 3}, TypeError, "model"),
        ({"device": "gpu"}, ValueError, "device"),
        ({"device": "cuda:99"}, ValueError, "device"),
        ({"device": "meta"}, ValueError, "device"),
        ({"device": 0}, TypeError, "device"),
        ({"dtype": "fp16"}, ValueError, "dtype"),
        ({"dtype": torch.int64}, ValueError, "dtype"),
        ({"dtype": 16}, TypeError, "dtype"),
    ],
)
def test_bad_arguments_are_named(tiny_model, arguments, error, says):
    with pytest.raises(error, match=says):
        load_pipeline(**{"model": tiny_model, "device": "cpu", **arguments})


@pytest.mark.parametrize("text", ["[1", '{"guidance": 3}'])
def test_a_broken_sampling_file_is_named(tmp_path, text, make_tiny_model):
    model = make_tiny_model(tmp_path / "m")
    (model / "sampling.json").write_text(text)
    with pytest.raises(ValueError, match=r"sampling\.json"):
        load_pipeline(model, device="cpu")


def test_a_full_bank_says_so(tiny_pipeline, monkeypatch):
    monkeypatch.setattr("diffusion_gym.pipelines.prompt_bank.CAPACITY", len(tiny_pipeline.prompts))
    with pytest.raises(ValueError, match="no id for 'one too many'"):
        tiny_pipeline.prompts.ids(["one too many"])
