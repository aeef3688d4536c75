"""The command `diffusion-gym`.

    diffusion-gym train dpok --prompts "a green rabbit" --out runs/rabbit
    diffusion-gym evaluate runs/rabbit
    diffusion-gym report runs/rabbit
    diffusion-gym sample runs/rabbit --prompts "a green rabbit"
    diffusion-gym quickstart

Nothing heavy is imported before a command has been read and checked.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from agents import run_directory
from agents.config import (
    A2CConfig,
    DDPOConfig,
    DPOKConfig,
    EvaluateConfig,
    PPOConfig,
    ReinforceConfig,
    SFTConfig,
    prompt_spec,
)
from agents.run_directory import RunError


@dataclass(kw_only=True)
class Train:
    """Fine-tune a model; shows progress, writes curves to TensorBoard and a checkpoint every iteration."""

    agent: (
        Annotated[DPOKConfig, tyro.conf.subcommand("dpok")]
        | Annotated[DDPOConfig, tyro.conf.subcommand("ddpo")]
        | Annotated[SFTConfig, tyro.conf.subcommand("sft")]
        | Annotated[ReinforceConfig, tyro.conf.subcommand("reinforce")]
        | Annotated[A2CConfig, tyro.conf.subcommand("a2c")]
        | Annotated[PPOConfig, tyro.conf.subcommand("ppo")]
    )

    def run(self) -> None:
        """Train."""
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
    prompts: tuple[str, ...] = ()
    """Prompts; by default those of the training."""
    pictures: int = 8
    """Pictures, spread over the prompts."""
    seed: int = 0
    """The i-th picture's noise has seed + i; diffusers with a generator of that seed gives the same picture."""
    steps: int | None = None
    """Denoising steps; by default those of the training."""
    base: bool = False
    """Sample the pretrained model."""
    out: Path | None = None
    """Directory of the pictures; by default `samples` in the run's."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    def run(self) -> None:
        """Sample."""
        if self.pictures < 1 or self.seed < 0:
            raise ValueError("--pictures must be 1 or more and --seed 0 or more")
        config = run_directory.read_config(self.run_dir)
        from PIL import Image

        from agents.common.sampling import sample_pictures
        from agents.evaluation import load_trained
        from diffusion_gym.prompts import load_prompts

        pipeline, actor, reference, _ = load_trained(config, steps=self.steps, device=self.device)
        texts = load_prompts(prompt_spec(self.prompts or config.prompts)).texts
        prompts = [texts[i % len(texts)] for i in range(self.pictures)]
        seeds = [self.seed + i for i in range(self.pictures)]
        samples = sample_pictures(
            actor, pipeline, prompts, seeds, reference=reference if self.base else None, use_reference=self.base
        )
        out = self.out or self.run_dir / "samples"
        out.mkdir(parents=True, exist_ok=True)
        for image, prompt, seed in zip(samples.images, prompts, seeds, strict=True):
            path = out / f"{seed}.png"
            Image.fromarray(image.mul(255).round().byte().permute(1, 2, 0).numpy()).save(path)
            print(f"{path}  {prompt}")


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


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Quickstart, tyro.conf.subcommand("quickstart")]
)


def main(argv: list[str] | None = None) -> None:
    """Run the command; errors that a user can mend end in one line and exit code 2, Ctrl-C in exit code 130.

    Modules in the working directory can be imported, so that `--reward module:function` finds them.
    """
    sys.path.insert(0, os.getcwd())
    command: Any = tyro.cli(
        Command,
        args=argv,
        prog="diffusion-gym",
        description="Fine-tune text-to-image diffusion models by reinforcement learning.",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )
    try:
        command.run()
    except (RunError, ValueError, OSError, FloatingPointError) as error:
        print(f"diffusion-gym: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        raise SystemExit(130) from error


if __name__ == "__main__":
    main()
