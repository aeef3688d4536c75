"""An optimizer that keeps the gradient it is given and changes nothing."""

from typing import Any

import torch

from agents.common.optim import TrainableOptimizerFactory


class Recorder(torch.optim.SGD):
    """`gradient` is that of the last step, all parameters in one vector; `steps` counts them."""

    steps = 0
    gradient: torch.Tensor

    def step(self, closure: Any = None) -> None:
        """Keep the gradient."""
        self.steps += 1
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.gradient = torch.cat([p.grad.double().flatten() for p in parameters])


def recorder() -> TrainableOptimizerFactory:
    """A factory of it."""
    return TrainableOptimizerFactory(Recorder, lr=1.0)
