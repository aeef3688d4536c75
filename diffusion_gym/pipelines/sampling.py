"""How a model is meant to be sampled: the schedule its kernel is computed from, and defaults of what a user may set."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """How a model is meant to be sampled; from `sampling.json` beside `model_index.json` if there is one.

    Attributes:
        guidance_scale: classifier-free guidance, 1 or more; 1 is no guidance.
        num_inference_steps: T.
        eta: noise level of DDIM, 0 < eta <= 1.
    """

    guidance_scale: float = 7.5
    num_inference_steps: int = 20
    eta: float = 1.0


def kernel_scheduler(name: str, config: Mapping[str, Any], *, corrected: bool) -> dict[str, Any]:
    """The configuration of a model's scheduler as the kernels need it.

    LCMScheduler's own steps are not DDIM's: it predicts the clean latent and adds wholly new noise, and its last step
    adds none. DDIM visits about the same timesteps (999, 749, 499, 249 for 999, 759, 499, 259), keeps a part of the
    noise, and ends a hair before the clean latent, where the last step still has a density.

    Args:
        name: of the model, for messages.
        config: `scheduler_config.json`.
        corrected: whether the model's pipeline corrects old files, as StableDiffusionPipeline does and
            StableDiffusionXLPipeline does not.

    Raises:
        ValueError: the model was trained under another parametrisation of the noise.
    """
    if config.get("beta_start") is None and config.get("trained_betas") is None:
        raise ValueError(
            f"model {name!r}: its {config.get('_class_name', 'scheduler')} has no betas: it was trained under another "
            "parametrisation of the noise (EDM, flow matching), which has another policy"
        )
    # Files of schedulers that have no such settings say nothing; the families were trained with these.
    filled = {"set_alpha_to_one": False, "clip_sample": False, "steps_offset": 1, **config}
    if corrected:
        filled.update(steps_offset=1, clip_sample=False)
    if _is_lcm(config):
        filled.update(timestep_spacing="trailing", set_alpha_to_one=False)
    return filled


def sampling_defaults(
    name: str, directory: Path, scheduler: Mapping[str, Any], *, guidance_is_input: bool, guidance_scale: float
) -> SamplingDefaults:
    """The contents of `sampling.json`, checked; where there is none what the models' cards recommend.

    Args:
        name: of the model, for messages.
        directory: of the model.
        scheduler: `scheduler_config.json`.
        guidance_is_input: whether the UNet was distilled to take the guidance scale as an input (LCM).
        guidance_scale: of the family's undistilled models.

    Raises:
        ValueError: `sampling.json` holds something else.
    """
    path = directory / "sampling.json"
    if path.is_file():
        try:
            return SamplingDefaults(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"model {name!r}: sampling.json must hold guidance_scale, num_inference_steps and eta ({error})"
            ) from error
    if guidance_is_input:
        return SamplingDefaults(guidance_scale=8.0, num_inference_steps=4)
    if _is_lcm(scheduler) or _is_turbo(scheduler):
        return SamplingDefaults(guidance_scale=1.0, num_inference_steps=4)
    return SamplingDefaults(guidance_scale=guidance_scale)


def _is_lcm(scheduler: Mapping[str, Any]) -> bool:
    return scheduler.get("_class_name") == "LCMScheduler"


def _is_turbo(scheduler: Mapping[str, Any]) -> bool:
    """Whether the file is that of sd-turbo, sdxl-turbo and what is derived from them."""
    return (
        scheduler.get("_class_name") in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
        and scheduler.get("timestep_spacing") == "trailing"
        and scheduler.get("prediction_type", "epsilon") == "epsilon"
        and not scheduler.get("rescale_betas_zero_snr")
    )
