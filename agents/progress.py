"""What a person sees while a run trains: a line that lives, and TensorBoard."""

import sys
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from agents.common.venv import Episodes

PICTURES_SHOWN = 8


class ProgressLine:
    """One line, rewritten on a terminal, one a time elsewhere.

    Args:
        total: iterations of the run.
        stream: where to write; by default stderr.
    """

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self.total = total
        self.stream = sys.stderr if stream is None else stream
        self._live = self.stream.isatty()
        self._seconds: list[float] = []

    def show(self, record: dict[str, Any]) -> None:
        """Show an iteration's record."""
        self._seconds.append(record["seconds"])
        text = format_record(record, self.total, self._seconds)
        self.stream.write(f"\r\x1b[2K{text}" if self._live else text + "\n")
        self.stream.flush()

    def close(self) -> None:
        """End the line."""
        if self._live and self._seconds:
            self.stream.write("\n")


def format_record(record: dict[str, Any], total: int, seconds: list[float]) -> str:
    """Iteration, reward, KL, clip fraction, ratio at the first update, pictures a second, time left."""
    parts = [f"{record['iteration']}/{total}"]
    if "reward" in record:
        parts.append(f"reward {record['reward']:+.3f} ±{record['reward_std']:.3f}")
    if "kl" in record:
        parts.append(f"kl {record['kl']:.2f} nats")
    if "kl_to_rollout" in record:
        parts.append(f"kl to rollout {record['kl_to_rollout']:.2g} nats")
    if "clip_fraction" in record:
        parts.append(f"clipped {record['clip_fraction']:.0%}")
    if "ratio_deviation" in record:
        parts.append(f"ratio at first 1±{record['ratio_deviation']:.0e}")
    if "ratio_deviation" not in record:
        parts.append(f"loss {record['loss']:.4f}")
    parts.append(f"{record['pictures_per_second']:.1f} pictures/s")
    recent = seconds[-10:]
    left = (total - record["iteration"]) * sum(recent) / len(recent)
    parts.append(f"{int(left // 60)}:{int(left % 60):02d} left")
    return " · ".join(parts)


class Board:
    """TensorBoard: every number of a record, and sample pictures.

    Args:
        directory: for its event files.
        iteration: where the run begins; later entries of a killed run are dropped.
    """

    def __init__(self, directory: Path, iteration: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(directory), purge_step=iteration + 1)

    def show(self, record: dict[str, Any], episodes: list[Episodes]) -> None:
        """Log an iteration."""
        step = record["iteration"]
        for name, value in record.items():
            if name != "iteration":
                self._writer.add_scalar(f"train/{name}", value, step)
        if episodes:
            pictures = np.concatenate([e.images for e in episodes])[:PICTURES_SHOWN]
            self._writer.add_images("train/pictures", pictures, step, dataformats="NHWC")
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()
