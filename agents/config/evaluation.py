"""Settings of an evaluation."""

from dataclasses import dataclass, field

from agents.config.training import source_spec


@dataclass(kw_only=True)
class EvaluateConfig:
    """Pictures of the pretrained and of the trained model from the same noise, judged."""

    prompts: tuple[str, ...] = ()
    """Other prompts than those of the training: texts, or the name or file of a prompt set."""
    pictures: int = 64
    """Pictures a model, spread over the prompts."""
    seed: int = 10_000
    """Noise of the first picture; the i-th has seed + i. Not used in training."""
    steps: int | None = None
    """Denoising steps; by default those of the training."""
    batch_size: int = 32
    """Pictures at once."""
    rewards: tuple[str, ...] = field(default=())
    """Further rewards to report beside the one trained on."""
    reward_sources: tuple[str, ...] = ()
    """Where those rewards get their weights, as in training."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    def check(self) -> None:
        """Raise ValueError for settings that cannot work."""
        for name in ("pictures", "batch_size"):
            if getattr(self, name) < (2 if name == "pictures" else 1):
                raise ValueError(f"--{name.replace('_', '-')} is too small: {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"--seed must be 0 or more, got {self.seed}")
        source_spec(self.reward_sources)
