"""The benchmark of the environment's cost runs, its recorded result keeps to the bars, and imports stay light."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks import env_overhead

ROOT = Path(__file__).parents[2]


def test_it_runs(tiny_model):
    episode = env_overhead.measure_episode(str(tiny_model), num_envs=2, steps=3, repeats=1)
    assert 0 < episode["ratio"] < 100
    assert env_overhead.measure_sd15_step(str(tiny_model), repeats=1)["with_embedding_ms"] > 0


def test_the_recorded_result_keeps_to_the_bars():
    result = json.loads(env_overhead.RESULT.read_text())
    assert result["command"].startswith("python -m benchmarks.env_overhead")
    assert (result["model"], result["num_envs"], result["steps"]) == ("emoji", 64, 20)
    assert result["episode"]["ratio"] <= 1.03
    assert result["sd15_step"]["with_embedding_ms"] <= 3.0
    assert result["start"]["import_s"] <= 0.3
    assert result["start"]["make_beyond_libraries_s"] <= 3.0


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, diffusion_gym\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'tianshou', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
