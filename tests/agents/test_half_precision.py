"""float16 and bfloat16 UNets: the ratio is 1 before the first update, and small gradients are not lost."""

from pathlib import Path
from typing import Any

import pytest
import torch

from agents.common.optim import Accumulator, loss_scaler
from agents.config import DDPOConfig, PPOConfig
from agents.training import Training

HALVES = ["float16", "bfloat16"]


def training(model: Path, out: Path, **changes: Any) -> Training:
    settings: dict[str, Any] = {
        "model": str(model),
        "reward": "jpeg_compressibility",
        "prompts": ("a cat",),
        "steps": 50,
        "pictures": 2,
        "micro_batch_size": 2,
        "timestep_fraction": 1.0,
        "max_grad_norm": None,
        "batch_size": 100,
        "lora_rank": 2,
        "device": "cpu",
    }
    return Training(DDPOConfig(out=out, **{**settings, **changes}))


@pytest.mark.parametrize("dtype", HALVES)
def test_the_ratio_is_1_at_all_of_50_steps(tiny_model, tmp_path, dtype):
    run = training(tiny_model, tmp_path, dtype=dtype)
    record = run.iterate()
    assert record["ratio_deviation"] < 1e-6
    assert record["gradient_steps"] == 1  # so all 100 transitions were seen before it, the last step's too
    assert next(run.policy.actor.unet.parameters()).dtype == getattr(torch, dtype)
    assert all(p.dtype == torch.float32 for p in run.policy.actor.parameters() if p.requires_grad)


@pytest.mark.parametrize("dtype", HALVES)
def test_gradients_are_those_of_float32(tiny_model, tmp_path, dtype, monkeypatch):
    found = {}
    clip = torch.nn.utils.clip_grad_norm_

    def keep(parameters: Any, limit: float) -> Any:
        found[now] = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        return clip(parameters, limit)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", keep)
    for now in ("float32", dtype):
        training(tiny_model, tmp_path, dtype=now, steps=5, batch_size=10).iterate()
    cosine = torch.nn.functional.cosine_similarity(found["float32"], found[dtype], dim=0)
    assert cosine > 0.97
    assert found[dtype].norm() == pytest.approx(float(found["float32"].norm()), rel=0.05)


def test_without_scaling_float16_loses_gradients():
    """What the scaler is for: a gradient of 1e-9 is 0 in float16."""
    for scaler, alive in [(None, False), (loss_scaler(torch.float16, torch.device("cpu")), True)]:
        parameter = torch.nn.Parameter(torch.ones(()))
        accumulator = Accumulator(torch.optim.SGD([parameter], lr=1e6), max_grad_norm=None, scaler=scaler)
        accumulator.add((parameter.half() * 1.0).float() * 1e-9)
        norm = accumulator.step()
        assert norm == pytest.approx(1e-9 if alive else 0.0, rel=1e-2, abs=0)
        assert float(parameter) == pytest.approx(1 - 1e-3 if alive else 1.0)


def test_an_overflow_is_left_out_and_scaled_less_the_next_time():
    scaler = loss_scaler(torch.float16, torch.device("cpu"))
    parameter = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    norms = []
    for _ in range(30):
        accumulator = Accumulator(optimizer, max_grad_norm=None, scaler=scaler)
        accumulator.add((parameter.half() * 1.0).float() * 8.0)
        norms.append(accumulator.step())
        if norms[-1] is not None:
            break
    assert norms[0] is None
    assert norms[-1] == pytest.approx(8.0)
    assert float(parameter) == pytest.approx(1.0 - 8.0)


def test_gradients_that_are_not_finite_at_any_scale_stop_the_run():
    scaler = loss_scaler(torch.float16, torch.device("cpu"))
    parameter = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([parameter], lr=1.0)

    def steps() -> None:
        for _ in range(100):
            accumulator = Accumulator(optimizer, max_grad_norm=None, scaler=scaler)
            accumulator.add(parameter * float("nan"))
            accumulator.step()

    with pytest.raises(FloatingPointError, match="gradient"):
        steps()
    assert float(parameter) == 1.0


def test_the_scale_survives_a_checkpoint(tiny_model, tmp_path):
    first = training(tiny_model, tmp_path, dtype="float16", steps=3)
    first.algorithm.scaler.load_state_dict({**first.algorithm.scaler.state_dict(), "scale": 1024.0})
    second = training(tiny_model, tmp_path, dtype="float16", steps=3)
    second.load_state(first.state())
    assert second.algorithm.scaler.get_scale() == 1024.0


def test_algorithms_that_do_not_scale_refuse_float16():
    with pytest.raises(ValueError, match="bfloat16"):
        PPOConfig(dtype="float16").check()
