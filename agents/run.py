"""A run from its first iteration, or its last checkpoint, to its end."""

import sys
import time
from typing import Any

from agents import profile, run_directory
from agents.config import TrainConfig
from agents.run_directory import RunError


def train(config: TrainConfig) -> Any:
    """Train to the end of `config.iterations`; returns the `Training`.

    Raises:
        ValueError, RunError, OSError: before any work, if the run cannot begin; OSError also when the disk fills up;
            RunError also when the reward fails for good, with every finished iteration saved.
        KeyboardInterrupt: Ctrl-C; every finished iteration is saved, but for those since the last checkpoint if it came
            in the middle of an update.
    """
    config.check()
    run_directory.check(config)
    say("loading the model")
    from agents.progress import Board, ProgressLine
    from agents.training import Training
    from diffusion_gym.rewards import RewardError

    training = Training(config)
    training.require_space()
    if run_directory.prepare(config):
        training.load()
        say(f"going on after iteration {training.iteration}")
    board = Board(config.out / run_directory.TENSORBOARD, training.iteration)
    line = ProgressLine(config.iterations)
    try:
        while training.iteration < config.iterations:
            if config.profile and training.iteration - training.resumed_at == profile.TRACED - 1:
                record = profile.traced(training.iterate, config.out)
            else:
                record = training.iterate()
            if training.iteration % config.checkpoint_every == 0 or training.iteration == config.iterations:
                training.save()
            board.show(record, training.episodes)
            line.show(record)
        line.close()
        say(f"saved for diffusers in {training.export()}")
        if config.profile and training.iteration > training.resumed_at:
            print(profile.table(_untraced(training.history[training.resumed_at :])))
    except RewardError as error:
        line.close()
        training.save()
        cause = " ".join(str(error).split())
        raise RunError(
            f"stopped in iteration {training.iteration + 1}: {cause}; go on with the same command and --resume (all "
            f"before is saved in {config.out})"
        ) from error
    except KeyboardInterrupt:
        line.close()
        if training.between_updates:
            training.save()
        say(f"stopped; go on with the same command and --resume (checkpoint in {config.out})")
        raise
    finally:
        training.close()
        board.close()
    return training


def _untraced(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of iterations that were not slowed down by the trace, if there are any."""
    return [record for i, record in enumerate(history) if i != profile.TRACED - 1] if len(history) > 2 else history


def say(text: str) -> None:
    """Tell on stderr what is being done, and when."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr)
