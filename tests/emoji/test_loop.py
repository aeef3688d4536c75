import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from diffusion_gym.emoji.pretrain.loop import (
    LoopConfig,
    StepRandom,
    learning_rate_factor,
    thin_out,
    train,
    write_metrics,
)


def config(tmp_path, **changes) -> LoopConfig:
    defaults = {"steps": 30, "batch_size": 8, "learning_rate": 0.05, "warmup_steps": 5, "checkpoint_every": 4}
    return LoopConfig(**(defaults | {"ema_decay": 0.9, "runs": tmp_path} | changes))


def make(seed: int = 0, stop_at: int | None = None):
    """A line to be fitted, and a loss that fails at step `stop_at` as a kill would."""
    torch.manual_seed(seed)
    model = nn.Linear(3, 1)

    def loss(step: int, chance: StepRandom):
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=chance.torch)
        y = x.sum(1, keepdim=True) + 0.1 * chance.numpy.normal()
        return (model(x) - y).square().mean(), {}

    return model, loss


def test_loss_falls_and_the_averaged_weights_are_kept(tmp_path):
    model, loss = make()
    progress = train("line", model, loss, config(tmp_path, steps=200))
    assert progress.step == 200
    assert progress.losses[-1][1] < 0.3 * progress.losses[0][1]
    raw = torch.load(tmp_path / "line.pt")["model"]["weight"]
    assert not torch.equal(raw, model.weight)
    assert torch.allclose(model.weight, torch.ones(1, 3), atol=0.1)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path):
    weights = []
    for i, seed in enumerate((0, 0, 1)):
        model, loss = make(0)
        train("line", model, loss, config(tmp_path / str(i), seed=seed))
        weights.append(model.weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("stop_at", [1, 4, 17, 29])
def test_a_stopped_run_continues_to_the_same_weights(tmp_path, stop_at):
    whole, loss = make()
    train("line", whole, loss, config(tmp_path / "whole"))
    stopped, loss = make(stop_at=stop_at)
    with pytest.raises(KeyboardInterrupt):
        train("line", stopped, loss, config(tmp_path / "parts"))
    resumed, loss = make()
    train("line", resumed, loss, config(tmp_path / "parts"))
    assert torch.equal(whole.weight, resumed.weight)
    assert torch.equal(whole.bias, resumed.bias)


SCRIPT = """
import sys, time, torch
from pathlib import Path
from torch import nn
from diffusion_gym.emoji.pretrain.loop import LoopConfig, train
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Linear(3, 1)
def loss(step, chance):
    time.sleep(float(sys.argv[2]))
    x = torch.randn(8, 3, generator=chance.torch)
    return (model(x) - x.sum(1, keepdim=True)).square().mean(), {}
runs = Path(sys.argv[1])
train("line", model, loss, LoopConfig(steps=60, batch_size=8, learning_rate=0.05, checkpoint_every=1, runs=runs))
torch.save(model.state_dict(), runs / "final.pt")
"""


def test_a_run_killed_with_sigkill_continues_to_the_same_weights(tmp_path):
    def start(folder: str, pause: float) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / folder), str(pause)])

    assert start("whole", 0).wait() == 0
    killed = start("killed", 0.05)
    while not (tmp_path / "killed" / "line.pt").exists():
        time.sleep(0.02)
    time.sleep(0.5)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "final.pt").exists()
    assert 0 < torch.load(tmp_path / "killed" / "line.pt")["step"] < 60
    assert start("killed", 0).wait() == 0
    weights = [torch.load(tmp_path / folder / "final.pt")["weight"] for folder in ("whole", "killed")]
    assert torch.equal(*weights)


def test_a_checkpoint_of_other_settings_is_refused_and_kept(tmp_path):
    model, loss = make()
    train("line", model, loss, config(tmp_path))
    before = (tmp_path / "line.pt").read_bytes()
    with pytest.raises(ValueError, match="was made with"):
        train("line", model, loss, config(tmp_path, learning_rate=0.01))
    assert (tmp_path / "line.pt").read_bytes() == before


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="nan at step 1"):
        train("line", model, lambda step, chance: (model.weight.sum() * float("nan"), {}), config(tmp_path))


@pytest.mark.parametrize(
    ("name", "value"), [("steps", 0), ("batch_size", -1), ("learning_rate", 0.0), ("ema_decay", 1.0)]
)
def test_bad_settings_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        LoopConfig(**({"steps": 1, "batch_size": 1, "learning_rate": 0.1} | {name: value}))


def test_learning_rate_warms_up_and_ends_at_zero():
    loop = LoopConfig(steps=100, batch_size=1, learning_rate=1.0, warmup_steps=10)
    factors = [learning_rate_factor(step, loop) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == pytest.approx(1.0)
    assert factors[100] == pytest.approx(0.0, abs=1e-12)


def test_metrics_say_how_they_were_made(tmp_path):
    model, loss = make()
    loop = config(tmp_path)
    write_metrics(tmp_path / "m.json", {"db": 1.0}, train("line", model, loss, loop), loop)
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert {"figures", "command", "seed", "steps", "seconds", "versions", "machine"} <= set(metrics)
    assert metrics["steps"] == 30


def test_thinning_keeps_the_end():
    points = [(i, float(i)) for i in range(1000)]
    assert len(thin_out(points, 50)) <= 50
    assert thin_out(points, 50)[-1] == (999, 999.0)
