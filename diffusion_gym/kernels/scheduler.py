"""From a diffusers scheduler configuration to the betas and timesteps a kernel is computed from."""

import inspect
from collections.abc import Mapping
from typing import Any


def make_scheduler(class_name: str, config: Mapping[str, Any], num_inference_steps: int) -> Any:
    """A diffusers scheduler of class `class_name` for any scheduler's configuration, its timesteps set.

    Keys that the class does not know are left out, as `from_config` does.

    Raises:
        ValueError: `num_inference_steps` is out of range, or the configuration asks for dynamic
            thresholding or for something the class refuses.
    """
    import diffusers

    cls = getattr(diffusers, class_name)
    known = {k: v for k, v in config.items() if k in inspect.signature(cls.__init__).parameters}
    try:
        scheduler = cls(**known)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:  # NotImplementedError is a RuntimeError
        raise ValueError(f"the scheduler configuration does not fit {class_name}: {error}") from error
    limit = scheduler.config.num_train_timesteps
    if not isinstance(num_inference_steps, int) or isinstance(num_inference_steps, bool):
        raise TypeError(f"num_inference_steps must be an int, got {num_inference_steps!r}")
    if not 1 <= num_inference_steps <= limit:
        raise ValueError(
            f"num_inference_steps must be from 1 to {limit} (the number of training timesteps), got "
            f"{num_inference_steps}"
        )
    if scheduler.config.thresholding:
        raise ValueError(
            "scheduler thresholding=True is not supported: it rescales the predicted clean latent by a quantile of "
            "itself; set thresholding=False"
        )
    if scheduler.config.timestep_spacing not in ("leading", "trailing", "linspace"):
        raise ValueError(
            "scheduler timestep_spacing must be 'leading', 'trailing' or 'linspace', got "
            f"{scheduler.config.timestep_spacing!r}"
        )
    scheduler.set_timesteps(num_inference_steps)
    if int(scheduler.timesteps.max()) >= limit:
        raise ValueError(
            f"num_inference_steps={num_inference_steps} with steps_offset={scheduler.config.steps_offset} asks for "
            f"timestep {int(scheduler.timesteps.max())}, past the last training timestep {limit - 1}; use fewer steps"
        )
    return scheduler


def clip_range(config: Any) -> float | None:
    """The range the scheduler clips the predicted clean latent to, or None."""
    return float(config.clip_sample_range) if config.clip_sample else None
