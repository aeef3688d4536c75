"""Ctrl-C between checkpoints."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from agents.common.lora import merged_adapters
from agents.config import DDPOConfig, DPOKConfig
from agents.ddpo import DDPO
from agents.run import train
from agents.run_directory import CHECKPOINT, read_history


def final_parameters(settings: dict[str, Any], agent: Any = DDPOConfig, **changes: Any) -> torch.Tensor:
    training = train(agent(**{**settings, **changes}))
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


@pytest.mark.parametrize(("agent", "extra"), [(DDPOConfig, {}), (DPOKConfig, {"rollouts": 2})])
def test_ctrl_c_while_weights_are_put_back_after_sampling(settings, tmp_path, monkeypatch, agent, extra):
    settings = {**settings, "iterations": 4, "checkpoint_every": 10, **extra}
    expected = final_parameters(settings, agent, out=tmp_path / "whole")
    calls = []

    @contextmanager
    def interrupted(unet: Any) -> Iterator[None]:
        with merged_adapters(unet):
            yield
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("agents.training.merged_adapters", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(agent(**settings))
    assert len(read_history(settings["out"])) == 2
    assert torch.equal(final_parameters(settings, agent, resume=True), expected)


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
