"""Where the time of an iteration goes."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

Called = TypeVar("Called", bound=Callable[..., Any])


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what is queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class PhaseTimer:
    """Seconds in named phases, each without those of the phases within it.

    Only the thread that made it is timed: what another one does at the same time takes none of its time.

    Args:
        device: where work is queued. With `synchronise` every phase waits for it to be done, at its beginning and end;
            otherwise work that a GPU does later counts where the host next waits for it.
        synchronise: for a profile; it slows a run down.
    """

    def __init__(self, device: torch.device, *, synchronise: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self._synchronise = synchronise
        self._device = device
        self._thread = threading.get_ident()
        self._stack: list[str] = []
        self._since = 0.0

    @property
    def current(self) -> str | None:
        """The innermost phase; None outside of all."""
        return self._stack[-1] if self._stack else None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is done within it."""
        if threading.get_ident() != self._thread:
            yield
            return
        self._switch()
        self._stack.append(name)
        try:
            yield
        finally:
            self._switch()
            self._stack.pop()

    def around(self, name: str, call: Called) -> Called:
        """The function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return call(*args, **kwargs)

        timed.__name__ = getattr(call, "__name__", type(call).__name__)
        return timed  # type: ignore[return-value]

    def take(self) -> dict[str, float]:
        """The seconds so far, and begin anew."""
        taken, self.seconds = self.seconds, {}
        return taken

    def _switch(self) -> None:
        """Give the time since the last change to the innermost phase."""
        if self._synchronise:
            wait_for(self._device)
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] = self.seconds.get(self._stack[-1], 0.0) + now - self._since
        self._since = now
