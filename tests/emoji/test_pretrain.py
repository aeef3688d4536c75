"""Each part, trained for a few steps on tiny settings: the loss falls, seeds reproduce, a stopped run continues."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_emoji import tiny_configs

from diffusion_gym.emoji.grammar import PROBES, Scene, describe, parse
from diffusion_gym.emoji.images import to_bytes, to_tensor
from diffusion_gym.emoji.pretrain import autoencoder, generator, loop, preference, quality, reader
from diffusion_gym.emoji.pretrain.__main__ import PARTS, main
from diffusion_gym.emoji.scenes import draw, sample_batch


def train_part(part, config, tiny_autoencoder):
    """Trains a part; returns its weights and progress."""
    match part:
        case "autoencoder":
            net, progress = autoencoder.train_autoencoder(config)
        case "generator":
            latents, scenes = generator.encode_scenes(
                tiny_autoencoder, config.scenes, 0, config.loop.runs / "latents.pt", "cpu"
            )
            unet, text_encoder, progress = generator.train_generator(config, latents, scenes)
            net = torch.nn.ModuleList([unet, text_encoder])
        case "reader":
            net, progress = reader.train_reader(config, tiny_autoencoder)
        case "quality":
            net, progress = quality.train_quality(config, tiny_autoencoder)
        case "preference":
            picture = draw(parse(PROBES[0]), np.random.default_rng(0))
            net, progress = preference.train_preference(config, tiny_autoencoder, {PROBES[0]: [picture]})
    return torch.cat([p.detach().flatten() for p in net.parameters()]), progress


@pytest.mark.parametrize("part", PARTS)
def test_seeds_reproduce_and_a_stopped_run_continues_to_the_same_weights(part, tmp_path, tiny_autoencoder, monkeypatch):
    whole, _ = train_part(part, tiny_configs(tmp_path / "whole")[part], tiny_autoencoder)
    other, _ = train_part(part, tiny_configs(tmp_path / "other", seed=1)[part], tiny_autoencoder)
    assert not torch.equal(whole, other)

    real = loop.StepRandom.at

    def stop_at_five(seed, step, device="cpu"):
        if step == 5:
            raise KeyboardInterrupt
        return real(seed, step, device)

    config = tiny_configs(tmp_path / "parts")[part]
    with monkeypatch.context() as patched:
        patched.setattr(loop.StepRandom, "at", stop_at_five)
        with pytest.raises(KeyboardInterrupt):
            train_part(part, config, tiny_autoencoder)
    assert torch.load(tmp_path / "parts" / f"{part}.pt")["step"] == 4
    resumed, _ = train_part(part, config, tiny_autoencoder)
    assert torch.equal(whole, resumed)


@pytest.mark.parametrize("part", PARTS)
def test_loss_falls_on_a_batch_that_repeats(part, tmp_path, tiny_autoencoder, monkeypatch):
    real = loop.StepRandom.at
    monkeypatch.setattr(loop.StepRandom, "at", lambda seed, step, device="cpu": real(seed, 0, device))
    config = tiny_configs(tmp_path)[part]
    config = replace(config, loop=replace(config.loop, steps=40, batch_size=8, checkpoint_every=1))
    _, progress = train_part(part, config, tiny_autoencoder)
    assert progress.losses[-1][1] < 0.9 * progress.losses[0][1]


def test_the_encoder_stands_still_after_its_steps(tmp_path):
    config = tiny_configs(tmp_path)["autoencoder"]
    short = replace(config, encoder_steps=3, loop=replace(config.loop, ema_decay=0.0, checkpoint_every=1))
    seen = []
    real = loop.save_atomically

    def watch(path, content):
        seen.append({k: v.clone() for k, v in content["model"].items()})
        real(path, content)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "save_atomically", watch)
        autoencoder.train_autoencoder(short)
    name = "encoder.conv_in.weight"
    assert not torch.equal(seen[1][name], seen[2][name])
    assert torch.equal(seen[2][name], seen[-1][name])
    assert not torch.equal(seen[2]["decoder.conv_in.weight"], seen[-1]["decoder.conv_in.weight"])


def test_latents_have_unit_variance_after_scaling(tmp_path):
    config = tiny_configs(tmp_path)["autoencoder"]
    model, _ = autoencoder.train_autoencoder(config)
    latents, scenes = generator.encode_scenes(model, 64, 5, tmp_path / "latents.pt", "cpu")
    assert latents.shape == (64, 4, 8, 8)
    assert len(scenes) == 64
    assert latents.float().std().item() == pytest.approx(1, abs=0.15)


def test_cached_latents_are_those_of_the_same_encoder(tmp_path, tiny_autoencoder):
    first, _ = generator.encode_scenes(tiny_autoencoder, 8, 0, tmp_path / "latents.pt", "cpu")
    again, _ = generator.encode_scenes(tiny_autoencoder, 8, 0, tmp_path / "latents.pt", "cpu")
    assert torch.equal(first, again)
    other = autoencoder.build_autoencoder(tiny_configs(tmp_path, seed=9)["autoencoder"]).eval()
    changed, _ = generator.encode_scenes(other, 8, 0, tmp_path / "latents.pt", "cpu")
    assert not torch.equal(first, changed)


def test_psnr_agrees_with_its_definition():
    images = torch.rand(3, 3, 8, 8)
    others = (images + 0.1).clamp(0, 1)
    expected = 10 * torch.log10(1 / (images - others).square().mean((1, 2, 3)))
    assert torch.allclose(autoencoder.psnr(images, others), expected, atol=1e-4)


@pytest.mark.parametrize("kind", preference.MISTAKES)
def test_a_mistake_is_wrong_for_its_prompt(kind):
    rng = np.random.default_rng(0)
    for _ in range(100):
        item = preference.sample_quadruple(rng, kind)
        prompt, shown, wrong = parse(item.prompt), item.shown, item.shown_wrong
        assert answers(shown, prompt)
        assert not answers(wrong, prompt)
        assert 0 <= sum(group.count for group in wrong.groups) <= 4


def answers(scene: Scene, prompt: Scene) -> bool:
    """Whether a settled scene shows what the prompt asks for, and nothing else."""
    from diffusion_gym.emoji.nouns import drawn_color

    shown = {group.noun: group for group in scene.groups}
    if prompt.place is not None and scene.place != prompt.place:
        return False
    if set(shown) != {group.noun for group in prompt.groups}:
        return False
    return all(
        shown[g.noun].count == g.count
        and (g.color is None or drawn_color(g.noun, shown[g.noun].color) == drawn_color(g.noun, g.color))
        for g in prompt.groups
    )


def test_reader_labels_say_what_is_drawn():
    counts, colors, place = reader.labels(parse("three blue wolves on the moon"))
    assert counts.sum() == counts[reader.NOUN_INDEX["wolf"]] == 3
    assert reader.COLOR_CLASSES[colors[reader.NOUN_INDEX["wolf"]]] == "blue"
    assert (colors != reader.IGNORE).sum() == 1
    assert reader.PLACE_CLASSES[place] == "moon"


def test_unsayable_scenes_have_no_description():
    assert preference.describe_shown(parse("a cat and a dog")) == "a cat and a dog"
    crowd = replace(parse("a cat and a dog"), groups=(replace(parse("two cats").groups[0]), *parse("a dog").groups))
    assert preference.describe_shown(crowd) == ""
    assert describe(parse("two cats")) == "two cats"


def test_few_step_samples_are_pictures_for_prompts(tiny_weights):
    samples = preference.few_step_samples(tiny_weights, 6, (2, 3), seed=0, device="cpu")
    assert sum(len(pictures) for pictures in samples.values()) == 6
    assert all(picture.shape == (64, 64, 3) for pictures in samples.values() for picture in pictures)
    for prompt in samples:
        parse(prompt)


def test_the_command_trains_and_writes_weights_and_metrics(tmp_path, monkeypatch):
    config = tiny_configs(tmp_path / "runs")["autoencoder"]
    monkeypatch.setattr(autoencoder, "AutoencoderConfig", lambda: config)
    main(["autoencoder", "--steps", "3", "--batch-size", "2", "--out", str(tmp_path), "--runs", str(tmp_path / "runs")])
    assert (tmp_path / "autoencoder.json").is_file()
    loaded = autoencoder.load_autoencoder(tmp_path, "cpu")
    pictures, _ = sample_batch(np.random.default_rng(0), 2)
    assert to_bytes(autoencoder.round_trip(loaded, to_tensor(pictures))).shape == (2, 64, 64, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["painter"], "painter"), (["reader", "--device", "tpu9"], "tpu9"), (["reader", "--steps", "0"], "steps=0")],
)
def test_bad_arguments_are_refused_before_any_work(arguments, words, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*arguments, "--out", str(tmp_path / "out")])
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
