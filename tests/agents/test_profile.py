"""Where the time of an iteration goes."""

import json
import threading
import time

import pytest
import torch

from agents import profile, run_directory
from agents.common.timer import PhaseTimer
from agents.config import DPOKConfig
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


def test_a_profile_of_a_training(tiny_model, tmp_path, capsys):
    config = DPOKConfig(
        out=tmp_path / "run",
        model=str(tiny_model),
        reward="jpeg_compressibility",
        prompts=("a cat",),
        steps=3,
        iterations=4,
        pictures=4,
        lora_rank=2,
        device="cpu",
        profile=True,
    )
    training = train(config)
    for record in training.history:
        phases = {name: value for name, value in record.items() if name.startswith("seconds/")}
        assert set(phases) == {f"seconds/{phase}" for phase in profile.PHASES}
        assert all(value > 0 for value in phases.values())
        assert 0.8 * record["seconds"] < sum(phases.values()) <= record["seconds"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*profile.PHASES, "other", "iteration"]
    assert lines[-1].endswith("(mean of 2, without checkpoints)")  # neither the first nor the traced one
    trace = json.loads((tmp_path / "run" / run_directory.TRACE).read_text())
    assert any("convolution" in event["name"] for event in trace["traceEvents"])
    assert "profile" not in json.loads((tmp_path / "run" / run_directory.CONFIG).read_text())


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
