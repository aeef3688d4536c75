"""How far an iteration raises a process's peak memory, by the number of pictures.

Two peaks are measured. Allocated memory is what the program holds. Resident memory is what the process has of the
machine; it includes freed blocks that the C library keeps to use again, and differs from run to run with their order.
"""

import ctypes
import threading
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np

from agents.config import PolicyGradientConfig
from benchmarks.speed.overhead import settings
from benchmarks.speed.parts import alone
from benchmarks.speed.plan import Plan

MIB = 2**20
ITERATIONS = 2
RUNS = 3
SECONDS_BETWEEN = 0.002
_FIELDS = ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]
"""Of glibc's struct mallinfo2; `uordblks` is in use on the heap, `hblkhd` by blocks with pages of their own."""


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


def allocated() -> int:
    """Bytes that the process has allocated and not freed.

    Raises:
        OSError: the C library does not say; glibc 2.33 and later do.
    """
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (AttributeError, TypeError) as error:
        raise OSError("allocated memory is known with glibc 2.33 or later only") from error
    mallinfo2.restype = _Mallinfo
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


class AllocatedPeak:
    """Watches allocated memory while its block runs.

    Attributes:
        bytes: the most that was allocated at a time.
    """

    def __init__(self) -> None:
        self.bytes = allocated()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(SECONDS_BETWEEN):
            self.bytes = max(self.bytes, allocated())


def rise(config: PolicyGradientConfig) -> dict[str, Any]:
    """Peaks of memory in two iterations minus memory before the first, and what the buffer stores, in MiB.

    Call it in a process of its own that a small one started: a process inherits its parent's peak of resident memory.
    """
    from agents.training import Training
    from benchmarks.buffer_memory import peak

    training = Training(config)
    before = peak(), allocated()
    with AllocatedPeak() as most:
        for _ in range(ITERATIONS):
            training.iterate()
    return {
        "pictures": config.pictures,
        "resident_mib": (peak() - before[0]) / MIB,
        "allocated_mib": (most.bytes - before[1]) / MIB,
        "stored_mib": training.buffer.nbytes() / MIB,
    }


def measure(plan: Plan) -> dict[str, Any]:
    """The rise for the least and the most pictures, several times in turn.

    An optimizer step takes two full micro-batches either way, so that its calls of the UNet are of one size.
    """
    numbers = plan.many_pictures[0], plan.many_pictures[-1]
    configs = [settings(plan, pictures=pictures) for pictures in numbers]
    configs = [replace(config, batch_size=2 * config.micro_batch_size) for config in configs]
    few, many = zip(*[[alone(rise, config) for config in configs] for _ in range(RUNS)], strict=True)
    return compare(list(few), list(many))


def compare(few: list[dict[str, Any]], many: list[dict[str, Any]]) -> dict[str, Any]:
    """How much further the peaks rise with many pictures, and how much more is stored: means of the runs."""
    growth = {
        f"growth_of_{name}_mib": float(np.mean([run[f"{name}_mib"] for run in many]))
        - float(np.mean([run[f"{name}_mib"] for run in few]))
        for name in ("allocated", "resident", "stored")
    }
    return {"few": few, "many": many, **growth}
