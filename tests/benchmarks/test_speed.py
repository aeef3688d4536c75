"""The benchmark of speed in miniature: what its numbers must be by construction."""

import ctypes
import json
import math
import time
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch

from agents.common.lora import add_lora
from agents.training import Training
from benchmarks.speed import __main__ as command
from benchmarks.speed import candidates, learning, memory, options, overhead, report, same_work, scaling
from benchmarks.speed.parts import alternate, cpu_seconds, in_turn, kept, ratio
from benchmarks.speed.plan import QUICK, Plan
from benchmarks.speed.same_reward import compare, reached, summary
from diffusion_gym.pipelines import load_pipeline

NEEDS_GLIBC = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33 or later")


@pytest.fixture
def plan(tiny_model, tiny_pipeline):
    return replace(QUICK, model=str(tiny_model), second_reward=None, pictures=4, steps=3, repeats=1)


def test_the_bare_calls_are_those_of_the_iteration(plan):
    config = overhead.settings(plan, slots=2, micro_batch_size=3, batch_size=4)
    training = Training(config)
    unet = training.policy.actor.unet
    calls = overhead.record_calls(unet, training.iterate)
    # Two waves of two pictures, both halves of guidance in one call; then two of three steps of each picture, in
    # optimizer steps of 4 transitions and micro-batches of 3.
    found = [(len(call.arguments[0]), call.gradient) for call in calls]
    assert found == [(4, False)] * 6 + [(6, True), (2, True)] * 2
    weights = [parameter.clone() for parameter in unet.parameters()]
    again = overhead.record_calls(unet, partial(overhead.replay, unet, calls))
    assert [(len(call.arguments[0]), call.gradient) for call in again] == found
    assert [call.merged for call in again] == [call.merged for call in calls] == [True] * 6 + [False] * 4
    assert all(parameter.grad is None for parameter in unet.parameters())
    assert all(torch.equal(a, b) for a, b in zip(weights, unet.parameters(), strict=True))


def test_the_overhead_is_split_into_its_shares(plan):
    found = overhead.iteration(overhead.settings(plan), 2)
    seconds = found["seconds"]
    assert all(len(times) == 2 and min(times) >= 0 for times in seconds.values())
    assert found["over_bare"]["mean"] == pytest.approx(sum(seconds["iteration"]) / sum(seconds["bare"]))
    rest = sum(seconds["iteration"]) - sum(seconds["decode"]) - sum(seconds["reward"])
    assert found["over_bare_without_decode_and_reward"]["mean"] == pytest.approx(rest / sum(seconds["bare"]))
    assert 0 < found["share_of_decode"] < 1
    assert sum(found["unet_calls"]["sampling"]) == 2 * plan.pictures * plan.steps


