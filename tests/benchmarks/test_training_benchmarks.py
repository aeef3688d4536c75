"""The benchmarks of agents by rewards and of reward hacking, in miniature."""

import json

import numpy as np
import pytest

from agents.config import AGENTS
from agents.run_directory import SCORES
from benchmarks import agents_by_rewards, reward_hacking
from benchmarks.jobs import run_jobs
from benchmarks.suite import BENCHMARKS


def test_every_agent_is_compared_on_every_reward(tmp_path):
    plan = agents_by_rewards.Plan(
        seeds=(0,), rewards=("compressibility",), iterations=1, pictures=4, evaluated=4, steps=2
    )
    configs = agents_by_rewards.agents(plan).values()
    assert {config.agent for config in configs} == set(AGENTS)
    benchmark = agents_by_rewards.BENCHMARK
    for jobs in benchmark.stages(plan):
        run_jobs(jobs, out=tmp_path, processes=1)
    summary = benchmark.write(plan, tmp_path, tmp_path)
    result = json.loads((tmp_path / "agents_by_rewards.json").read_text())
    for agent, cells in result["gain_in_deviations"].items():
        scores = json.loads((tmp_path / agent / "compressibility" / "0" / "probes" / SCORES).read_text())
        before, after = np.array(scores["before"]["reward"]), np.array(scores["after"]["reward"])
        gain = (after.mean() - before.mean()) / before.std()
        assert cells["compressibility"]["mean"] == pytest.approx(gain)
        # One seed and one reward: the interquartile mean is that gain.
        assert summary["interquartile_mean"][agent]["mean"] == pytest.approx(gain)
    assert (tmp_path / "agents_by_rewards.png").stat().st_size > 10_000
    assert (tmp_path / "agents_by_rewards-pictures.png").stat().st_size > 10_000


def test_reward_hacking_judges_each_model_on_its_way(tmp_path):
    plan = reward_hacking.Plan(seeds=(0,), kl_weights=(0.0, 0.1), stages=(1, 2), pictures=4, evaluated=4, steps=2)
    benchmark = reward_hacking.BENCHMARK
    stages = [list(jobs) for jobs in benchmark.stages(plan)]
    for jobs in stages:
        run_jobs(jobs, out=tmp_path, processes=1)
    assert all(job.is_done(tmp_path) for jobs in stages for job in jobs)  # the first stage too, though it went on
    benchmark.write(plan, tmp_path, tmp_path)
    found = json.loads((tmp_path / "reward_hacking.json").read_text())["paths"]
    for points in found.values():
        assert [p["iterations"] for p in points] == [0, 1, 2]
        assert points[0]["kl"]["mean"] == 0
        assert 0 < points[1]["kl"]["mean"] != points[2]["kl"]["mean"]
        for point in points[1:]:
            for measure, interval in point["change"].items():
                assert interval["mean"] == pytest.approx(point[measure]["mean"] - points[0][measure]["mean"])
    assert (tmp_path / "reward_hacking.png").stat().st_size > 10_000


def test_the_front_holds_what_nothing_beats_in_both():
    def point(kl, reward):
        return {"kl": {"mean": kl}, "reward": {"mean": reward}}

    points = [point(2, 1), point(0, 0), point(1, 2), point(3, 3), point(3, 2)]

    def front(**signs):
        return [(p["kl"]["mean"], p["reward"]["mean"]) for p in reward_hacking.pareto_front(points, signs)]

    assert front(reward=1, kl=-1) == [(0, 0), (1, 2), (3, 3)]
    assert front(reward=1, kl=1) == [(3, 3)]


def test_the_suite_has_every_benchmark_that_trains():
    assert {benchmark.name for benchmark in BENCHMARKS} == {"dpok_claims", "agents_by_rewards", "reward_hacking"}
    for benchmark in BENCHMARKS:
        for plan in (benchmark.full, benchmark.quick):
            names = [job.name for jobs in benchmark.stages(plan) for job in jobs]
            assert names
        quick = sum(len(list(jobs)) for jobs in benchmark.stages(benchmark.quick))
        assert quick < sum(len(list(jobs)) for jobs in benchmark.stages(benchmark.full))
