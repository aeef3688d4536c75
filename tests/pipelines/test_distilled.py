"""Distilled models: what their published files recommend, and that "no guidance" may be written as 0."""

import json

import diffusers
import pytest
import torch

from benchmarks.random_model import save_random_model, save_random_sdxl
from diffusion_gym.pipelines import load_pipeline

# As published in SimianLuo/LCM_Dreamshaper_v7, stabilityai/sd-turbo and stabilityai/sdxl-turbo.
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
LCM = {
    **BETAS,
    "_class_name": "LCMScheduler",
    "clip_sample": False,
    "original_inference_steps": 50,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "thresholding": False,
    "timestep_spacing": "leading",
}
TURBO = {
    **BETAS,
    "_class_name": "EulerAncestralDiscreteScheduler",
    "clip_sample": False,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
    "trained_betas": None,
}


def with_scheduler(model, config, **index):
    (model / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    path = model / "model_index.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "scheduler": ["diffusers", config["_class_name"]], **index})
    )
    return load_pipeline(model, device="cpu")


@pytest.mark.parametrize("save", [save_random_model, save_random_sdxl])
def test_the_published_scheduler_of_lcm_has_densities_at_about_its_timesteps(tmp_path, save):
    pipeline = with_scheduler(save(tmp_path / "m"), LCM)
    scheduler = diffusers.LCMScheduler.from_config(LCM)
    for steps in (1, 2, 4, 8):
        scheduler.set_timesteps(steps)
        ours = pipeline.kernel(steps).timesteps_T
        assert ours[0] == 999
        assert (ours - scheduler.timesteps).abs().max() <= 20  # one step of the grid it was distilled on
    assert (pipeline.kernel(4).sigma_T > 0.01).all()
    # Models with LCM's sampler and no such input, as LCM-LoRA makes them, are sampled without guidance.
    assert (pipeline.sampling.guidance_scale, pipeline.sampling.num_inference_steps) == (1.0, 4)


def test_an_lcm_is_sampled_in_few_steps_with_its_guidance_as_an_input(tmp_path):
    pipeline = with_scheduler(
        save_random_model(tmp_path / "m", guidance_width=32), LCM, _class_name="LatentConsistencyModelPipeline"
    )
    assert (pipeline.sampling.guidance_scale, pipeline.sampling.num_inference_steps) == (8.0, 4)
    assert pipeline.kernel().num_steps == 4
    denoiser = pipeline.denoiser()
    assert denoiser.guidance_F is not None
    assert not denoiser.is_guided
    pipeline.save(tmp_path / "saved", denoiser.unet)
    assert type(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "saved").scheduler) is diffusers.LCMScheduler


@pytest.mark.parametrize("save", [save_random_model, save_random_sdxl])
@pytest.mark.parametrize("name", ["EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler"])
def test_turbo_models_are_sampled_in_few_steps_without_guidance(tmp_path, save, name):
    pipeline = with_scheduler(save(tmp_path / "m"), {**TURBO, "_class_name": name})
    assert (pipeline.sampling.guidance_scale, pipeline.sampling.num_inference_steps) == (1.0, 4)
    assert pipeline.kernel().timesteps_T.tolist() == [999, 749, 499, 249]
    assert not pipeline.denoiser().is_guided


@pytest.mark.parametrize(
    "change",
    [
        {"timestep_spacing": "leading"},
        {"prediction_type": "v_prediction"},
        {"_class_name": "DDIMScheduler"},
    ],
)
def test_other_schedulers_keep_the_family_defaults(tmp_path, change):
    assert with_scheduler(save_random_model(tmp_path / "m"), {**TURBO, **change}).sampling.guidance_scale == 7.5
    assert with_scheduler(save_random_sdxl(tmp_path / "n"), {**TURBO, **change}).sampling.guidance_scale == 5.0


def test_a_sampling_file_overrules_the_scheduler(tmp_path):
    model = save_random_model(tmp_path / "m")
    (model / "sampling.json").write_text('{"guidance_scale": 3.0, "num_inference_steps": 7}')
    assert with_scheduler(model, TURBO).sampling.num_inference_steps == 7


@pytest.mark.parametrize("scale", [0, 0.0])
def test_no_guidance_may_be_written_as_zero(tiny_pipeline, scale):
    zero, one = (tiny_pipeline.denoiser(guidance_scale=value) for value in (scale, 1.0))
    assert zero.guidance_scale == 1.0
    assert not zero.is_guided
    latent, timestep = torch.ones(1, 4, 8, 8), torch.tensor(500)
    embedding = tiny_pipeline.prompts.embeddings(tiny_pipeline.prompts.ids(["a"]))
    with torch.no_grad():
        assert torch.equal(zero(latent, timestep, embedding), one(latent, timestep, embedding))


def test_a_scheduler_that_ends_without_noise_is_refused_with_the_reason(tmp_path):
    pipeline = with_scheduler(save_random_model(tmp_path / "m"), {**LCM, "_class_name": "TCDScheduler"})
    with pytest.raises(ValueError, match=r"adds no noise at step 3 of 4.*set_alpha_to_one=False"):
        pipeline.kernel(4)
