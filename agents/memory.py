"""When memory runs out: what to lower, with the values it has now."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

from agents.common.memory import is_out_of_memory
from agents.config import StockConfig, TrainConfig
from agents.run_directory import RunError


def shortened(error: BaseException) -> str:
    """An error's message in one line that is not too long."""
    return textwrap.shorten(str(error) or type(error).__name__, 160, placeholder=" ...")


def training_advice(config: TrainConfig) -> str:
    """What takes memory in a training, with the options that lower it."""
    free = [f"--gradient-checkpointing (now {_on(config.gradient_checkpointing)})"]
    free += [f"--vae-slicing (now {_on(config.vae_slicing)})"]
    bound = [f"--slots (now {config.num_slots()})"]
    if isinstance(config, StockConfig):
        bound.append(f"--batch-size (now {config.minibatch() or config.transitions()})")
    else:
        free.insert(0, f"a lower --micro-batch-size (now {config.micro_batch_size})")
    return f"use {', '.join(free)} with --resume, or in a new run a lower {' and a lower '.join(bound)}"


def loading_advice(config: TrainConfig) -> str:
    """What takes memory before anything is sampled."""
    return f"use --dtype bfloat16 (now {config.dtype}) or --reward-dtype bfloat16 (now {config.reward_dtype})"


def sampling_advice(batch_size: int, *, vae_slicing: bool) -> str:
    """What takes memory where pictures are only sampled."""
    return f"use a lower --batch-size (now {batch_size}) or --vae-slicing (now {_on(vae_slicing)})"


@contextmanager
def advised(advice: str) -> Iterator[None]:
    """Within it an error for lack of memory becomes a RunError with the advice."""
    try:
        yield
    except (RuntimeError, MemoryError, ValueError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(f"out of memory: {advice} ({shortened(error)})") from error


def _on(value: bool) -> str:
    return "on" if value else "off"
