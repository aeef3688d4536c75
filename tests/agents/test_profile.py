"""Where the time of an iteration goes."""

import json
import threading
import time
from collections import Counter
from dataclasses import fields, replace

import pytest
import torch

from agents import profile, run_directory
from agents.common.timer import PhaseTimer
from agents.config import DPOKConfig, SFTConfig, TrainConfig
from agents.run import train

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by one second each time it is read."""
    ticks = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))


def test_a_phase_does_not_count_those_within_it(clock):
    timer = PhaseTimer(CPU)
    with timer.phase("sample"):  # read at 0
        with timer.phase("decode"), timer.phase("reward"):  # 1 and 2
            pass  # 3
        with timer.phase("decode"):  # from 4 (5 to 6)
            pass
    assert timer.take() == {"sample": 3.0, "decode": 3.0, "reward": 1.0}
    assert timer.take() == {}


def test_an_error_ends_its_phases(clock):
    timer = PhaseTimer(CPU)

    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), timer.phase("update"):
        timer.around("reward", fail)()
    with timer.phase("sample"):
        pass
    assert set(timer.take()) == {"update", "reward", "sample"}


def test_other_threads_are_not_timed():
    timer = PhaseTimer(CPU)
    with timer.phase("sample"):
        thread = threading.Thread(target=timer.around("reward", lambda: None))
        thread.start()
        thread.join()
    assert set(timer.take()) == {"sample"}


@pytest.fixture
def config(tiny_model, tmp_path):
    """Settings of a run of many UNet calls."""
    return DPOKConfig(
        out=tmp_path / "run",
        model=str(tiny_model),
        reward="jpeg_compressibility",
        prompts=("a cat",),
        steps=5,
        iterations=4,
        pictures=4,
        micro_batch_size=2,
        lora_rank=2,
        device="cpu",
        profile=True,
    )


def traced(out, phase):
    """Names of the operations in a trace, and how many UNet calls it has."""
    names = Counter(e["name"] for e in json.loads((out / run_directory.TRACES[phase]).read_text())["traceEvents"])
    return names, names[f"UNet call ({phase})"]


def test_a_profile_of_a_training(config, capsys):
    training = train(config)
    for record in training.history:
        phases = {name: value for name, value in record.items() if name.startswith("seconds/")}
        assert set(phases) == {f"seconds/{phase}" for phase in profile.PHASES}
        assert all(value > 0 for value in phases.values())
        assert 0.8 * record["seconds"] < sum(phases.values()) <= record["seconds"]
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert [line.split()[0] for line in lines] == [*profile.PHASES, "other", "iteration"]
    assert lines[-1].endswith("(mean of 2, without checkpoints)")  # neither the first nor the traced one
    assert "profile" not in json.loads((config.out / run_directory.CONFIG).read_text())
    assert "no trace" not in shown.err
    assert all(str(config.out / name) in shown.err for name in run_directory.TRACES.values())


@pytest.mark.parametrize("iterations", [1, 3])
def test_a_trace_has_a_few_calls_of_sampling_and_of_the_update(config, iterations):
    config.iterations = iterations
    train(config)
    sampled, calls = traced(config.out, "sample")
    assert calls == profile.CALLS < config.steps
    assert sampled["aten::convolution"]
    assert not sampled["aten::convolution_backward"]
    updated, calls = traced(config.out, "update")
    assert calls == profile.CALLS
    assert updated["aten::convolution_backward"]


def test_a_trace_that_could_not_be_made_says_why(config, capsys):
    train(replace(config, profile=False))
    train(replace(config, resume=True))
    assert "no trace of 'sample', 'update': no iteration was watched" in capsys.readouterr().err
    sft = SFTConfig(
        **{**{f.name: getattr(config, f.name) for f in fields(TrainConfig)}, "out": config.out / "sft"},
        pool=16,
    )
    train(replace(sft, iterations=4, profile=False))
    train(replace(sft, iterations=5, resume=True))  # the pool is full, so that nothing is sampled
    shown = capsys.readouterr().err
    assert "2 UNet calls of the phase 'update'" in shown
    assert "no trace of 'sample': no watched iteration came to such a UNet call" in shown


def test_phases_wait_for_apple_gpus_too(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append(1))
    with PhaseTimer(torch.device("mps"), synchronise=True).phase("update"):
        pass
    assert len(waited) == 2
    with PhaseTimer(torch.device("mps")).phase("update"):
        pass
    assert len(waited) == 2


def test_the_table_adds_up():
    record = {"seconds": 10.0, "seconds/sample": 4.0, "seconds/update": 5.0}
    rows = dict(line.split()[:2] for line in profile.table([record]).splitlines())
    assert {name: float(value) for name, value in rows.items()} == {
        "sample": 4.0,
        "decode": 0.0,
        "reward": 0.0,
        "reference": 0.0,
        "update": 5.0,
        "other": 1.0,
        "iteration": 10.0,
    }
