"""The head that ImageReward and LAION's aesthetic predictor share: linear layers with nothing between them."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from diffusion_gym.rewards.weights import Checkpoint

_LAYERS = (0, 2, 4, 6, 7)
"""Numbers of the layers in the checkpoints; the others were dropouts."""


class LinearStack(nn.Module):
    """(B, widths[0]) -> (B,), float32; a linear map, whose layers are the checkpoint's."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        layers = [nn.Linear(*pair) for pair in pairwise(widths)]
        self.layers = nn.ModuleDict({str(i): layer for i, layer in zip(_LAYERS, layers, strict=True)})

    def forward(self, features_BD: Tensor) -> Tensor:
        """The score of each row."""
        for layer in self.layers.values():
            features_BD = layer(features_BD)
        return features_BD.squeeze(-1)


def load_linear_stack(checkpoint: Checkpoint, device: torch.device, *, width: int) -> LinearStack:
    """The head of a checkpoint whose names are layers.0.weight, layers.0.bias, layers.2.weight and so on.

    Args:
        checkpoint: holds the head alone.
        device: where it goes; it stays in float32.
        width: of the features it must take.

    Raises:
        ValueError: it is not such a head, or takes features of another width.
    """
    outs = [checkpoint.shape(f"layers.{i}.weight", 2)[0] for i in _LAYERS]
    if outs[-1] != 1:
        raise checkpoint.wrong(f"with {outs[-1]} outputs, not one score")
    head = checkpoint.build(lambda: LinearStack([width, *outs]))
    assert isinstance(head, LinearStack)
    return head.to(device, torch.float32)
