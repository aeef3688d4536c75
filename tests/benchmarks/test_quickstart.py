"""The checks of the quickstart's summaries, and that the recorded ones pass."""

import copy
import json
from pathlib import Path

import pytest

from benchmarks.quickstart import verdicts

RESULT = Path(__file__).parents[2] / "benchmarks" / "quickstart.json"


def recorded():
    return json.loads(RESULT.read_text())["seeds"]


def test_three_recorded_seeds_keep_what_is_promised():
    assert len(recorded()) == 3
    for summary in recorded().values():
        assert all(verdicts(summary).values())
        assert summary["kept"] == verdicts(summary)


@pytest.mark.parametrize("broken", ["reward_up", "reader_up", "quality_kept", "in_time"])
def test_a_broken_promise_is_seen(broken):
    summary = copy.deepcopy(recorded()["0"])
    if broken == "reward_up":
        summary["reward_after"]["low"] = summary["reward_before"]["high"]
    elif broken == "reader_up":
        summary["reader_after"]["mean"] = summary["reader_before"]["mean"] + 0.14
    elif broken == "quality_kept":
        summary["quality_after"]["mean"] = 0.94 * summary["quality_before"]["mean"]
    else:
        summary["seconds"] = 361
    assert [name for name, kept in verdicts(summary).items() if not kept] == [broken]
