"""Running out of memory ends in advice, with finished iterations saved."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agents import cli
from agents.common.memory import is_out_of_memory
from agents.common.policy import DenoisingPolicy
from agents.config import DDPOConfig, EvaluateConfig, PPOConfig, SampleConfig
from agents.ddpo import DDPO
from agents.evaluation import evaluate
from agents.run import train
from agents.run_directory import CHECKPOINT, RunError, read_history
from agents.sample import sample
from agents.training import Training
from diffusion_gym.rewards import RewardError, register_reward

SAYS = "CUDA out of memory. Tried to allocate 2.00 GiB"
FULL = torch.OutOfMemoryError(SAYS)


def failing(real: Any, error: Exception, at: int) -> Any:
    """A function whose call number `at` raises."""
    calls: list[int] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            raise error
        return real(*args, **kwargs)

    return call


def final_parameters(settings: dict[str, Any], **changes: Any) -> torch.Tensor:
    training = train(DDPOConfig(**{**settings, **changes}))
    return torch.cat([p.detach().flatten() for p in training.policy.actor.parameters() if p.requires_grad])


@pytest.mark.parametrize(
    ("owner", "name", "calls", "every", "saved", "phase"),
    [
        (DDPO, "_prepare", 1, 1, 2, "the update"),
        (DDPO, "_prepare", 1, 10, 0, "the update"),
        (DenoisingPolicy, "forward", 3, 1, 2, "sampling"),
        (DenoisingPolicy, "forward", 3, 10, 2, "sampling"),
    ],
)
def test_a_training_says_what_to_lower_and_goes_on(
    settings, tmp_path, monkeypatch, owner, name, calls, every, saved, phase
):
    """In the third iteration: in the middle of sampling, or in the update."""
    settings = {**settings, "iterations": 4, "checkpoint_every": every, "slots": 2, "micro_batch_size": 4}
    expected = final_parameters(settings, out=tmp_path / "whole")
    per_iteration = {"_prepare": 1, "forward": 2 * settings["steps"]}[name]
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), FULL, 2 * per_iteration + min(calls, per_iteration)))
    with pytest.raises(RunError, match="out of memory in iteration 3") as raised:
        train(DDPOConfig(**settings))
    text = str(raised.value)
    for part in (
        f"in {phase}",
        "--micro-batch-size (now 4)",
        "--slots (now 2)",
        "--gradient-checkpointing (now off)",
        "--vae-slicing (now off)",
        f"{saved} finished iterations",
        "2.00 GiB",
    ):
        assert part in text
    assert len(read_history(settings["out"])) == saved
    assert (settings["out"] / CHECKPOINT).is_file() == (saved > 0)
    monkeypatch.undo()
    assert torch.equal(final_parameters(settings, resume=True), expected)
    # What may be changed on the way changes no result beyond rounding.
    train(DDPOConfig(**{**settings, "resume": True, "iterations": 5, "micro_batch_size": 1, "vae_slicing": True}))


def test_stock_algorithms_have_no_micro_batches(settings, monkeypatch):
    monkeypatch.setattr(Training, "_sample", failing(None, FULL, 1))
    with pytest.raises(RunError, match=r"in sampling.*--slots \(now 4\) and a lower --batch-size \(now 6\)") as raised:
        train(PPOConfig(**settings))
    assert "--micro-batch-size" not in str(raised.value)


def test_a_reward_that_finds_no_memory_is_no_broken_reward(settings, monkeypatch):
    def hungry(images: Any, prompts: Any, metadata: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:  # after the trial and the first iteration
            raise FULL
        return [0.0] * len(prompts)

    calls: list[int] = []
    register_reward("test_hungry", lambda device: hungry)
    with pytest.raises(RunError, match="out of memory in iteration 2, in sampling"):
        train(DDPOConfig(**{**settings, "reward": "test_hungry"}))
    assert len(read_history(settings["out"])) == 1


def test_a_model_that_does_not_fit(settings, monkeypatch):
    monkeypatch.setattr("agents.training.make_actor", failing(None, FULL, 1))
    with pytest.raises(RunError, match=r"out of memory: use --dtype bfloat16 \(now float32\)"):
        train(DDPOConfig(**settings))
    assert not settings["out"].exists()


def test_evaluation_and_samples_say_what_to_lower(settings, monkeypatch, capsys):
    config = DDPOConfig(**{**settings, "iterations": 1})
    train(config)
    advice = r"out of memory: use a lower --batch-size \(now {}\) or --vae-slicing \(now {}\)"
    monkeypatch.setattr("agents.evaluation.sample_pictures", failing(None, FULL, 1))
    with pytest.raises(RunError, match=advice.format(4, "off")):
        evaluate(config, EvaluateConfig(pictures=4))
    monkeypatch.setattr("agents.sample.sample_pictures", failing(None, FULL, 1))
    with pytest.raises(RunError, match=advice.format(2, "on")):
        sample(replace(config, vae_slicing=True), SampleConfig(batch_size=2))
    monkeypatch.setattr("agents.sample.sample_pictures", failing(None, FULL, 1))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        cli.main(["sample", str(config.out)])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_other_errors_stay_what_they_are(settings: dict[str, Any], monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(DDPO, "_prepare", failing(None, RuntimeError("a bug"), 1))
    with pytest.raises(RuntimeError, match="a bug"):
        train(DDPOConfig(**settings))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FULL, True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
        (RewardError("raised"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


def test_memory_of_the_host_that_runs_out_for_real(settings, monkeypatch):
    def prepare(*args: Any) -> Any:
        return torch.empty(2**60)

    monkeypatch.setattr(DDPO, "_prepare", prepare)
    with pytest.raises(RunError, match="out of memory in iteration 1, in the update"):
        train(DDPOConfig(**settings))
