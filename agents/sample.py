"""Pictures of a run's model as PNG files: `diffusion-gym sample`."""

from collections.abc import Callable
from pathlib import Path

from agents.common.sampling import sample_pictures
from agents.config import SampleConfig, TrainConfig, prompt_spec
from agents.evaluation import load_trained, pictures_at_once
from agents.memory import advised, sampling_advice
from diffusion_gym.prompts import load_prompts


def sample(
    config: TrainConfig, settings: SampleConfig, *, show: Callable[[Path, str], None] = lambda path, prompt: None
) -> list[Path]:
    """Sample and write batch by batch; returns the files.

    Args:
        config: the run's configuration.
        settings: how many pictures, of which noise and prompts.
        show: called with each file and its prompt once it is written.

    Raises:
        RunError: the run cannot be sampled, or memory runs out.
        ValueError: a setting is out of range, or the prompts or the device are not to be had; before anything is
            loaded.
    """
    from PIL import Image

    settings.check()
    texts = load_prompts(prompt_spec(settings.prompts or config.prompts)).texts
    batch_size = pictures_at_once(config, settings)
    out = settings.out or config.out / "samples"
    written: list[Path] = []
    with advised(sampling_advice(batch_size, vae_slicing=config.vae_slicing or settings.vae_slicing)):
        pipeline, actor, reference, _ = load_trained(
            config, steps=settings.steps, device=settings.device, vae_slicing=settings.vae_slicing
        )
        out.mkdir(parents=True, exist_ok=True)
        for start in range(0, settings.pictures, batch_size):
            numbers = range(start, min(start + batch_size, settings.pictures))
            prompts, seeds = [texts[i % len(texts)] for i in numbers], [settings.seed + i for i in numbers]
            samples = sample_pictures(
                actor,
                pipeline,
                prompts,
                seeds,
                batch_size=batch_size,
                reference=reference if settings.base else None,
                use_reference=settings.base,
            )
            for image, prompt, seed in zip(samples.images, prompts, seeds, strict=True):
                path = out / f"{seed}.png"
                Image.fromarray(image.mul(255).round().byte().permute(1, 2, 0).numpy()).save(path)
                show(path, prompt)
                written.append(path)
    return written
