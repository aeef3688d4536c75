"""Does a run that is killed again and again end in the same weights?

    python -m benchmarks.kill_resume [--model DIR] [--kills 10] [--iterations 45]

Trains once without a kill, and once with kill -9 at random moments followed by `--resume`, and compares the final
weights bit for bit. Prints JSON; exit code 1 if they differ.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from agents.run_directory import CHECKPOINT, CONFIG, read_history


def command(out: Path, model: str, reward: str, iterations: int) -> list[str]:
    """The training command."""
    settings = {"model": model, "reward": reward, "steps": 4, "pictures": 4, "iterations": iterations, "device": "cpu"}
    flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    prompts = ["--prompts", "a green rabbit", "a cat and a dog"]
    return [sys.executable, "-m", "agents.cli", "train", "dpok", "--out", str(out), "--rollouts", "2", *flags, *prompts]


def finish(out: Path, arguments: list[str], kills: int, seed: int = 0) -> int:
    """Run to the end, killing the process `kills` times; returns the kills that hit it alive."""
    rng = random.Random(seed)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done, typical = 0, 5.0
    while True:
        resume = ["--resume"] if (out / CONFIG).is_file() else []
        start = time.monotonic()
        process = subprocess.Popen([*arguments, *resume], stderr=subprocess.DEVNULL, env=environment)
        if done == kills:
            if process.wait() != 0:
                raise RuntimeError(f"training ended with exit code {process.returncode}")
            return done
        before = len(read_history(out))
        try:
            # Some kills fall into the start, most into the training.
            process.wait(timeout=rng.uniform(0.2, 2.0) * typical)
            return done
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done += 1
        if len(read_history(out)) == before:
            typical = max(typical, 1.2 * (time.monotonic() - start))


def equal(one: Path, other: Path) -> bool:
    """Whether two runs have the same trained parameters and optimizer states, bit for bit."""
    import torch

    def flat(value: object) -> list[object]:
        if isinstance(value, dict):
            return [part for key in value for part in (key, *flat(value[key]))]
        return [part for item in value for part in flat(item)] if isinstance(value, list | tuple) else [value]

    states = [flat(torch.load(run / CHECKPOINT, weights_only=True)["algorithm"]) for run in (one, other)]
    if len(states[0]) != len(states[1]):
        return False
    pairs = zip(*states, strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def main() -> None:
    """Print the outcome."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--reward", default="jpeg_incompressibility")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=45)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        finish(whole, command(whole, given.model, given.reward, given.iterations), 0)
        kills = finish(killed, command(killed, given.model, given.reward, given.iterations), given.kills)
        same = equal(whole, killed)
    print(json.dumps({"kills": kills, "iterations": given.iterations, "equal_bit_for_bit": same}, indent=2))
    raise SystemExit(0 if same else 1)


if __name__ == "__main__":
    main()
