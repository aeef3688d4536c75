"""Settings of an evaluation, and of sampling."""

from dataclasses import dataclass
from pathlib import Path

from agents.config.training import prompt_spec, source_spec


@dataclass(kw_only=True)
class SamplingConfig:
    """Settings of everything that samples a run's pictures."""

    prompts: tuple[str, ...] = ()
    """Other prompts than those of the training: texts, or the name or file of a prompt set."""
    steps: int | None = None
    """Denoising steps; by default those of the training."""
    batch_size: int | None = None
    """Pictures at once; by default as many as in the training (--slots), at most 32."""
    vae_slicing: bool = False
    """Decode one picture at a time; done anyway if the training did."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    def check(self) -> None:
        """Raise ValueError for settings that cannot work, before anything is loaded."""
        for name in ("steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, got {value}")
        if self.prompts:
            prompt_spec(self.prompts)


@dataclass(kw_only=True)
class EvaluateConfig(SamplingConfig):
    """Pictures of the pretrained and of the trained model from the same noise, judged."""

    pictures: int = 64
    """Pictures a model, spread over the prompts."""
    seed: int = 10_000
    """Noise of the first picture; the i-th has seed + i. Not used in training."""
    rewards: tuple[str, ...] = ()
    """Further rewards to report beside the one trained on."""
    reward_sources: tuple[str, ...] = ()
    """Where those rewards get their weights, as in training."""

    def check(self) -> None:
        """As `SamplingConfig.check`."""
        super().check()
        if self.pictures < 2:
            raise ValueError(f"--pictures must be 2 or more, got {self.pictures}")
        if self.seed < 0:
            raise ValueError(f"--seed must be 0 or more, got {self.seed}")
        source_spec(self.reward_sources)


@dataclass(kw_only=True)
class SampleConfig(SamplingConfig):
    """Pictures of the trained model, or of the pretrained one, as PNG files."""

    pictures: int = 8
    """Pictures, spread over the prompts."""
    seed: int = 0
    """The i-th picture's noise has seed + i; diffusers with a generator of that seed gives the same picture."""
    base: bool = False
    """Sample the pretrained model."""
    out: Path | None = None
    """Directory of the pictures; by default `samples` in the run's."""

    def check(self) -> None:
        """As `SamplingConfig.check`."""
        super().check()
        if self.pictures < 1:
            raise ValueError(f"--pictures must be 1 or more, got {self.pictures}")
        if self.seed < 0:
            raise ValueError(f"--seed must be 0 or more, got {self.seed}")
