"""Optimizer factories over the trainable parameters, and gradient accumulation."""

import math
from collections.abc import Callable
from typing import Any

import torch
from tianshou.algorithm.optim import OptimizerFactory, TorchOptimizerFactory
from torch import nn
from torch.optim.lr_scheduler import LRScheduler


class TrainableOptimizerFactory(TorchOptimizerFactory):
    """Any torch optimizer over the parameters that are to be trained.

    Tianshou's own factories take every parameter of a module: with adapters that is the frozen UNet as well.

    Args:
        optim_class: the optimizer, AdamW if not given.
        kwargs: its keyword arguments, e.g. `lr=3e-4, weight_decay=1e-4`.
    """

    def __init__(self, optim_class: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW, **kwargs: Any) -> None:
        super().__init__(optim_class, **kwargs)

    def create_instances(self, module: nn.Module) -> tuple[torch.optim.Optimizer, LRScheduler | None]:
        """The optimizer, and the learning-rate scheduler if there is a factory of one.

        Raises:
            ValueError: nothing in the module is trainable.
        """
        parameters = trainable_parameters(module)
        if not parameters:
            raise ValueError(
                "nothing to train: every parameter is frozen. Add adapters (agents.common.lora.add_lora) or unfreeze "
                "the UNet (unet.requires_grad_(True)) before making the algorithm"
            )
        optimizer = self._create_optimizer_for_params(parameters)
        factory = self.lr_scheduler_factory
        return optimizer, None if factory is None else factory.create_scheduler(optimizer)


def adamw(*, lr: float, weight_decay: float = 1e-4, betas: tuple[float, float] = (0.9, 0.999)) -> OptimizerFactory:
    """AdamW over the trainable parameters; eps 1e-8."""
    return TrainableOptimizerFactory(lr=lr, weight_decay=weight_decay, betas=betas)


def trainable_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that require a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def loss_scaler(dtype: torch.dtype, device: torch.device) -> torch.amp.GradScaler | None:
    """What keeps gradients within float16, in which those of a mean over thousands of values would be 0; else None.

    Losses are multiplied before the backward pass and gradients divided after it, by a factor that adapts.
    """
    if dtype != torch.float16:
        return None
    return torch.amp.GradScaler(device.type, init_scale=2.0**16, growth_interval=200)


class Accumulator:
    """One optimizer step from the gradients of any number of micro-batches.

    Args:
        optimizer: the optimizer.
        max_grad_norm: gradients are scaled down to this L2 norm; None leaves them.
        scaler: see `loss_scaler`; None for networks that do not run in float16.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        max_grad_norm: float | None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self.scaler = scaler
        self.optimizer.zero_grad(set_to_none=True)

    def add(self, loss: torch.Tensor) -> None:
        """Add the gradient of a micro-batch's share: the sum over its samples, divided by the whole batch's size."""
        if loss.requires_grad:
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(self) -> float | None:
        """Clip, step, and return the gradient's norm before clipping.

        A scaled gradient that overflowed makes no step, and None is returned; the next is scaled by half as much.

        Raises:
            FloatingPointError: the gradient is not finite; nothing was changed.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        limit = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        norm = float(nn.utils.clip_grad_norm_(parameters, limit))
        if self.scaler is not None and (math.isfinite(norm) or self.scaler.get_scale() > 1.0):
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            return norm if math.isfinite(norm) else None
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"the gradient has norm {norm}: lower the learning rate or the reward weight, or look for extreme "
                "rewards"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm
