"""Each model family against diffusers' pipeline of its class: episodes, training and saved adapters."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import gymnasium
import numpy as np
import pytest
import torch
from tianshou.data import Batch

from agents.common import DenoisingActor, DenoisingPolicy, add_lora
from agents.config import DDPOConfig
from agents.run import train
from benchmarks.random_model import save_random_model, save_random_sdxl
from diffusion_gym.pipelines import Pipeline, load_pipeline, read_model_files
from diffusion_gym.pipelines.denoiser import guidance_embedding


@dataclass(frozen=True)
class Family:
    """A kind of model: how to save a small one, its pipeline class, and how it is sampled."""

    save: Callable[..., Path]
    pipeline: Any
    options: dict[str, Any] = field(default_factory=dict)
    guidance_scale: float = 5.0
    eta: float = 1.0
    steps: int = 10


SD, XL = diffusers.StableDiffusionPipeline, diffusers.StableDiffusionXLPipeline
TURBO = {"timestep_spacing": "trailing"}
FAMILIES = {
    "sd1": Family(save_random_model, SD),
    "sd1_unguided_less_noise": Family(save_random_model, SD, guidance_scale=1.0, eta=0.4),
    "sd2_v": Family(save_random_model, SD, {"prediction_type": "v_prediction"}),
    "lcm": Family(save_random_model, SD, {"guidance_width": 32}, guidance_scale=8.5, steps=4),
    "sdxl": Family(save_random_sdxl, XL),
    "sdxl_encoded_empty_prompt": Family(save_random_sdxl, XL, {"zeros_for_empty_prompt": False}, eta=0.4),
    "sdxl_v": Family(save_random_sdxl, XL, {"prediction_type": "v_prediction"}),
    "sdxl_turbo": Family(save_random_sdxl, XL, TURBO, guidance_scale=1.0, steps=4),
}


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request: Any, tmp_path_factory: Any) -> tuple[Family, Path]:
    family = FAMILIES[request.param]
    return family, family.save(tmp_path_factory.mktemp("family") / request.param, **family.options)


def reference(family: Family, model: Path) -> Any:
    """The pipeline of diffusers with the scheduler that our kernel stands for."""
    pipe = family.pipeline.from_pretrained(model)
    assert type(pipe) is family.pipeline
    more = {"set_alpha_to_one": False, "clip_sample": False}
    pipe.scheduler = diffusers.DDIMScheduler.from_config({**pipe.scheduler.config, **more})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_an_episode_of_the_policy_is_the_diffusers_pipeline(saved, monkeypatch):
    """The same eta, guidance and noise give the same picture, within 1/255."""
    family, model = saved
    env = gymnasium.make_vec(
        "TextToImage-v0",
        num_envs=2,
        model=str(model),
        reward="jpeg_compressibility",
        prompts=["a cat", "two green dogs"],
        prompt_sampler="cyclic",
        num_inference_steps=family.steps,
        eta=family.eta,
        device="cpu",
    )
    actor = DenoisingActor.from_pipeline(env.pipeline, env.kernel, guidance_scale=family.guidance_scale)
    policy = DenoisingPolicy(actor=actor, action_space=env.single_action_space)
    observation, info = env.reset(seed=3)
    prompts, start = list(info["prompt"]), observation["latent"].clone()
    assert len(set(prompts)) == 2
    noises = [torch.randn(start.shape, generator=torch.Generator().manual_seed(k)) for k in range(family.steps)]
    remaining = iter(noises)
    monkeypatch.setattr(torch, "randn", lambda *args, **kwargs: next(remaining))
    final: dict[str, Any] = {}
    for _ in range(family.steps):
        with torch.no_grad():
            action = policy(Batch(obs=Batch(observation), info=Batch())).act
        observation, _, terminated, _, final = env.step(action)
    assert terminated.all()
    monkeypatch.undo()

    remaining = iter(noises)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddim.randn_tensor", lambda *args, **kwargs: next(remaining))
    theirs = reference(family, model)(
        prompts,
        num_inference_steps=family.steps,
        eta=family.eta,
        guidance_scale=family.guidance_scale,
        latents=start.clone(),
        output_type="np",
    ).images
    assert next(remaining, None) is None  # all of the noise was used
    assert np.abs(final["image"] / 255 - theirs).max() <= 1 / 255
    assert theirs.std() > 0.05
    assert np.abs(theirs[0] - theirs[1]).max() > 0.05


def test_training_changes_the_adapters_alone_and_diffusers_loads_them(saved, tmp_path):
    family, model = saved
    config = DDPOConfig(
        out=tmp_path / "run",
        model=str(model),
        reward="jpeg_compressibility",
        prompts=("a cat",),
        steps=3,
        iterations=1,
        pictures=4,
        lora_rank=2,
        lora_targets="attention",
        guidance_scale=family.guidance_scale,
        learning_rate=1e-2,
        device="cpu",
    )
    training = train(config)
    unet = training.policy.actor.unet
    base = training.pipeline.load_unet().state_dict()
    frozen = {name.replace(".base_layer", ""): value for name, value in unet.state_dict().items() if "lora" not in name}
    assert frozen.keys() == base.keys()
    assert all(torch.equal(frozen[name], base[name]) for name in base)
    fresh = Pipeline(read_model_files(model), device=torch.device("cpu"), dtype=torch.float32)
    encoded = [pipeline.prompts._encode("a cat").features() for pipeline in (training.pipeline, fresh)]
    decoded = [pipeline.decode(torch.ones(1, 4, 8, 8)) for pipeline in (training.pipeline, fresh)]
    assert torch.equal(*encoded)
    assert torch.equal(*decoded)

    pretrained = family.pipeline.from_pretrained(model)
    pretrained.load_lora_weights(tmp_path / "run")
    latent, timestep = torch.randn(2, 4, 8, 8), torch.tensor([500, 1])
    embedding = training.pipeline.prompts.embeddings(training.pipeline.prompts.ids(["a cat", "a dog"]))
    guidance = training.config.guidance_scale
    with torch.no_grad():
        ours = training.pipeline.denoiser(unet, guidance_scale=guidance)(latent, timestep, embedding)
        theirs = training.pipeline.denoiser(pretrained.unet, guidance_scale=guidance)(latent, timestep, embedding)
        untrained = training.pipeline.denoiser(guidance_scale=guidance)(latent, timestep, embedding)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (ours - untrained).abs().max() > 1e-3


def test_a_whole_trained_model_is_a_pipeline_of_its_class(tmp_path):
    model = save_random_sdxl(tmp_path / "model")
    config = DDPOConfig(
        out=tmp_path / "run",
        model=str(model),
        reward="jpeg_compressibility",
        prompts=("a cat",),
        steps=3,
        iterations=1,
        pictures=4,
        full=True,
        learning_rate=1e-5,
        device="cpu",
    )
    training = train(config)
    pipe = XL.from_pretrained(tmp_path / "run" / "pipeline")
    trained = training.policy.actor.unet.state_dict()
    assert all(torch.equal(trained[name], value) for name, value in pipe.unet.state_dict().items())
    assert load_pipeline(tmp_path / "run" / "pipeline", device="cpu").sampling.num_inference_steps == 3


def test_guidance_features_are_those_of_diffusers(tmp_path):
    pipe = SD.from_pretrained(save_random_model(tmp_path / "model"))
    for w, width in [(7.5, 256), (0.0, 32), (3.0, 7)]:
        theirs = pipe.get_guidance_scale_embedding(torch.tensor([w]), embedding_dim=width)[0]
        torch.testing.assert_close(guidance_embedding(w, width), theirs, rtol=1e-5, atol=1e-4)


def test_sdxl_observes_the_pooled_embedding(tmp_path):
    model = save_random_sdxl(tmp_path / "model")
    env = gymnasium.make(
        "TextToImage-v0",
        model=str(model),
        reward="jpeg_compressibility",
        prompts=["a cat"],
        num_inference_steps=2,
        device="cpu",
    )
    observation, _ = env.reset(seed=0)
    assert observation["prompt_embedding"].shape == (12, 40)
    assert observation["pooled_prompt_embedding"].shape == (24,)
    assert observation in env.observation_space
    unet = env.unwrapped.pipeline.load_unet()
    add_lora(unet, rank=2)
    actor = DenoisingActor.from_pipeline(env.unwrapped.pipeline, env.unwrapped.kernel, unet=unet)
    batched = Batch({name: np.asarray(value)[None] for name, value in observation.items()})
    (by_embedding, _), _ = actor(batched)
    (by_id, _), _ = actor(Batch({name: value for name, value in batched.items() if "embedding" not in name}))
    assert torch.equal(by_embedding, by_id)
