"""A run from its first iteration, or its last checkpoint, to its end."""

import sys
import time
from contextlib import nullcontext
from typing import Any

from agents import run_directory
from agents.config import TrainConfig
from agents.run_directory import RunError


def train(config: TrainConfig) -> Any:
    """Train to the end of `config.iterations`; returns the `Training`.

    Raises:
        ValueError, RunError, OSError: before any work, if the run cannot begin; OSError also when the disk fills up;
            RunError also when the reward fails for good, with every finished iteration saved, or when memory runs out.
        KeyboardInterrupt: Ctrl-C.

    Ctrl-C and lack of memory in the middle of an update lose the iterations since the last checkpoint; at any other
    time every finished iteration is saved.
    """
    config.check()
    run_directory.check(config)
    say("loading the model")
    from agents.common.memory import is_out_of_memory
    from agents.memory import advised, loading_advice, shortened, training_advice
    from agents.profile import Tracer, table, undisturbed
    from agents.progress import Board, ProgressLine
    from agents.training import Training
    from diffusion_gym.rewards import RewardError

    with advised(loading_advice(config)):
        training = Training(config)
        training.require_space()
        if run_directory.prepare(config):
            training.load()
            say(f"going on after iteration {training.iteration}")
    saved = training.iteration
    board = Board(config.out / run_directory.TENSORBOARD, training.iteration)
    line = ProgressLine(config.iterations)
    tracer = Tracer(training.policy.actor.denoiser, training.timer, config.out) if config.profile else None
    try:
        while training.iteration < config.iterations:
            watch = tracer is not None and not tracer.done and _is_warm_or_last(training)
            with tracer.watching(training.iteration + 1) if tracer is not None and watch else nullcontext():
                record = training.iterate()
            if training.iteration % config.checkpoint_every == 0 or training.iteration == config.iterations:
                training.save()
                saved = training.iteration
            board.show(record, training.episodes)
            line.show(record)
        line.close()
        say(f"saved for diffusers in {training.export()}")
        if tracer is not None and training.iteration > training.resumed_at:
            print(table(undisturbed(training.history[training.resumed_at :], tracer.iterations)))
    except (RewardError, RuntimeError, MemoryError) as error:
        short_of_memory = is_out_of_memory(error)
        if not short_of_memory and not isinstance(error, RewardError):
            raise
        line.close()
        if training.between_updates:
            training.save()
            saved = training.iteration
        now = f"in iteration {training.iteration + 1}"
        if short_of_memory:
            phase = "sampling" if training.between_updates else "the update"
            raise RunError(
                f"out of memory {now}, in {phase}: {training_advice(config)}; {saved} finished iterations are saved in "
                f"{config.out} ({shortened(error)})"
            ) from error
        cause = " ".join(str(error).split())
        raise RunError(
            f"stopped {now}: {cause}; go on with the same command and --resume (all before is saved in {config.out})"
        ) from error
    except KeyboardInterrupt:
        line.close()
        if training.between_updates:
            training.save()
        say(f"stopped; go on with the same command and --resume (checkpoint in {config.out})")
        raise
    finally:
        if tracer is not None:
            say(tracer.summary())
        training.close()
        board.close()
    return training


def _is_warm_or_last(training: Any) -> bool:
    """Whether an iteration came before in this process, or none comes after."""
    return training.iteration > training.resumed_at or training.iteration + 1 == training.config.iterations


def say(text: str) -> None:
    """Tell on stderr what is being done, and when."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr)
