"""Where the time of a training goes: `--profile`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agents.run_directory import TRACE

TRACED = 2
"""Which iteration of the process is traced: the first one warms up."""
PHASES = ("sample", "decode", "reward", "reference", "update")


def traced(iterate: Callable[[], dict[str, Any]], out: Path) -> dict[str, Any]:
    """An iteration's record, with a trace of torch's operations written to `trace.json` in `out`."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with profile(activities=activities) as run:
        record = iterate()
    run.export_chrome_trace(str(out / TRACE))
    return record


def table(history: Sequence[dict[str, Any]]) -> str:
    """Seconds of an iteration by phase, averaged over records; the first counts only if it is alone."""
    records = list(history[1:] or history)
    total = sum(record["seconds"] for record in records) / len(records)
    means = {phase: sum(record.get(f"seconds/{phase}", 0.0) for record in records) / len(records) for phase in PHASES}
    means["other"] = total - sum(means.values())
    lines = [f"{phase:12}{seconds:10.3f} s {100 * seconds / total:6.1f}%" for phase, seconds in means.items()]
    return "\n".join([*lines, f"{'iteration':12}{total:10.3f} s  (mean of {len(records)}, without checkpoints)"])
