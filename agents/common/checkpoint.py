"""Checkpoints: a file that is whole or not there, from which a run goes on to the same numbers."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tianshou.algorithm import A2C, Reinforce
from tianshou.algorithm.algorithm_base import OnPolicyAlgorithm
from tianshou.utils import RunningMeanStd

from agents.common.algorithm import DenoisingAlgorithm


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` on a file beside `path`, then put it in the place of `path`.

    Raises:
        OSError: it could not be written, e.g. the disk is full; what was at `path` is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write {path}: {error.strerror or error}; what was there is kept") from error
    except RuntimeError as error:  # torch.save reports a full disk so
        partial.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {error}; what was there is kept") from error


def require_space(directory: Path, size: int) -> None:
    """Raise OSError unless `size` bytes are free where `directory` is or will be."""
    existing = next(path for path in (directory, *directory.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < size:
        raise OSError(
            f"the disk of {directory} has {free / 2**20:.0f} MiB free and the run needs about {size / 2**20:.0f} MiB: "
            "free some, or choose another --out"
        )


def random_state() -> dict[str, Any]:
    """States of all random streams: Python's, numpy's, torch's, and those of the CUDA or MPS devices."""
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Take up what `random_state` gave."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    if state.get("mps") is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


def seed_everything(seed: int) -> None:
    """Start all random streams from `seed`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


def algorithm_state(algorithm: OnPolicyAlgorithm[Any], *, transitions: bool) -> dict[str, Any]:
    """Trained parameters, optimizers, learning-rate schedules, and what else the algorithm remembers.

    Args:
        algorithm: the algorithm.
        transitions: whether the buffer's transitions are saved too.
    """
    return {
        "parameters": {n: p.detach() for n, p in algorithm.named_parameters() if p.requires_grad},
        "optimizers": [optimizer.state_dict() for optimizer in algorithm._optimizers],
        "lr_schedulers": [scheduler.state_dict() for scheduler in algorithm.lr_schedulers],
        "loss_scaler": None if _loss_scaler(algorithm) is None else _loss_scaler(algorithm).state_dict(),
        "extra": _extra_state(algorithm, transitions),
    }


def load_algorithm_state(algorithm: OnPolicyAlgorithm[Any], state: dict[str, Any]) -> None:
    """Take up what `algorithm_state` gave.

    Raises:
        ValueError: it is of another algorithm, model or set of adapters.
    """
    parameters = {n: p for n, p in algorithm.named_parameters() if p.requires_grad}
    saved = state["parameters"]
    if parameters.keys() != saved.keys():
        odd = sorted(parameters.keys() ^ saved.keys())[:3]
        raise ValueError(f"the checkpoint is of another agent or model: they differ in {odd} and perhaps more")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])
    for optimizer, saved_optimizer in zip(algorithm._optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved_optimizer)
    for scheduler, saved_scheduler in zip(algorithm.lr_schedulers, state["lr_schedulers"], strict=True):
        scheduler.load_state_dict(saved_scheduler)
    scaler = _loss_scaler(algorithm)
    if scaler is not None and state.get("loss_scaler"):
        scaler.load_state_dict(state["loss_scaler"])
    _load_extra_state(algorithm, state["extra"])


def _loss_scaler(algorithm: OnPolicyAlgorithm[Any]) -> Any:
    return getattr(algorithm, "scaler", None)


def _extra_state(algorithm: OnPolicyAlgorithm[Any], transitions: bool) -> dict[str, Any]:
    if isinstance(algorithm, DenoisingAlgorithm):
        return algorithm.extra_state(transitions=transitions)
    statistics = _return_statistics(algorithm)
    return {"mean": float(statistics.mean), "var": float(statistics.var), "count": int(statistics.count)}


def _load_extra_state(algorithm: OnPolicyAlgorithm[Any], state: dict[str, Any]) -> None:
    if isinstance(algorithm, DenoisingAlgorithm):
        algorithm.load_extra_state(state)
        return
    statistics = _return_statistics(algorithm)
    statistics.mean, statistics.var, statistics.count = state["mean"], state["var"], state["count"]


def _return_statistics(algorithm: OnPolicyAlgorithm[Any]) -> RunningMeanStd:
    """What Tianshou's own algorithms remember of the returns."""
    if isinstance(algorithm, Reinforce):
        return algorithm.discounted_return_computation.ret_rms
    if isinstance(algorithm, A2C):  # PPO is one
        return algorithm.ret_rms
    raise TypeError(f"checkpoints of {type(algorithm).__name__} are not supported: derive it from DenoisingAlgorithm")
