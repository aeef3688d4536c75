"""The shipped weights: they load, they do what their metrics say, and the files that document them are there.

The bars are measured on full samples by `python -m diffusion_gym.emoji.evaluate`; here smaller samples guard them.
"""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from diffusion_gym.emoji import WEIGHTS, evaluate, pipeline_path
from diffusion_gym.emoji.grammar import PROBES
from diffusion_gym.emoji.preference import Preference
from diffusion_gym.emoji.pretrain.autoencoder import load_autoencoder
from diffusion_gym.emoji.quality import Quality
from diffusion_gym.emoji.reader import Reader
from diffusion_gym.emoji.sampling import load_pipeline, sample


@pytest.fixture(scope="module")
def probe_samples():
    """16 pictures of each probe at the model's defaults."""
    prompts = [probe for probe in PROBES for _ in range(16)]
    return prompts, sample(load_pipeline(pipeline_path()), prompts, seed=1)


def test_diffusers_loads_and_runs_the_model_as_it_stands():
    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_path())
    generator = torch.Generator().manual_seed(0)
    image = pipeline("a dog on the moon", num_inference_steps=3, eta=1.0, generator=generator).images[0]
    assert image.size == (64, 64)


def test_the_last_step_keeps_a_density():
    config = json.loads((pipeline_path() / "scheduler" / "scheduler_config.json").read_text())
    assert config["set_alpha_to_one"] is False
    assert config["prediction_type"] == "epsilon"


def test_all_weights_together_are_small():
    assert evaluate.evaluate_size()["megabytes"] < 40


@pytest.mark.parametrize("part", ["autoencoder", "generator", "reader", "preference", "quality"])
def test_metrics_say_how_the_weights_were_made(part):
    metrics = json.loads((WEIGHTS / f"{part}.json").read_text())
    assert metrics["command"].startswith(f"python -m diffusion_gym.emoji.pretrain {part}")
    assert {"figures", "seed", "steps", "seconds", "versions"} <= set(metrics)
    assert metrics["seconds"] < 1.2 * 90 * 60


def test_judges_were_trained_on_different_seeds():
    seeds = [json.loads((WEIGHTS / f"{part}.json").read_text())["seed"] for part in ("reader", "preference", "quality")]
    assert len(set(seeds)) == 3


def test_the_autoencoder_keeps_the_picture():
    assert evaluate.evaluate_autoencoder(load_autoencoder(WEIGHTS, "cpu"), count=64)["psnr_db"] > 28.5


def test_the_reader_reads_scenes_and_sees_nothing_in_noise():
    figures = evaluate.evaluate_reader(Reader.load(), load_autoencoder(WEIGHTS, "cpu"), count=128)
    assert figures["all_right_after_round_trip"] > 0.93
    assert figures["attributes_right_other_style"] > 0.55
    assert figures["no_object_on_noise"] > 0.95
    assert figures["no_object_on_blank"] > 0.95


def test_the_reader_agrees_with_labels_given_by_eye():
    figures = evaluate.evaluate_labels()
    assert figures["pictures"] == 120
    assert figures["agreement"] >= 0.9


def test_quality_falls_with_every_corruption():
    falls = evaluate.evaluate_quality(Quality.load(), count=64)["falls_with"]
    assert all(falls[name] for name in ("blur", "noise", "color_cast", "jpeg"))


def test_preference_orders_pairs():
    figures = evaluate.evaluate_preference(Preference.load(), count=48)
    assert figures["ordered_right"] > 0.92
    assert min(figures["by_kind"].values()) > 0.75


def test_preference_and_reader_agree_on_the_generators_own_pictures(probe_samples):
    prompts, images = probe_samples
    right = Reader.load().accuracy(images, prompts).all_right.numpy()
    scores = Preference.load().score(images, prompts).numpy()
    own = np.array(prompts)
    for probe in PROBES:
        scores[own == probe] -= scores[own == probe].mean()
    assert scores[right].mean() > scores[~right].mean() + 0.15


def test_the_generator_follows_the_probes_sometimes(probe_samples):
    prompts, images = probe_samples
    right = Reader.load().accuracy(images, prompts).all_right.numpy().reshape(len(PROBES), -1).mean(1)
    assert 0.15 < right.mean() < 0.75
    assert right.min() > 0