def test_the_kl_term_costs_one_reference_call_a_compared_transition(plan):
    latents = {}
    for share, config in overhead.kl_settings(plan).items():
        training = Training(config)
        calls = overhead.record_calls(training.policy.actor.unet, training.iterate)
        latents[share] = [sum(len(c.arguments[0]) for c in calls if c.gradient == kind) for kind in (False, True)]
    without, trained = latents["0"]
    assert trained == 2 * plan.pictures * 2
    assert latents == {
        "0": [without, trained],
        "1": [without + trained, trained],
        "0.5": [without + trained // 2, trained],
    }
    for found in overhead.kl_cost(plan).values():
        assert found["ratio"]["mean"] == pytest.approx(found["with_kl"][0] / found["without_kl"][0])


def test_options_change_one_thing_of_the_default(plan):
    chosen = options.settings(plan)
    plain = chosen["default"].to_json()
    rows = {}
    for name, config in chosen.items():
        config.check()
        changed = {key for key, value in config.to_json().items() if plain[key] != value}
        assert changed == set(options.OPTIONS.get(name, {})), name
        training = Training(config)
        calls = overhead.record_calls(training.policy.actor.unet, training.iterate)
        rows[name] = [sum(len(c.arguments[0]) for c in calls if c.gradient == kind) for kind in (False, True)]
    # 4 pictures of 2 steps, guidance's two halves; one step of each is learned from and compared with the reference.
    assert rows == {
        "default": [16 + 8, 8],
        "merge_adapters=False": [16 + 8, 8],
        "timestep_fraction=1": [16 + 16, 16],
        "kl_fraction=0.5": [16 + 4, 8],
        "kl_reference=rollout": [16, 8],
        "unconditional_gradient=False": [16 + 8 + 4, 4],
        "guided_training=False": [8 + 4, 4],
        "guided_training=False, kl_fraction=0.25": [8 + 1, 4],
    }
    assert list(options._measure(plan)) == list(chosen)


def test_cost_a_picture_is_the_iterations_over_its_pictures(plan):
    configs = [overhead.settings(plan, pictures=pictures) for pictures in (2, 4)]
    rounds = alternate([partial(cpu_seconds, scaling.trainer(config)) for config in configs], 2)
    few, many = scaling.points((2, 4), configs, rounds)
    assert few["over_first"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert few["a_picture"] == pytest.approx(sum(rounds[0]) / 2 / 2)
    assert many["a_picture_and_step"] == pytest.approx(sum(rounds[1]) / 2 / 4 / plan.steps)
    assert many["over_first"]["mean"] == pytest.approx(many["a_picture"] / few["a_picture"])


@NEEDS_GLIBC
def test_memory_grows_against_what_the_buffer_stores(plan, tiny_pipeline):
    few, many = (memory.rise(overhead.settings(plan, pictures=pictures)) for pictures in (2, 16))
    found = memory.compare([few, few], [many, many])
    values = math.prod(tiny_pipeline.latent_shape)
    assert found["growth_of_stored_mib"] >= 14 * (plan.steps + 1) * values * 4 / memory.MIB
    assert found["growth_of_allocated_mib"] == pytest.approx(many["allocated_mib"] - few["allocated_mib"])


@NEEDS_GLIBC
def test_the_peak_of_allocated_memory_is_found_after_it_is_freed():
    before = memory.allocated()
    with memory.AllocatedPeak() as most:
        block = torch.ones(30 * memory.MIB, dtype=torch.uint8)
        time.sleep(0.1)
        del block
        time.sleep(0.01)
    assert 30 * memory.MIB <= most.bytes - before < 40 * memory.MIB
    assert memory.allocated() - before < 10 * memory.MIB


def test_processes_of_their_own_take_turns():
    assert [len(seconds) for seconds in in_turn([(partial, (list,)), (partial, (dict,))], 3)] == [3, 3]
    with pytest.raises(EOFError):
        in_turn([(partial, (int, "no number"))], 1)


def test_ratios_come_from_rounds():
    assert ratio([2.0, 4.0], [4.0, 8.0]) == {"mean": 0.5, "low": 0.5, "high": 0.5}
    found = ratio([1.0, 1.2, 1.1, 0.9], [2.0, 2.0, 2.0, 2.0])
    assert found["mean"] == pytest.approx(0.525)
    assert 0.45 < found["low"] < 0.525 < found["high"] < 0.6


def test_what_is_done_is_not_done_again(tmp_path):
    done = []
    path = tmp_path / "part.json"
    for settings in ({"pictures": 4}, {"pictures": 4}, {"pictures": 8}):
        assert kept(path, settings, lambda: done.append(1) or {"value": len(done)})["value"] == len(done)
    assert len(done) == 2


def test_both_sides_do_the_same_work():
    plan = Plan()
    for case in same_work.CASES.values():
        ours, ways = same_work.our_settings(plan, case), same_work.peer_settings(plan, case)
        assert [way.train_batch for way in ways] == [16, 8, 4]
        for way in ways:
            assert way.train_batch * way.accumulation * way.steps == ours.minibatch()
            assert (way.pictures, way.steps, way.rank) == (ours.pictures, ours.steps, ours.lora_rank)
            assert (way.adapters, way.learning_rate) == (ours.lora_targets, ours.learning_rate)
        assert (ours.timestep_fraction, ours.passes, way.fraction, way.inner_epochs) == (1.0, 1, 1.0, 1)


def curve(*rewards):
    return [{"seconds": 10.0 * i, "reward": reward} for i, reward in enumerate(rewards)]


def test_the_level_must_be_kept_or_reached():
    # Smoothed: 0, 0, 1, 2, 2, 1, 3, 4.5.
    found = reached(curve(0, 0, 0, 3, 3, 0, 0, 9), 1.5)
    assert found == {"point": 6, "seconds": pytest.approx(52.5), "first_seconds": pytest.approx(25.0)}
    assert reached(curve(2, 2, 2), 1.0) == {"point": 0, "seconds": 0.0, "first_seconds": 0.0}
    assert reached(curve(0, 2, 2, 0, 0), 1.2) == {"point": None, "seconds": None, "first_seconds": pytest.approx(6.0)}
    assert reached(curve(0, 0), 1.0) == {"point": None, "seconds": None, "first_seconds": None}


PEER = curve(0.0, 0.3, 0.6, 0.9, 1.2, 1.2, 1.2)
"""Smoothed: 0.15, 0.3, 0.6, 0.9, 1.1, 1.2, 1.2; it ends at 1.2, and is there from 50 seconds on."""


def test_time_to_the_reward_that_the_peer_ends_at():
    found = compare(curve(0.0, 0.0, 1.8, 1.8, 1.8), PEER)  # smoothed: 0, 0.6, 1.2, 1.8, 1.8
    assert (found["level"], found["our_point"], found["peer_point"]) == (pytest.approx(1.2), 2, 5)
    assert found["our_seconds"] == pytest.approx(20.0)
    assert found["peer_seconds"] == pytest.approx(50.0)
    assert found["time_ratio"] == found["first_time_ratio"] == pytest.approx(0.4)
    assert found["share_of_run"] == pytest.approx(20 / 60)
    # A peer that was higher before is given all of its time.
    assert compare(curve(0.0, 1.0), curve(0.0, 0.9, 0.9, 0.9, 0.6))["peer_seconds"] == 40.0
    never = compare(curve(0.0, 0.9, 0.7), PEER)
    assert (never["our_point"], never["time_ratio"], never["first_time_ratio"]) == (None, None, None)
    nothing = compare(curve(0.0, 0.9), curve(0.0, -0.1))
    assert (nothing["peer_learned"], nothing["time_ratio"]) == (False, None)


def test_a_pair_that_never_gets_there_counts_as_endless():
    curves = {"quick": curve(0.0, 0.0, 1.8, 1.8), "slow": curve(0, 0, 0, 0, 1.8, 1.8), "never": curve(0.0, 0.9, 0.7)}
    pairs = {name: compare(ours, PEER) | {"our_kl": 3.0, "peer_kl": 5.0} for name, ours in curves.items()}
    pairs["nothing"] = compare(curve(0.0, 0.9), curve(0.0, -0.1)) | {"our_kl": 99.0, "peer_kl": 0.0}
    found = summary(list(pairs.values()))
    assert (found["reached"], found["of"], found["peer_learned_nothing"]) == (2, 3, 1)
    assert found["median_time_ratio"] == found["median_first_time_ratio"] == pytest.approx(0.8)
    assert found["worst_time_ratio"] is None
    assert (found["our_mean_kl"], found["peer_mean_kl"]) == (3.0, 5.0)
    assert summary([pairs["never"], pairs["never"], pairs["quick"]])["median_time_ratio"] is None


def test_saved_adapters_are_judged_alike(tiny_model, tmp_path):
    unet = load_pipeline(tiny_model, device="cpu").load_unet()
    add_lora(unet, rank=2)

    def iterate():
        start = time.process_time()
        while time.process_time() < start + 0.02:
            pass
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05

    side = learning.Side({"rank": 2}, lambda: (iterate, unet), ())
    learning.measure(side, side.whole(0.1, 2), tmp_path)
    assert side.is_done(0.1, 2, tmp_path)
    assert not side.is_done(0.2, 2, tmp_path)
    assert not replace(side, settings={"rank": 4}).is_done(0.1, 2, tmp_path)
    times = learning.seconds(tmp_path)
    assert times[0] == 0
    assert 0.05 <= times[1] < times[2]
    assert times[-1] >= 0.1
    judge = {"model": str(tiny_model), "reward": "jpeg_compressibility", "prompt": "a cat", "pictures": 2}
    judge |= {"first_seed": 5, "steps": 3}
    for kl, name in ((False, "reward.json"), (True, "kl.json")):
        learning._judge([tmp_path / str(i) / name for i in range(3)], judge, kl)
    kls = learning.judged(tmp_path, range(3), judge, kl=True)
    assert kls[0] == 0 < kls[1] < kls[2]
    assert [point["seconds"] for point in learning.curve(tmp_path, judge)] == times


def test_the_best_settings_are_those_that_the_search_found():
    tried = json.loads((command.RESULTS / "speed.json").read_text())["search"]
    assert set(tried) == {*candidates.PEER, *candidates.OURS}
    for name, one in tried.items():
        settings = candidates.OURS[name] if name in candidates.OURS else asdict(candidates.PEER[name])
        assert one["settings"] == settings
    best = max(candidates.PEER, key=lambda name: tried[name]["mean"])
    assert best == candidates.BEST_PEER


def found_by_trl():
    ours = curve(0.0, 0.0, 1.8, 1.8, 1.8)
    pair = compare(ours, PEER) | {"our_kl": 3.0, "peer_kl": 5.0}
    return {
        "same_work": {"our adapters": {"ours_over_peer": ratio([9.0, 9.0], [10.0, 10.0])}},
        "same_reward": {
            "summary": summary([pair]),
            "pairs": [pair | {"curves": {"ours": ours, "peer": PEER}}],
        },
    }


def test_the_command_collects_what_is_done(tmp_path, capsys):
    settings = command.settings(QUICK)
    (tmp_path / "trl.json").write_text(json.dumps({"settings": settings["trl"], "found": found_by_trl()}))
    (tmp_path / "memory.json").write_text(json.dumps({"settings": {**settings["memory"], "pictures": 5}, "found": {}}))
    command.main(["--quick", "--only", "trl", "--out", str(tmp_path)])
    assert "left out" in capsys.readouterr().err
    lines = (tmp_path / "speed.csv").read_text().splitlines()
    assert 'trl,"same work, ours / TRL, our adapters",0.9000,0.9000,0.9000,0.9500' in lines
    assert 'trl,"same reward, ours / TRL, median",0.4000,,,0.3333' in lines
    found = json.loads((tmp_path / "speed.json").read_text())
    assert found["trl"] == found_by_trl()
    assert "memory" not in found  # of another plan
    assert (tmp_path / "speed.png").stat().st_size > 10_000


def test_every_part_has_its_lines():
    one = ratio([1.0], [1.0])
    iteration = {"reward": "r", "over_bare": one, "over_bare_without_decode_and_reward": one}
    iteration |= {"share_of_decode": 0.1, "share_of_reward": 0.0}
    point = {"value": 1, "a_picture": 0.1, "a_picture_and_step": 0.01, "over_first": one}
    memory_grown = {"allocated": 2.0, "resident": 4.0, "stored": 3.0}
    rows = report.rows(
        {
            "overhead": {"iterations": [iteration], "dpok_kl": {"1": {"ratio": one}, "0.5": {"ratio": one}}},
            "options": {"default": {"over_default": one}, "guided_training=False": {"over_default": one}},
            "trl": found_by_trl(),
            "scaling": {"pictures": [point, point]},
            "memory": {f"growth_of_{name}_mib": value for name, value in memory_grown.items()},
        }
    )
    assert [row.measure for row in rows if row.part == "options"] == ["iteration / default, guided_training=False"]
    bars = {row.measure: row.at_most for row in rows if row.at_most is not None}
    assert bars == {
        "iteration / bare UNet, r": 1.05,
        "DPOK with KL on 1 / without": 1.3,
        "DPOK with KL on 0.5 / without": 1.15,
        "same work, ours / TRL, our adapters": 0.95,
        "same reward, ours / TRL, median": 1 / 3,
        "KL there, ours, nats a picture": 5.0,
        "a picture, pictures 1 / 1": 1.05,
        "growth of the peak, allocated, MiB": 3.0,
        "growth of the peak, resident, MiB": 3.0,
    }


@pytest.mark.parametrize("arguments", [["--only", "everything"], ["--trl", "nowhere"]])
def test_a_command_that_cannot_work_is_refused(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main(["--quick", "--out", str(tmp_path), *arguments])
    assert arguments[0] in capsys.readouterr().err
