"""Ctrl-C between checkpoints."""

from typing import Any

import pytest
import torch

from agents.config import DDPOConfig
from agents.ddpo import DDPO
from agents.run import train
from agents.run_directory import CHECKPOINT, read_history


def final_parameters(settings: dict[str, Any], **changes: Any) -> torch.Tensor:
    training = train(DDPOConfig(**{**settings, **changes}))
    return torch.cat([p.detach().flatten() for p in training.policy.actor.parameters() if p.requires_grad])


@pytest.mark.parametrize(("where", "saved"), [("_prepare", 0), ("sampling", 2)])
def test_finished_iterations_are_saved_unless_an_update_is_cut(settings, tmp_path, monkeypatch, where, saved):
    settings = {**settings, "iterations": 4, "checkpoint_every": 10}
    expected = final_parameters(settings, out=tmp_path / "whole")
    from agents.training import Training

    owner, name = (DDPO, "_prepare") if where == "_prepare" else (Training, "_sample")
    real, calls = getattr(owner, name), []

    def interrupted(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(DDPOConfig(**settings))
    assert len(read_history(settings["out"])) == saved
    assert (settings["out"] / CHECKPOINT).is_file() == (saved > 0)
    assert torch.equal(final_parameters(settings, resume=True), expected)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": -5}, "--batch-size"),
        ({"batch_size": 0}, "--batch-size"),
        ({"seed": -1}, "--seed"),
        ({"guidance_scale": 0.5}, "--guidance-scale"),
        ({"eta": 0.0}, "--eta"),
        ({"max_grad_norm": 0.0}, "--max-grad-norm"),
    ],
)
def test_numbers_out_of_range_are_named_before_any_work(settings, change, says):
    with pytest.raises(ValueError, match=says):
        train(DDPOConfig(**{**settings, **change}))
    assert not settings["out"].exists()
