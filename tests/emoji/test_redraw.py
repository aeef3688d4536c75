"""Pictures in the generator's own hand, and changes that leave what is shown."""

import numpy as np
import pytest
import torch

from diffusion_gym.emoji.grammar import describe
from diffusion_gym.emoji.images import to_tensor
from diffusion_gym.emoji.pretrain import preference, reader
from diffusion_gym.emoji.pretrain import redraw as redraw_module
from diffusion_gym.emoji.pretrain.redraw import redraw, redraw_all
from diffusion_gym.emoji.pretrain.vary import vary
from diffusion_gym.emoji.sampling import load_pipeline
from diffusion_gym.emoji.scenes import sample_batch


@pytest.fixture(scope="module")
def pipeline(tiny_weights):
    return load_pipeline(tiny_weights / "pipeline")


def scenes(count=6, seed=0):
    pictures, drawn = sample_batch(np.random.default_rng(seed), count)
    return pictures, [describe(scene) for scene in drawn]


def test_the_further_back_the_less_of_the_picture_stays(pipeline):
    pictures, captions = scenes()

    def distance(strength):
        again = redraw(pipeline, pictures, captions, strength, 1.5, torch.Generator().manual_seed(0))
        assert again.shape == pictures.shape
        assert again.dtype == np.uint8
        latents = [pipeline.vae.encode(to_tensor(x) * 2 - 1).latent_dist.mode() for x in (pictures, again)]
        return (latents[0] - latents[1]).square().mean().item()

    assert distance(0.1) < distance(1.0)


@pytest.mark.parametrize("finished", [0, 1, 2])
def test_a_killed_run_goes_on_to_the_same_pictures(finished, pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(redraw_module, "_CHUNK", 2)
    monkeypatch.setattr(redraw_module, "_CHUNKS_A_SAVE", 1)
    arguments = (pipeline, *scenes(), (0.2, 0.6), 1.5, 0)
    whole = redraw_all(*arguments, tmp_path / "whole.pt")
    real, calls = redraw_module.redraw, []

    def interrupted(*args):
        if len(calls) == finished:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*args)

    with monkeypatch.context() as patched:
        patched.setattr(redraw_module, "redraw", interrupted)
        with pytest.raises(KeyboardInterrupt):
            redraw_all(*arguments, tmp_path / "parts.pt")
    with monkeypatch.context() as patched:
        patched.setattr(redraw_module, "redraw", lambda *args: calls.append(1) or real(*args))
        assert np.array_equal(redraw_all(*arguments, tmp_path / "parts.pt"), whole)
    assert len(calls) == 3


def test_pictures_kept_for_other_settings_are_not_taken(pipeline, tmp_path):
    pictures, captions = scenes()
    cache = tmp_path / "kept.pt"
    first = redraw_all(pipeline, pictures, captions, (0.2, 0.6), 1.5, 0, cache)
    assert np.array_equal(first, redraw_all(pipeline, pictures, captions, (0.2, 0.6), 1.5, 0, cache))
    assert not np.array_equal(first, redraw_all(pipeline, pictures, captions, (0.2, 0.6), 1.5, 1, cache))
    assert not np.array_equal(first, redraw_all(pipeline, pictures[::-1].copy(), captions, (0.2, 0.6), 1.5, 0, cache))


def test_redrawn_pictures_of_the_judges_keep_their_ground_truth(tiny_weights, tmp_path, monkeypatch):
    def same(pipeline, pictures, captions, strength, guidance_scale, generator):
        return pictures

    monkeypatch.setattr(redraw_module, "redraw", same)
    from tiny_emoji import tiny_configs

    configs = tiny_configs(tmp_path)
    config = reader.ReaderConfig(redrawn_scenes=6, loop=configs["reader"].loop)
    drawn = reader.redraw_scenes(config, tiny_weights)
    expected, shown = sample_batch(reader.StepRandom.at(config.loop.seed, 4 * 10**9).numpy, 6)
    assert np.array_equal(drawn.pictures, expected)
    for b, scene in enumerate(shown):
        counts, colors, place = reader.labels(scene)
        assert np.array_equal(drawn.classes[0][b], counts)
        assert np.array_equal(drawn.classes[1][b], colors)
        assert drawn.classes[2][b] == place

    items = preference.redraw_quadruples(
        preference.PreferenceConfig(redrawn_prompts=5, loop=configs["preference"].loop), tiny_weights
    )
    rng = preference.StepRandom.at(0, 6 * 10**9).numpy
    for item in items:
        original = preference.sample_quadruple(rng)
        assert (item.prompt, item.mistake) == (original.prompt, original.mistake)
        assert np.array_equal(item.right, original.right)
        assert np.array_equal(item.wrong, original.wrong)
        assert np.array_equal(item.rough, original.right)


def test_redrawn_pictures_reach_the_readers_batches_with_their_classes(tiny_autoencoder, tmp_path):
    from tiny_emoji import tiny_configs

    config = reader.ReaderConfig(varied=0, redrawn=0.5, redrawn_scenes=4, loop=tiny_configs(tmp_path)["reader"].loop)
    pictures, shown = sample_batch(np.random.default_rng(9), 4)
    pool = reader.Redrawn(pictures, reader.stack_labels([reader.labels(scene) for scene in shown]))
    images, classes = reader.make_batch(config, tiny_autoencoder, pool, reader.StepRandom.at(0, 0))
    for row in range(4, 8):
        n = next(n for n in range(4) if torch.equal(images[row], to_tensor(pictures)[n]))
        assert all(torch.equal(kind[row], value[n]) for kind, value in zip(classes, pool.classes, strict=True))


def test_variation_is_small_seeded_and_different_for_each_picture():
    picture = torch.zeros(1, 3, 64, 64)
    picture[:, 0, 16:48, 16:48] = 0.8
    same = picture.expand(32, -1, -1, -1)
    varied = vary(same, torch.Generator().manual_seed(0))
    assert torch.equal(varied, vary(same, torch.Generator().manual_seed(0)))
    assert varied.shape == same.shape
    assert varied.min() >= 0
    assert varied.max() <= 1
    assert not torch.equal(varied[0], varied[1])
    # A red square stays red, in the middle, and of about its size.
    red = varied[:, 0] > 2 * varied[:, 1:].amax(1) + 0.1
    area = red.float().mean((1, 2)) / 0.25
    assert area.min() > 0.6
    assert area.max() < 1.5
    assert bool(red[:, 32, 32].all())


def test_variation_mirrors_about_half_of_the_pictures():
    picture = torch.zeros(1, 3, 64, 64)
    picture[..., :32] = 1
    varied = vary(picture.expand(200, -1, -1, -1), torch.Generator().manual_seed(0))
    left = (varied[..., :24].mean((1, 2, 3)) > varied[..., 40:].mean((1, 2, 3))).float().mean()
    assert 0.35 < left < 0.65
