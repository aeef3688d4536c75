"""The command `diffusion-gym`.

    diffusion-gym train dpok --prompts "a green rabbit" --out runs/rabbit
    diffusion-gym evaluate runs/rabbit
    diffusion-gym report runs/rabbit
    diffusion-gym sample runs/rabbit --prompts "a green rabbit"
    diffusion-gym serve emoji_preference --port 8000
    diffusion-gym quickstart

Nothing heavy is imported before a command has been read and checked.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from agents import run_directory
from agents.config import (
    A2CConfig,
    DDPOConfig,
    DPOKConfig,
    EvaluateConfig,
    PPOConfig,
    ReinforceConfig,
    SampleConfig,
    SFTConfig,
    source_spec,
)
from agents.presets import PRESETS, expand_preset
from agents.run_directory import RunError


def _preset(name: str) -> Any:
    preset = PRESETS[name]
    return tyro.conf.subcommand(name, default=preset.config, description=preset.description)


@dataclass(kw_only=True)
class Train:
    """Fine-tune a model; shows progress, writes curves to TensorBoard and a checkpoint every iteration.

    Choose an agent, or a preset: an agent with a published run's settings, any of which can be changed
    (train sd15-dpok --model PATH; --preset sd15-dpok does the same).
    """

    agent: (
        Annotated[DPOKConfig, tyro.conf.subcommand("dpok")]
        | Annotated[DDPOConfig, tyro.conf.subcommand("ddpo")]
        | Annotated[SFTConfig, tyro.conf.subcommand("sft")]
        | Annotated[ReinforceConfig, tyro.conf.subcommand("reinforce")]
        | Annotated[A2CConfig, tyro.conf.subcommand("a2c")]
        | Annotated[PPOConfig, tyro.conf.subcommand("ppo")]
        | Annotated[DPOKConfig, _preset("sd15-dpok")]
        | Annotated[DDPOConfig, _preset("sd15-ddpo")]
        | Annotated[DDPOConfig, _preset("sdxl-ddpo")]
    )

    def run(self) -> None:
        """Train, or say what it would take."""
        if self.agent.dry_run:
            self.agent.check()
            from agents.plan import show_plan

            print(show_plan(self.agent))
            return
        from agents.run import train

        train(self.agent)


@dataclass(kw_only=True)
class Evaluate:
    """Judge the pretrained and the trained model on pictures from the same noise; 95% intervals."""

    run_dir: tyro.conf.Positional[Path]
    """Directory of the run."""
    settings: tyro.conf.OmitArgPrefixes[EvaluateConfig]

    def run(self) -> None:
        """Evaluate and print a table."""
        self.settings.check()
        config = run_directory.read_config(self.run_dir)
        from agents.evaluation import evaluate, print_table
        from agents.run import say

        print_table(evaluate(config, self.settings, show=say))


@dataclass(kw_only=True)
class Report:
    """Write one self-contained HTML page: curves, pictures before and after, table, configuration."""

    run_dir: tyro.conf.Positional[Path]
    """Directory of the run."""

    def run(self) -> None:
        """Write the page."""
        from agents.report import write_report

        print(write_report(self.run_dir))


@dataclass(kw_only=True)
class Sample:
    """Sample pictures of a trained model, or of the pretrained one, as PNG files."""

    run_dir: tyro.conf.Positional[Path]
    """Directory of the run."""
    settings: tyro.conf.OmitArgPrefixes[SampleConfig]

    def run(self) -> None:
        """Sample."""
        self.settings.check()
        config = run_directory.read_config(self.run_dir)
        from agents.sample import sample

        sample(config, self.settings, show=lambda path, prompt: print(f"{path}  {prompt}"))


@dataclass(kw_only=True)
class Quickstart:
    """Fine-tune the embedded model on one of DPOK's four prompts, evaluate, report: a few minutes on a laptop.

    Takes the prompt at which the pretrained model is weakest but not hopeless, and trains on `emoji_preference` only;
    the reader and the quality judge only watch.
    """

    out: Path = Path("runs/quickstart")
    """Directory of the run; must be new or empty, or a quickstart to go on with."""
    seed: int = 0
    """Of everything random."""
    iterations: int = 25
    """Rollouts and updates."""
    pictures: int = 64
    """Pictures a model in the evaluation."""

    def run(self) -> None:
        """Train, evaluate, report."""
        from agents.quickstart import quickstart
        from agents.run import say

        quickstart(out=self.out, seed=self.seed, iterations=self.iterations, pictures=self.pictures, show=say)


@dataclass(kw_only=True)
class Serve:
    """Serve a reward to trainings in other processes, which name it by URL: --reward http://127.0.0.1:8000.

    There is no authentication: listen on another address than 127.0.0.1 only in a network you trust.
    """

    reward: tyro.conf.Positional[str]
    """A reward's name, or module:function of your own."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for other machines."""
    port: int = 8000
    """Port to listen on; 0 for any that is free."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    reward_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the reward's network runs in."""
    reward_sources: tuple[str, ...] = ()
    """Where the reward gets its weights, as in training."""

    def run(self) -> None:
        """Serve until Ctrl-C."""
        if not 0 <= self.port < 2**16:
            raise ValueError(f"--port must be from 0 to {2**16 - 1}, got {self.port}")
        sources = source_spec(self.reward_sources)
        from diffusion_gym.device import parse_device
        from diffusion_gym.rewards import make_reward
        from diffusion_gym.rewards.serve import serve

        device = parse_device(self.device)
        reward = make_reward(self.reward, device=device, dtype=self.reward_dtype, sources=sources)

        def score(images: Any, prompts: Any, metadata: Any) -> Any:
            return reward(images.to(device), prompts, metadata).total

        serve(score, self.reward, self.host, self.port)


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Serve, tyro.conf.subcommand("serve")]
    | Annotated[Quickstart, tyro.conf.subcommand("quickstart")]
)


def main(argv: list[str] | None = None) -> None:
    """Run the command; errors that a user can mend end in one line and exit code 2, Ctrl-C in exit code 130.

    Modules in the working directory can be imported, so that `--reward module:function` finds them.
    """
    sys.path.insert(0, os.getcwd())
    try:
        arguments = expand_preset(sys.argv[1:] if argv is None else argv)
    except ValueError as error:
        print(f"diffusion-gym: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    command: Any = tyro.cli(
        Command,
        args=arguments,
        prog="diffusion-gym",
        description="Fine-tune text-to-image diffusion models by reinforcement learning.",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )
    try:
        command.run()
    except (RunError, ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"diffusion-gym: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        raise SystemExit(130) from error


if __name__ == "__main__":
    main()
