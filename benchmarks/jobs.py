"""The trainings of a benchmark: named, resumable, in as many processes as asked for.

A job is a training and its evaluations. What is finished is not done again; what was killed goes on where it was.
"""

import json
import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from agents.config import EvaluateConfig, TrainConfig
from agents.run_directory import CHECKPOINT, CONFIG, EVALUATION, TENSORBOARD, RunError, check, read_history

SETTINGS = "settings.json"
"""Of an evaluation, beside its results."""


@dataclass(frozen=True)
class Job:
    """One training with its evaluations.

    Attributes:
        name: its directory, e.g. "dpok/a green rabbit/0".
        config: settings; `out` and `resume` are set when it runs.
        evaluations: settings by name; each has a directory of its own in the job's.
    """

    name: str
    config: TrainConfig
    evaluations: Mapping[str, EvaluateConfig] = field(default_factory=dict)

    def is_done(self, out: Path) -> bool:
        """Whether all of it is there; the training may have gone on since it was evaluated.

        Raises:
            RunError: what is there was made with other settings.
        """
        folder = out / self.name
        if (folder / CONFIG).is_file():
            check(replace(self.config, out=folder, resume=True))
        done = len(read_history(folder)) if (folder / CHECKPOINT).is_file() else 0
        trained = done >= self.config.iterations if self.evaluations else done == self.config.iterations
        return trained and all(self.is_evaluated(key, folder / key) for key in self.evaluations)

    def is_evaluated(self, key: str, folder: Path) -> bool:
        """Whether `folder` holds this evaluation, of the finished training and with these settings."""
        files = folder / EVALUATION, folder / SETTINGS
        if not all(path.is_file() for path in files):
            return False
        result, settings = (json.loads(path.read_text()) for path in files)
        return bool(
            result["iterations"] == self.config.iterations
            and settings == json.loads(json.dumps(asdict(self.evaluations[key])))
        )


def run_jobs(jobs: Sequence[Job], *, out: Path, processes: int = 1) -> None:
    """Run what is not done yet, each in one thread of one of `processes` processes.

    Args:
        jobs: with different names.
        out: where their directories are.
        processes: at most as many as there are cores.

    Raises:
        ValueError: two jobs have the same name, or `processes` is not positive.
        Exception: what the first failing job raised; the others that had begun are finished.
    """
    if processes < 1:
        raise ValueError(f"processes must be 1 or more, got {processes}")
    if len({job.name for job in jobs}) < len(jobs):
        raise ValueError("jobs must have different names")
    left = [job for job in jobs if not job.is_done(out)]
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # before the processes import torch
    with (
        ProcessPoolExecutor(
            processes, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(out / "logs",)
        ) as pool,
        tqdm(total=len(jobs), initial=len(jobs) - len(left), desc=out.name, unit="run") as bar,
    ):
        futures = {pool.submit(run_job, job, out): job for job in left}
        for future in as_completed(futures):
            try:
                future.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
            bar.update()


def run_job(job: Job, out: Path) -> None:
    """Train and evaluate."""
    from agents.evaluation import evaluate
    from agents.run import train

    folder = out / job.name
    config = replace(job.config, out=folder, resume=(folder / CONFIG).is_file())
    print(f"--- {job.name}", flush=True)
    done = len(read_history(folder)) if (folder / CHECKPOINT).is_file() else 0
    if done > config.iterations:
        raise RunError(
            f"{folder} is trained for {done} iterations, more than the {config.iterations} asked for: use another --out"
        )
    if done < config.iterations:
        train(config)
    for key, settings in job.evaluations.items():
        evaluate(config, settings, folder=folder / key)
        (folder / key / SETTINGS).write_text(json.dumps(asdict(settings), indent=1) + "\n")
    shutil.rmtree(folder / TENSORBOARD, ignore_errors=True)


def _begin(logs: Path) -> None:
    """Prepare a process of the pool."""
    _write_into(logs)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent was killed; its training can be gone on with from the last iteration."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _write_into(folder: Path) -> None:
    """Send what this process prints into a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / f"{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file, stream.fileno())
