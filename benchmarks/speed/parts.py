"""What the parts of the benchmark share: processes of their own, ratios with intervals, results that are kept."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.intervals import Floats, Interval, bootstrap

Maker = Callable[..., Callable[[], object]]
"""Called once in a process of its own; returns what makes an iteration."""

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def known_of(path: Path, settings: dict[str, Any]) -> Any:
    """What `kept` wrote under these settings; None if it is not there, or of others."""
    if not path.is_file():
        return None
    known = json.loads(path.read_text())
    return known["found"] if known["settings"] == json.loads(json.dumps(settings)) else None


def kept(path: Path, settings: dict[str, Any], measure: Callable[[], Any]) -> Any:
    """What `measure` found under these settings: read from `path` if it is there, else measured and written."""
    known = known_of(path, settings)
    if known is not None:
        return known
    found = json.loads(json.dumps(measure()))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"settings": settings, "found": found}, indent=1) + "\n")
    partial.replace(path)
    return found


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own, in one thread."""
    os.environ |= ONE_THREAD  # before that process imports torch
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


class Stepper:
    """A process of its own that makes one iteration whenever it is asked to.

    Args:
        make: called there with `arguments`.
        arguments: of `make`.
    """

    def __init__(self, make: Maker, *arguments: Any) -> None:
        os.environ |= ONE_THREAD
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments))
        self._process.start()
        theirs.close()

    def step(self) -> float:
        """CPU seconds of one iteration.

        Raises:
            EOFError: the process has failed; it says why on stderr.
        """
        self._connection.send(None)
        return float(self._connection.recv())

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()


def _serve(connection: Connection, make: Maker, arguments: tuple[Any, ...]) -> None:
    iterate = make(*arguments)
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        connection.send(cpu_seconds(iterate))


def alternate(steps: Sequence[Callable[[], float]], repeats: int) -> list[list[float]]:
    """Seconds of each step in alternating rounds, `repeats` of each, after one round that does not count."""
    rounds = [[step() for step in steps] for _ in range(repeats + 1)]
    return [list(seconds) for seconds in zip(*rounds[1:], strict=True)]


def in_turn(makers: Sequence[tuple[Maker, tuple[Any, ...]]], repeats: int) -> list[list[float]]:
    """CPU seconds of alternating iterations, as `alternate`, each training in a process of its own.

    Args:
        makers: for each what makes an iteration, see `Stepper`, and its arguments.
        repeats: rounds that count.
    """
    steppers = [Stepper(make, *arguments) for make, arguments in makers]
    try:
        return alternate([stepper.step for stepper in steppers], repeats)
    finally:
        for stepper in steppers:
            stepper.close()


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Sum of ours over sum of theirs, with its 95% interval from a bootstrap over rounds."""

    def quotient(a: Floats, b: Floats) -> float:
        return float(a.sum() / b.sum())

    return bootstrap([np.array([ours]), np.array([theirs])], quotient, paired=True)
