"""The embedded world: scenes of emoji, a text-to-image model of them, and judges that read its pictures."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


def pipeline_path() -> Path:
    """Returns the directory of the embedded model, for `StableDiffusionPipeline.from_pretrained`.

    Raises:
        FileNotFoundError: a part of the model is missing; the message names the file and says how to rebuild it.
    """
    from .files import require_pipeline

    return require_pipeline(WEIGHTS / "pipeline")
