"""Rewards while the next pictures are sampled, and what is left of a run whose reward fails for good."""

import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from agents import cli, run_directory
from agents.config import DDPOConfig, DPOKConfig, PPOConfig, SFTConfig
from agents.run import train
from agents.run_directory import RunError
from agents.training import Training
from diffusion_gym.rewards import RewardError, serve

CLOCKED = ("seconds", "pictures_per_second")
"""What the names of measured times begin with."""


def curves(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without what a clock measured."""
    return [{name: value for name, value in record.items() if not name.startswith(CLOCKED)} for record in history]


def assert_equal_runs(one: Path, other: Path) -> None:
    """Parameters, optimizers, buffers, curves: bit for bit."""
    states = [torch.load(out / run_directory.CHECKPOINT, weights_only=True) for out in (one, other)]
    for state in states:
        state["history"] = curves(state["history"])
    # Reference outputs that no update asked for are uninitialised memory.
    flat = [{n: v for n, v in leaves(state) if not n.endswith("/reference/output")} for state in states]
    assert flat[0].keys() == flat[1].keys()
    for name, value in flat[0].items():
        same = torch.equal(value, flat[1][name]) if isinstance(value, torch.Tensor) else value == flat[1][name]
        assert same, name
    records = [curves(run_directory.read_history(out)) for out in (one, other)]
    assert records[0] == records[1]


def leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in nested dicts and lists, by its path."""
    if isinstance(tree, dict | list | tuple):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, f"{name}/{key}")
    else:
        yield name, tree


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The reward `flaky:redness`, which fails in the call `flaky.fail_in`."""
    module: Any = ModuleType("flaky")
    module.calls, module.fail_in = 0, None

    def redness(images: torch.Tensor, prompts: Any, metadata: Any) -> torch.Tensor:
        module.calls += 1
        if module.calls == module.fail_in:
            raise OSError("the judge\nhas left")
        return images[:, 0].mean((1, 2)) - images[:, 1].mean((1, 2))

    module.redness = redness
    monkeypatch.setitem(sys.modules, "flaky", module)
    return module


@pytest.mark.parametrize(
    ("agent", "extra"),
    [
        (DDPOConfig, {}),
        (DPOKConfig, {"rollouts": 2, "value_function": True}),
        (SFTConfig, {"pool": 8}),
        (PPOConfig, {}),
    ],
)
def test_results_equal_those_of_waiting_for_each_reward(
    settings: dict[str, Any], tmp_path: Path, agent: Any, extra: dict[str, Any]
) -> None:
    settings |= {"slots": 1, "iterations": 3, "reward": "jpeg_incompressibility=1,jpeg_compressibility=0.5"}
    waiting = agent(**{**settings, **extra, "out": tmp_path / "waiting"})
    train(waiting)
    train(dataclasses.replace(waiting, out=tmp_path / "ahead", async_rewards=True))
    assert_equal_runs(waiting.out, tmp_path / "ahead")
    assert run_directory.read_history(waiting.out)[0]["reward/jpeg_compressibility"] < 0


def test_the_next_wave_is_sampled_while_the_last_is_judged(settings: dict[str, Any], flaky: Any) -> None:
    """The reward of each wave but the last waits until the next has begun: it would wait for ever if that did too."""
    training = Training(
        DDPOConfig(**{**settings, "pictures": 6, "slots": 2, "reward": "flaky:redness", "async_rewards": True})
    )
    begun = [threading.Event() for _ in range(4)]
    begun[3].set()
    resets, judged = iter(begun), iter(begun[1:])
    judge, reset = flaky.redness, training.collector.reset

    def patient(*arguments: Any) -> Any:
        assert next(judged).wait(60)
        return judge(*arguments)

    def telling(*args: Any, **kwargs: Any) -> Any:
        next(resets).set()
        return reset(*args, **kwargs)

    object.__setattr__(training.env.reward.terms[0], "reward", patient)
    training.collector.reset = telling  # type: ignore[method-assign]
    record = training.iterate()
    assert [len(episodes.rewards) for episodes in training.episodes] == [2, 2, 2]
    assert record["reward"] == pytest.approx(np.mean([episodes.rewards for episodes in training.episodes]))
    assert record["reward"] == pytest.approx(record["reward/flaky:redness"])
    training.close()


def test_pictures_need_more_than_one_wave(settings: dict[str, Any]) -> None:
    for slots in (None, 4):
        with pytest.raises(ValueError, match=f"--async-rewards needs --slots smaller than --pictures 4, got {slots}"):
            DDPOConfig(**{**settings, "slots": slots, "async_rewards": True}).check()


@pytest.mark.parametrize(
    ("agent", "extra", "ahead"),
    [
        (DDPOConfig, {}, False),
        (DPOKConfig, {"rollouts": 2, "value_function": True}, False),
        (DPOKConfig, {"rollouts": 2}, True),
        (SFTConfig, {"pool": 8}, True),
        (PPOConfig, {}, True),
    ],
)
def test_a_reward_that_fails_for_good_loses_nothing(
    settings: dict[str, Any], tmp_path: Path, flaky: Any, agent: Any, extra: dict[str, Any], ahead: bool
) -> None:
    settings |= {"slots": 2, "iterations": 4, "reward": "flaky:redness", "checkpoint_every": 10}
    fails_in = 2 if agent is SFTConfig else 3  # the reward's calls: one to try it, then two an iteration
    train(agent(**{**settings, **extra, "out": tmp_path / "whole"}))
    stopped = agent(**{**settings, **extra, "out": tmp_path / "stopped", "async_rewards": ahead})
    flaky.calls, flaky.fail_in = 0, 1 + 2 * fails_in
    with pytest.raises(RunError) as error:
        train(stopped)
    assert str(error.value).startswith(f"stopped in iteration {fails_in}: ")
    assert all(part in str(error.value) for part in ("reward 'flaky:redness' raised", "judge has left", "--resume"))
    assert "\n" not in str(error.value)
    assert len(run_directory.read_history(stopped.out)) == fails_in - 1
    torch.manual_seed(999)  # whatever happened in between
    train(dataclasses.replace(stopped, resume=True))
    assert_equal_runs(tmp_path / "whole", stopped.out)


def test_a_reward_may_fail_in_the_first_iteration(settings: dict[str, Any], tmp_path: Path, flaky: Any) -> None:
    config = DDPOConfig(**{**settings, "reward": "flaky:redness"})
    train(dataclasses.replace(config, out=tmp_path / "whole"))
    flaky.calls, flaky.fail_in = 0, 2
    with pytest.raises(RunError, match="stopped in iteration 1"):
        train(config)
    train(dataclasses.replace(config, resume=True))
    assert_equal_runs(tmp_path / "whole", config.out)


def test_an_iteration_can_be_tried_again(settings: dict[str, Any], flaky: Any) -> None:
    config = DPOKConfig(**{**settings, "reward": "flaky:redness", "slots": 1, "rollouts": 2})
    whole = Training(config)
    expected = [whole.iterate() for _ in range(3)]
    training = Training(dataclasses.replace(config, async_rewards=True))
    flaky.calls, flaky.fail_in = 1, 1 + 4 + 2
    found = [training.iterate()]
    with pytest.raises(RewardError):
        training.iterate()
    assert training.iteration == 1
    assert training.episodes == []
    found += [training.iterate(), training.iterate()]
    assert curves(found) == curves(expected)
    np.testing.assert_array_equal(training.buffer[:].rew, whole.buffer[:].rew)
    np.testing.assert_array_equal(training.buffer[:].obs.latent, whole.buffer[:].obs.latent)


def test_rewards_go_to_last_transitions_only(settings: dict[str, Any]) -> None:
    buffer = Training(DDPOConfig(**settings)).buffer
    with pytest.raises(ValueError, match=r"index must be of transitions of step 2, got \[2, 4\]"):
        buffer.set_rewards(np.array([2, 4]), np.zeros(2))


@contextmanager
def served(work: Path, port: str, *, dies_in: int) -> Iterator[str]:
    """A server whose process dies in its reward's call number `dies_in`; yields its URL."""
    (work / "mortal.py").write_text(
        "import os\n"
        "calls = 0\n"
        "def redness(images, prompts, metadata):\n"
        "    global calls\n"
        "    calls += 1\n"
        f"    if calls == {dies_in}:\n"
        "        os._exit(1)\n"
        "    return images[:, 0].mean((1, 2)) - images[:, 1].mean((1, 2))\n"
    )
    command = [sys.executable, str(serve.__file__), "mortal:redness", "--port", port]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(command, cwd=work, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split(" at ")[1].split()[0]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_server_that_is_gone_ends_the_command_with_one_line(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "stopped"
    with served(tmp_path, "0", dies_in=6) as url:
        command = ["train", "ddpo", "--out", str(out), "--model", settings["model"], "--reward", url]
        command += ["--reward-sources", f"{url}.retries=1", f"{url}.backoff=0.01", "--prompts", "a cat", "a dog"]
        command += ["--steps", "3", "--pictures", "4", "--slots", "2", "--iterations", "3", "--lora-rank", "2"]
        command += ["--device", "cpu", "--async-rewards", "--checkpoint-every", "5"]
        with pytest.raises(SystemExit) as stopped:
            cli.main(command)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"diffusion-gym: stopped in iteration 3: batch 5 of 2 pictures: reward '{url}'")
    assert f"{url} gave no rewards in 2 attempts; the last one: " in last
    assert "--resume" in last
    with pytest.raises(SystemExit):
        cli.main([*command, "--resume"])
    assert f"no reward server answers at {url}" in capsys.readouterr().err
    with served(tmp_path, url.rpartition(":")[2], dies_in=0):
        cli.main([*command, "--resume"])
    assert [record["iteration"] for record in run_directory.read_history(out)] == [1, 2, 3]
