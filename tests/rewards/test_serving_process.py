"""Rewards served by a process of its own: the command, the file alone, and a server that is killed."""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from servers import eight_bit

from diffusion_gym.rewards import RemoteReward, RewardError, make_reward, serve


@contextmanager
def process(command, **options):
    """A server in a process of its own; yields its URL and the process."""
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
    try:
        line = server.stdout.readline()
        assert line.startswith("serving "), line
        yield line.split(" at ")[1].split()[0], server
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


@pytest.fixture
def plain(tmp_path):
    """A command that serves their_module:score by a Python that has numpy and nothing else, and where to run it."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in Path(np.__file__).parents[1].glob("numpy*"):
        (packages / path.name).symlink_to(path)
    shutil.copy(serve.__file__, tmp_path / "serve.py")
    work = tmp_path / "work"
    work.mkdir()
    (work / "their_module.py").write_text(
        "import importlib.util, os, pathlib, time\n"
        "import numpy\n"
        "assert not [m for m in ('torch', 'diffusion_gym', 'tyro') if importlib.util.find_spec(m)]\n"
        "def score(images, prompts, metadata):\n"
        "    assert type(images) is numpy.ndarray and images.dtype == numpy.float32, images\n"
        "    if 'SLOW' in os.environ:\n"
        "        pathlib.Path('asked').touch()\n"
        "        time.sleep(60)\n"
        "    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2)) + [m['bonus'] for m in metadata]\n"
    )
    command = [sys.executable, "-S", "-s", str(tmp_path / "serve.py"), "their_module:score", "--port"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return command, {"cwd": work, "env": {**environment, "PYTHONPATH": str(packages)}}


def test_the_file_alone_serves_by_a_python_that_has_only_numpy(plain):
    command, options = plain
    images, metadata = eight_bit(5), [{"bonus": i} for i in range(5)]
    with process([*command, "0"], **options) as (url, _):
        scores = RemoteReward(url)(images, ["a"] * 5, metadata)
    expected = images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2)) + torch.arange(5)
    torch.testing.assert_close(scores, expected)
    for name, says in (("their_module:nothing", "cannot be found"), ("os:sep", "must be a function")):
        failed = subprocess.run(
            [*command[:4], name, "--port", "0"], capture_output=True, text=True, check=False, **options
        )
        assert failed.returncode == 2
        assert says in failed.stderr


def test_a_killed_server_that_comes_back_is_asked_again(plain):
    command, options = plain
    asked = options["cwd"] / "asked"
    slow = {**options, "env": {**options["env"], "SLOW": "1"}}
    with ThreadPoolExecutor(1) as thread:
        with process([*command, "0"], **slow) as (url, server):
            reward = RemoteReward(url, backoff=0.2)
            pending = thread.submit(reward, eight_bit(3), ["a"] * 3, [{"bonus": 5}] * 3)
            deadline = time.monotonic() + 20
            while not asked.exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            server.kill()
        with process([*command, url.rpartition(":")[2]], **options):
            assert pending.result(timeout=20).shape == (3,)
    reward.retries, reward.backoff = 2, 0.01
    with pytest.raises(RewardError, match=f"{url} gave no rewards in 3 attempts; .*ConnectionRefusedError"):
        reward(eight_bit(3), ["a"] * 3, [{"bonus": 5}] * 3)


def test_the_command_serves_a_named_reward(capfd):
    command = [sys.executable, "-m", "agents.cli", "serve", "jpeg_incompressibility", "--port", "0", "--device", "cpu"]
    images = eight_bit(2, size=16)
    with process(command) as (url, _):
        served = make_reward(url)(images, ["a", "b"], [{}, {}]).total
        port = url.rpartition(":")[2]
        taken = subprocess.run([*command[:5], "--port", port], capture_output=True, text=True, check=False)
    assert port != "8000"  # what --port would be without
    assert torch.equal(served, make_reward("jpeg_incompressibility")(images, ["a", "b"], [{}, {}]).total)
    assert taken.returncode == 2
    assert f"cannot listen on --host 127.0.0.1 --port {port}" in taken.stderr
