"""Runs from the command line's settings: resume, export, errors, report."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from agents import cli, run_directory
from agents.common import checkpoint
from agents.common.lora import add_lora, load_lora, save_lora
from agents.common.rollout import chunks
from agents.common.sampling import sample_pictures
from agents.config import (
    AGENTS,
    A2CConfig,
    DDPOConfig,
    DPOKConfig,
    PPOConfig,
    ReinforceConfig,
    SFTConfig,
)
from agents.evaluation import (
    load_trained,
)
from agents.progress import PICTURES_SHOWN
from agents.run import train
from agents.run_directory import RunError
from agents.training import Training
from diffusion_gym.pipelines import load_pipeline


def trained(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / run_directory.CHECKPOINT, weights_only=True)["algorithm"]["parameters"]


def assert_equal_runs(one: Path, other: Path) -> None:
    a, b = trained(one), trained(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    curves = [[r.get("reward") for r in run_directory.read_history(out)] for out in (one, other)]
    assert curves[0] == curves[1]


@pytest.mark.parametrize(
    ("agent", "extra"),
    [
        (DDPOConfig, {"slots": 2}),
        (DPOKConfig, {}),
        (DPOKConfig, {"rollouts": 2, "value_function": True}),
        (SFTConfig, {"pool": 4, "regulariser": "kl-o"}),
        (ReinforceConfig, {}),
        (A2CConfig, {"batch_size": 5}),
        (PPOConfig, {}),
    ],
)
def test_a_resumed_run_equals_one_that_was_not_stopped(
    settings: dict[str, Any], tmp_path: Path, agent: Any, extra: dict[str, Any]
) -> None:
    whole = agent(**{**settings, "out": tmp_path / "whole", "iterations": 4, **extra})
    train(whole)
    stopped = agent(**{**settings, "out": tmp_path / "stopped", "iterations": 2, **extra})
    train(stopped)
    torch.manual_seed(999)  # whatever happened in between
    train(dataclasses.replace(stopped, iterations=4, resume=True))
    assert_equal_runs(whole.out, stopped.out)


def test_seeds_share_no_episode_and_cyclic_prompts_go_on(settings: dict[str, Any]) -> None:
    begun: dict[int, list[int]] = {}
    for seed in (0, 1):
        training = Training(DDPOConfig(**{**settings, "seed": seed, "pictures": 3}))
        begun[seed] = []
        reset = training.collector.reset

        def watch(*args: Any, seed: int = seed, reset: Any = reset, **kwargs: Any) -> Any:
            first = kwargs["gym_reset_kwargs"]["seed"]
            begun[seed] += range(first, first + 3)
            return reset(*args, **kwargs)

        training.collector.reset = watch  # type: ignore[method-assign]
        prompts = []
        for _ in range(2):
            training.iterate()
            prompts += [prompt for episodes in training.episodes for prompt in episodes.prompts]
        assert prompts == ["a cat", "a dog"] * 3
    assert len({*begun[0], *begun[1]}) == 12


def test_only_pictures_that_are_shown_are_kept(settings: dict[str, Any]) -> None:
    training = Training(DDPOConfig(**settings | {"pictures": 12, "slots": 6}))
    training.iterate()
    assert [len(episodes.rewards) for episodes in training.episodes] == [6, 6]
    assert [len(episodes.images) for episodes in training.episodes] == [6, PICTURES_SHOWN - 6]
    assert all(episodes.images.base is None for episodes in training.episodes)


def test_a_killed_run_goes_on_to_the_same_weights(settings: dict[str, Any], tmp_path: Path) -> None:
    whole = DPOKConfig(**{**settings, "out": tmp_path / "whole", "iterations": 4})
    train(whole)
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "agents.cli", "train", "dpok", "--out", str(out), "--model", settings["model"]]
    command += ["--reward", settings["reward"], "--prompts", "a cat", "a dog", "--steps", "3", "--pictures", "4"]
    command += ["--iterations", "400", "--lora-rank", "2", "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 240
        while not (out / run_directory.CHECKPOINT).is_file():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = len(run_directory.read_history(out))
    more = max(4, done)
    train(DPOKConfig(**{**settings, "out": out, "iterations": more, "resume": True}))
    if more > 4:  # the run was quicker than the kill: bring the other to the same length
        train(dataclasses.replace(whole, iterations=more, resume=True))
    assert_equal_runs(whole.out, out)


def test_ctrl_c_keeps_finished_iterations(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = DDPOConfig(**{**settings, "iterations": 5})
    iterate = Training.iterate

    def interrupted(self: Training) -> Any:
        if self.iteration == 2:
            raise KeyboardInterrupt
        return iterate(self)

    monkeypatch.setattr(Training, "iterate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    assert len(run_directory.read_history(config.out)) == 2
    monkeypatch.undo()
    train(dataclasses.replace(config, iterations=3, resume=True))
    assert len(run_directory.read_history(config.out)) == 3


def test_adapters_load_in_diffusers(settings: dict[str, Any]) -> None:
    config = DDPOConfig(**{**settings, "iterations": 3, "learning_rate": 1e-2, "steps": 5})
    train(config)
    pipeline, actor, reference, _ = load_trained(config)
    seeds, prompts = [5, 6, 7], ["a cat", "a dog", "a cat"]
    ours = sample_pictures(actor, pipeline, prompts, seeds).images
    base = sample_pictures(actor, pipeline, prompts, seeds, reference=reference, use_reference=True)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(config.model, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)

    def theirs() -> torch.Tensor:
        return pipe(
            prompts,
            num_inference_steps=config.steps,
            guidance_scale=actor.denoiser.guidance_scale,
            eta=1.0,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
        ).images

    assert (theirs() - base.images).abs().max() < 1 / 255
    assert torch.equal(base.kl, torch.zeros(3))
    pipe.load_lora_weights(str(config.out))
    found = theirs()
    assert (found - ours).abs().max() < 1 / 255
    assert (ours - base.images).abs().max() > 2 / 255


def test_full_fine_tuning_saves_a_pipeline(settings: dict[str, Any]) -> None:
    config = DDPOConfig(**{**settings, "full": True, "learning_rate": 1e-4})
    train(config)
    pipeline, actor, _, _ = load_trained(config)
    ours = sample_pictures(actor, pipeline, ["a cat"], [3]).images
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(config.out / "pipeline", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        ["a cat"],
        num_inference_steps=config.steps,
        guidance_scale=actor.denoiser.guidance_scale,
        eta=1.0,
        generator=[torch.Generator().manual_seed(3)],
        output_type="pt",
    ).images
    assert (theirs - ours).abs().max() < 1 / 255


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ReinforceConfig(max_grad_norm=0.1), "--max-grad-norm"),
        (PPOConfig(micro_batch_size=8), "--micro-batch-size"),
        (SFTConfig(weighting="best", temperature=1.0), "--temperature"),
        (SFTConfig(reduction="sum"), "--reduction"),
        (SFTConfig(pool=96, iterations=1), "--pool must be at most 48"),
    ],
)
def test_settings_without_effect_are_refused(config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.check()


def test_rewards_that_give_no_picture_weight_are_refused(settings: dict[str, Any]) -> None:
    config = SFTConfig(**{**settings, "reward": "jpeg_compressibility", "weighting": "reward"})
    with pytest.raises(ValueError, match="--shift"):
        train(config)


def test_a_trained_pipeline_is_sampled_as_it_was_trained(settings: dict[str, Any]) -> None:
    train(DDPOConfig(**{**settings, "full": True, "learning_rate": 1e-4, "guidance_scale": 2.5, "eta": 0.5}))
    sampling = load_pipeline(settings["out"] / "pipeline", device="cpu").sampling
    assert (sampling.num_inference_steps, sampling.guidance_scale, sampling.eta) == (3, 2.5, 0.5)


def test_adapters_come_back_with_their_scale(tiny_pipeline: Any, tmp_path: Path) -> None:
    one, other = tiny_pipeline.load_unet(), tiny_pipeline.load_unet()
    add_lora(one, rank=2, alpha=8)
    for name, parameter in one.named_parameters():
        if "lora" in name:
            parameter.data.normal_(std=0.1)
    save_lora(one, tmp_path)
    load_lora(other, tmp_path)
    x = torch.randn(1, *tiny_pipeline.latent_shape)
    text = torch.randn(1, 4, one.config.cross_attention_dim)
    with torch.no_grad():
        assert torch.allclose(one(x, 1, text).sample, other(x, 1, text).sample, atol=1e-6)


def test_another_run_is_not_overwritten(settings: dict[str, Any]) -> None:
    config = DDPOConfig(**settings)
    train(config)
    before = {path: path.read_bytes() for path in config.out.iterdir() if path.is_file()}
    with pytest.raises(RunError, match="already holds a run"):
        train(config)
    with pytest.raises(RunError, match="learning_rate was"):
        train(dataclasses.replace(config, resume=True, learning_rate=1e-5))
    with pytest.raises(RunError, match="agent was 'ddpo'"):
        train(DPOKConfig(**{**settings, "resume": True}))
    assert before == {path: path.read_bytes() for path in config.out.iterdir() if path.is_file()}


def test_errors_come_before_any_work(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run"):
        train(DDPOConfig(**{**settings, "resume": True}))
    for change, message in (
        ({"clip_range": 0.2}, "--clip-range"),
        ({"slots": 3}, "--slots"),
        ({"full": True}, "--learning-rate"),
        ({"full": True, "dtype": "bfloat16"}, "--full"),
        ({"estimator": "score", "passes": 2}, "--passes 1"),
        ({"reward": "jpeg=much"}, "--reward"),
        ({"reward": "emoji_preference"}, "emoji_preference"),  # judges pictures of 64 x 64 only
        ({"prompts": ("a cat", "prompts.txt")}, "prompts.txt"),
        ({"reward": "unknown_reward"}, "unknown_reward"),
        ({"model": str(tmp_path / "nowhere")}, "nowhere"),
    ):
        with pytest.raises(ValueError, match=message):
            train(DDPOConfig(**{**settings, **change}))
        assert not settings["out"].exists()
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RunError, match="is a file"):
        train(DDPOConfig(**settings))


def test_a_full_disk_is_noticed_before_and_loses_nothing_later(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DDPOConfig(**settings)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="MiB free"):
        train(config)
    assert not config.out.exists()
    monkeypatch.undo()
    train(config)
    before = trained(config.out)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="what was there is kept"):
        train(dataclasses.replace(config, iterations=3, resume=True))
    monkeypatch.undo()
    after = trained(config.out)
    assert all(torch.equal(before[name], after[name]) for name in before)
    train(dataclasses.replace(config, iterations=3, resume=True))


def test_the_command_names_the_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "dpokk"])
    assert stopped.value.code == 2
    text = capsys.readouterr()
    assert "dpok" in text.out + text.err
    for arguments in (["report", str(tmp_path)], ["evaluate", str(tmp_path)], ["sample", str(tmp_path)]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == 2
        assert "is missing; train one first" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, agents.cli; sys.exit(int(any(m in sys.modules for m in ('torch', 'diffusers', 'tianshou'))))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("agent", sorted(AGENTS))
def test_configurations_survive_json(agent: str) -> None:
    config = AGENTS[agent](prompts=("a", "b"), seed=3)
    values = json.loads(json.dumps(config.to_json()))
    assert run_directory.config_from_json(values, out=config.out) == config


@pytest.mark.parametrize("pictures", [1, 2, 5, 48, 64, 100])
def test_default_minibatches_leave_no_stub(pictures):
    """A rest of a few transitions would make a whole optimizer step, with the noise of few and the size of any."""
    for config, seen, parts in (
        (DPOKConfig(pictures=pictures), 5 * pictures, 3),
        (DPOKConfig(pictures=pictures, rollouts=2), 10 * pictures, 3),
        (PPOConfig(pictures=pictures), 10 * pictures, 2),
    ):
        assert config.transitions() == seen
        sizes = [len(part) for part in chunks(np.arange(seen), config.minibatch())]
        assert len(sizes) == parts
        assert min(sizes) >= 0.5 * max(sizes)


def test_default_minibatches_are_a_third_of_all_rollouts(settings: dict[str, Any]) -> None:
    training = Training(DPOKConfig(**settings, rollouts=2))
    assert [training.iterate()["gradient_steps"] for _ in range(3)] == [2, 3, 3]  # the first has one rollout only
    given = DPOKConfig(**settings, rollouts=2, batch_size=5)
    assert given.minibatch() == 5
