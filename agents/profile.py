"""Where the time of a training goes: `--profile`."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from agents.common.timer import PhaseTimer, wait_for
from agents.run_directory import TRACES

CALLS = 2
"""UNet calls in a trace. One of Stable Diffusion is thousands of operations, and a whole iteration gigabytes."""
PHASES = ("sample", "decode", "reward", "reference", "update")


class Tracer:
    """Traces of torch's operations in the first UNet calls of sampling and of an update, a file each.

    Args:
        denoiser: the policy's, whose calls are counted.
        timer: knows the phase.
        out: directory of the files.

    Attributes:
        written: the files, by phase.
        iterations: which were watched.
    """

    def __init__(self, denoiser: Any, timer: PhaseTimer, out: Path) -> None:
        self.written: dict[str, Path] = {}
        self.iterations: set[int] = set()
        self._denoiser, self._timer, self._out = denoiser, timer, out
        self._device = next(denoiser.parameters()).device
        self._activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            self._activities.append(ProfilerActivity.CUDA)
        self._runs: dict[str, profile] = {}
        self._running: str | None = None
        self._calls = 0
        self._inside = False
        with profile(activities=self._activities):
            pass  # the first start takes seconds, which belong to no iteration

    @property
    def done(self) -> bool:
        """Whether there is a trace of everything."""
        return len(self.written) == len(TRACES)

    @contextmanager
    def watching(self, iteration: int) -> Iterator[None]:
        """Within it, an iteration, what is not traced yet is traced; the files are written at its end."""
        self.iterations.add(iteration)
        names = [name for name in ("forward", "conditional") if hasattr(self._denoiser, name)]
        for name in names:
            # On the instance, around torch.compile, which would take hooks of the UNet into its graph.
            setattr(self._denoiser, name, self._watched(getattr(self._denoiser, name)))
        try:
            yield
        finally:
            for name in names:
                delattr(self._denoiser, name)
            self._stop()
            for phase, run in self._runs.items():
                self.written[phase] = self._out / TRACES[phase]
                run.export_chrome_trace(str(self.written[phase]))
            self._runs.clear()

    def summary(self) -> str:
        """Where the traces are, or why there are none."""
        parts = [f"{CALLS} UNet calls of the phase {phase!r} in {path}" for phase, path in self.written.items()]
        found = [f"traces of {', '.join(parts)} (for ui.perfetto.dev or chrome://tracing)"] if parts else []
        missing = ", ".join(repr(phase) for phase in TRACES if phase not in self.written)
        if missing:
            why = "no watched iteration came to such a UNet call" if self.iterations else "no iteration was watched"
            found.append(f"no trace of {missing}: {why}")
        return "; ".join(found)

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A call of the UNet, counted."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            phase = self._timer.current
            if phase != "sample" and self._running == "sample":
                self._stop()
            # An update's calls without gradient are the reference's.
            if self._inside or phase not in TRACES or torch.is_grad_enabled() != (phase == "update"):
                return call(*args, **kwargs)
            self._before(phase)
            self._inside = True
            try:
                with record_function(f"UNet call ({phase})"):
                    return call(*args, **kwargs)
            finally:
                self._inside = False
                if phase == "sample" and self._calls == CALLS:
                    self._stop()

        return watched

    def _before(self, phase: str) -> None:
        """Start or end a trace before a call: one of an update lasts until the next call, and has the backward pass."""
        if self._running is not None and self._calls == CALLS:
            self._stop()
        if self._running is None and phase not in self.written and phase not in self._runs:
            run = profile(activities=self._activities)
            run.start()
            self._runs[phase], self._running, self._calls = run, phase, 0
        if self._running is not None:
            self._calls += 1

    def _stop(self) -> None:
        if self._running is not None:
            wait_for(self._device)
            self._runs[self._running].stop()
            self._running = None


def undisturbed(history: Sequence[dict[str, Any]], watched: Collection[int]) -> list[dict[str, Any]]:
    """The records of iterations that were not slowed down by a trace, if there are any beside the first."""
    others = [record for record in history if record["iteration"] not in watched]
    return others if len(others) > 1 else list(history)


def table(history: Sequence[dict[str, Any]]) -> str:
    """Seconds of an iteration by phase, averaged over records; the first counts only if it is alone."""
    records = list(history[1:] or history)
    total = sum(record["seconds"] for record in records) / len(records)
    means = {phase: sum(record.get(f"seconds/{phase}", 0.0) for record in records) / len(records) for phase in PHASES}
    means["other"] = total - sum(means.values())
    lines = [f"{phase:12}{seconds:10.3f} s {100 * seconds / total:6.1f}%" for phase, seconds in means.items()]
    return "\n".join([*lines, f"{'iteration':12}{total:10.3f} s  (mean of {len(records)}, without checkpoints)"])
