"""The benchmark of DPOK's claims, in miniature: it trains, goes on after a kill, and collects what was measured."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from agents.run_directory import HISTORY, SCORES, read_history
from benchmarks import dpok_claims
from benchmarks.dpok_claims import Plan, jobs, pictures_to_level, running_mean, share_over_seeds
from benchmarks.intervals import apart, bootstrap, of_pairs
from benchmarks.jobs import Job, run_jobs

MINIATURE = Plan(
    seeds=(0,),
    probes=("a cat and a dog",),
    iterations=1,
    pictures=4,
    many_iterations=1,
    many_pictures=4,
    evaluated=4,
    steps=2,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("dpok_claims")
    run_jobs(jobs(MINIATURE), out=out, processes=1)
    return out


def test_every_number_of_the_table_is_that_of_its_pictures(finished, tmp_path):
    claims = dpok_claims.write(MINIATURE, finished, tmp_path)
    result = json.loads((tmp_path / "dpok_claims.json").read_text())
    table = result["single_prompt"]["table"]
    assert list(table) == ["base", "sft", "rl", "rl_kl"]
    for method, measures in table.items():
        source, when = ("rl_kl", "before") if method == "base" else (method, "after")
        scores = json.loads((finished / source / "a cat and a dog" / "0" / "probe" / SCORES).read_text())[when]
        for measure, found in measures.items():
            assert found["mean"]["mean"] == pytest.approx(np.mean(scores[measure]))
            assert found["mean"]["low"] <= found["mean"]["mean"] <= found["mean"]["high"]
    assert table["base"]["kl"]["mean"]["mean"] == 0
    assert set(result["multi_prompt"]) == {"grammar", "colored"}
    for prompts, part in result["multi_prompt"].items():
        for split, measures in part["table"]["with_value"].items():
            path = finished / prompts / "with_value" / "0" / split / SCORES
            scores = json.loads(path.read_text())
            gain = np.mean(scores["after"]["reward"]) - np.mean(scores["before"]["reward"])
            assert measures["reward"]["gain"]["mean"] == pytest.approx(gain)
    assert result["seeds"] == [0]
    lines = (tmp_path / "dpok_claims.csv").read_text().splitlines()
    assert len(lines) == 1 + 4 * 5 * 2
    assert (tmp_path / "dpok_claims.png").stat().st_size > 10_000
    gain = table["rl_kl"]["reader"]["mean"]["mean"] - table["base"]["reader"]["mean"]["mean"]
    assert claims["reader_points_gained_by_rl_kl"]["mean"] == pytest.approx(100 * gain)


def test_the_same_number_of_pictures_reaches_every_method(finished):
    made = {}
    for method in ("sft", "rl", "rl_kl"):
        history = read_history(finished / method / "a cat and a dog" / "0")
        made[method] = sum("reward" in record for record in history) * MINIATURE.pictures
    assert set(made.values()) == {MINIATURE.iterations * MINIATURE.pictures}


def test_finished_jobs_are_left_alone(finished):
    files = sorted(finished.rglob(HISTORY))
    before = [path.stat().st_mtime_ns for path in files]
    run_jobs(jobs(MINIATURE), out=finished, processes=1)
    assert [path.stat().st_mtime_ns for path in files] == before


def test_jobs_of_one_name_are_refused(tmp_path):
    job = jobs(MINIATURE)[0]
    with pytest.raises(ValueError, match="different names"):
        run_jobs([job, Job(job.name, job.config)], out=tmp_path)
    with pytest.raises(ValueError, match="processes"):
        run_jobs([job], out=tmp_path, processes=0)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc")
def test_trainings_end_with_the_benchmark(tmp_path):
    config = 'DPOKConfig(prompts=("a cat",), iterations=10_000, pictures=2, steps=2, device="cpu")'
    code = (
        "from pathlib import Path\n"
        "from agents.config import DPOKConfig\n"
        "from benchmarks.jobs import Job, run_jobs\n"
        f"run_jobs([Job('endless', {config})], out=Path({str(tmp_path)!r}))"
    )

    def wait_until(done: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not done():
            assert time.monotonic() < end
            time.sleep(0.1)

    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as benchmark:
        wait_until((tmp_path / "endless" / HISTORY).is_file)
        training = int(next((tmp_path / "logs").iterdir()).stem)
        command = Path(f"/proc/{training}/cmdline")
        assert command.read_text()
        benchmark.kill()
    try:
        wait_until(lambda: not command.exists() or not command.read_text())  # gone, or not yet collected
    except AssertionError:
        os.kill(training, signal.SIGKILL)
        raise


def test_the_bootstrap_covers_a_known_mean():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(60):
        seeds, pictures = rng.normal(0, 0.3, (6, 1)), rng.normal(0, 1.0, (1, 40))
        scores = 2.0 + seeds + pictures + rng.normal(0, 0.5, (6, 40))
        found = bootstrap([scores], seed=trial)
        hits += found["low"] <= 2.0 <= found["high"]
    assert 48 <= hits <= 60
    one = bootstrap([np.zeros((2, 5)), np.full((2, 5), 3.0)], lambda a, b: float((b - a).mean()))
    assert one == {"mean": 3.0, "low": 3.0, "high": 3.0}


def test_the_same_pictures_three_times_are_no_more_than_once():
    scores = np.random.default_rng(0).normal(0, 1, (1, 64))
    once, thrice = bootstrap([scores]), bootstrap([np.repeat(scores, 3, 0)])
    width = once["high"] - once["low"]
    assert thrice["high"] - thrice["low"] == pytest.approx(width, rel=0.1)


def test_pairs_widen_by_pictures_not_by_seeds():
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 1, (1, 64))
    one, two = bootstrap([scores]), bootstrap([of_pairs(scores)])
    assert two["mean"] == pytest.approx(one["mean"])
    assert two["high"] - two["low"] == pytest.approx(2 * (one["high"] - one["low"]))
    seeds = np.repeat(rng.normal(0, 1, (3, 1)), 64, 1)
    assert bootstrap([of_pairs(seeds)]) == pytest.approx(bootstrap([seeds]))


def test_what_is_common_to_both_cancels_when_paired():
    before = np.random.default_rng(0).normal(0, 1, (3, 64))
    after = before + 0.1

    def gained(a, b):
        return float((b - a).mean())

    assert bootstrap([before, after], gained, paired=True)["low"] == pytest.approx(0.1)
    assert bootstrap([before, after], gained)["low"] < 0


def test_intervals_that_touch_are_not_apart():
    assert apart({"low": 0.0, "high": 1.0}, {"low": 1.1, "high": 2.0})
    assert not apart({"low": 0.0, "high": 1.1}, {"low": 1.1, "high": 2.0})


def test_the_level_must_be_kept_not_only_touched():
    curve = np.array([0.0, 2.0, 0.0, 1.0, 2.0])
    assert pictures_to_level(curve, 1.0, 10) == 40
    assert pictures_to_level(curve, 3.0, 10) is None
    assert pictures_to_level(curve, -1.0, 10) == 10
    assert running_mean([0.0, 2.0, 4.0], window=2).tolist() == [0.0, 1.0, 3.0]


def test_the_share_of_pictures_to_the_other_sides_end_is_drawn_over_seeds():
    slow = np.linspace(0.0, 1.0, 20)
    alike = share_over_seeds(np.array([2 * slow, 2 * slow]), np.array([slow, slow]))
    assert alike["low"] == alike["mean"] == alike["high"] == 0.6  # 2 (i - 2) first exceeds 17 at the twelfth
    uneven = share_over_seeds(np.array([3 * slow, 0 * slow]), np.array([slow, slow]))
    assert uneven["low"] < uneven["mean"] < 1
    assert uneven["high"] is None  # the second seed, drawn twice, never gets there
