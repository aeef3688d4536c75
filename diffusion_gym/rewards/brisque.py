"""BRISQUE (Mittal et al. 2012, "No-Reference Image Quality Assessment in the Spatial Domain").

Natural pictures, divided by their local contrast, look much like noise. How far a picture is from that at two scales
makes 36 numbers, of which a support vector regression makes the score. The trained regression is that of the Python
package `brisque`; its code is not run, because it needs OpenCV and fails with NumPy 2.4.
"""

import importlib.util
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_gym.rewards.base import Reward
from diffusion_gym.rewards.preprocess import to_uint8, unit_range

_GREY = (0.2125, 0.7154, 0.0721)
_CONTRAST_FLOOR = 1 / 255
_WINDOW, _SIGMA = 7, 7 / 6
_SHAPES = (0.2, 10.0)
"""Range of the shape parameter in the authors' code; 2 is a normal distribution."""
_MIN_SIZE = 16
_CHUNK = 16


def brisque(device: torch.device) -> Reward:
    """Minus the BRISQUE score, whatever the prompt: about -100 (distorted) to 0 (natural). Computed on the CPU.

    Raises:
        ImportError: the package `brisque` is not installed.
        ValueError: the package holds another model than version 0.2 does.
    """
    judge = Brisque.load()

    def quality(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return -judge.score(images)

    return quality


class Brisque:
    """The regression: score = sum_i weight_i exp(-gamma |x - vector_i|^2) - rho, x being features scaled to [-1, 1]."""

    def __init__(
        self, *, vectors_SF: Tensor, weights_S: Tensor, gamma: float, rho: float, low_F: Tensor, high_F: Tensor
    ) -> None:
        self._vectors = vectors_SF
        self._weights = weights_S
        self._gamma = gamma
        self._rho = rho
        self._low = low_F
        self._high = high_F

    @classmethod
    def load(cls) -> "Brisque":
        """The regression that the installed package `brisque` holds."""
        spec = importlib.util.find_spec("brisque")
        if spec is None or not spec.submodule_search_locations:
            raise ImportError(
                "reward 'brisque' needs the package brisque, which holds the trained model: "
                "pip install 'diffusion-gym[brisque]'"
            )
        directory = Path(spec.submodule_search_locations[0], "models")
        try:
            header, rows = (directory / "svm.txt").read_text().split("\nSV\n")
            settings = dict(line.split(maxsplit=1) for line in header.splitlines())
            if (settings["svm_type"], settings["kernel_type"]) != ("epsilon_svr", "rbf"):
                raise ValueError(f"svm.txt is a {settings['svm_type']} with kernel {settings['kernel_type']}")
            with (directory / "normalize.pickle").open("rb") as file:
                scale = _PlainUnpickler(file).load()
            low, high = (torch.tensor(scale[key], dtype=torch.float64) for key in ("min_", "max_"))
            weights, vectors = _parse_vectors(rows.splitlines(), len(low))
            gamma, rho = float(settings["gamma"]), float(settings["rho"])
        except (OSError, ValueError, LookupError, TypeError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"reward 'brisque': {directory} does not hold the model of brisque 0.2 ({error}); "
                "pip install --force-reinstall 'brisque>=0.2,<0.3'"
            ) from error
        return cls(vectors_SF=vectors, weights_S=weights, gamma=gamma, rho=rho, low_F=low, high_F=high)

    def score(self, images_B3HW: Tensor) -> Tensor:
        """BRISQUE scores of pictures in [0, 1], (B,) float32 on the CPU; lower is better.

        Raises:
            ValueError: the pictures are smaller than 16 pixels.
        """
        features_BF = torch.cat([brisque_features(chunk) for chunk in images_B3HW.split(_CHUNK)])
        scaled_BF = 2 * (features_BF - self._low) / (self._high - self._low) - 1
        kernel_BS = torch.exp(-self._gamma * torch.cdist(scaled_BF, self._vectors).square())
        return (kernel_BS @ self._weights - self._rho).float()


def brisque_features(images_B3HW: Tensor) -> Tensor:
    """The 36 features of each picture in [0, 1], (B, 36) float64: 18 at full size, 18 at half."""
    if min(images_B3HW.shape[2:]) < _MIN_SIZE:
        raise ValueError(f"images must be at least {_MIN_SIZE} pixels high and wide, got {tuple(images_B3HW.shape)}")
    grey_B1HW = (unit_range(to_uint8(images_B3HW)).double() * torch.tensor(_GREY).double().view(3, 1, 1)).sum(1, True)
    half = nn.functional.interpolate(grey_B1HW, scale_factor=0.5, mode="bicubic")
    return torch.cat([_features_of_scale(grey_B1HW), _features_of_scale(half)], dim=1)


def _features_of_scale(grey_B1HW: Tensor) -> Tensor:
    """18 features: two of the picture divided by its contrast, four of each product with a neighbour."""
    mean, mean_square = _blur(grey_B1HW), _blur(grey_B1HW.square())
    deviation = (mean.square() - mean_square).abs().sqrt()
    x = ((grey_B1HW - mean) / (deviation + _CONTRAST_FLOOR)).squeeze(1)
    shape, left, right, _ = _fit(x)
    features = [shape, (left + right) / 2]
    for product in (
        x[:, :, :-1] * x[:, :, 1:],
        x[:, :-1] * x[:, 1:],
        x[:, :-1, :-1] * x[:, 1:, 1:],
        x[:, 1:, :-1] * x[:, :-1, 1:],
    ):
        shape, left, right, middle = _fit(product)
        features += [shape, middle, left, right]
    return torch.stack(features, dim=1)


def _blur(images_B1HW: Tensor) -> Tensor:
    """Means weighted by a normal distribution around each pixel; black beyond the border."""
    offsets = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    weights = weights / weights.sum()
    for window in (weights.view(1, 1, -1, 1), weights.view(1, 1, 1, -1)):
        images_B1HW = nn.functional.conv2d(images_B1HW, window, padding="same")
    return images_B1HW


def _fit(values_BHW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An asymmetric generalised normal distribution by moments: shape, left variance, right variance, mean, (B,) each.

    Where nothing varies, as in a black picture, the variances are 0 and the shape is the smallest there is.
    """
    values_BN = values_BHW.flatten(1)
    left, right = (_mean_square(values_BN, side) for side in (values_BN < 0, values_BN >= 0))
    ratio = (left / right).sqrt()
    spread = values_BN.abs().mean(1).square() / values_BN.square().mean(1)
    target = spread * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1).square()
    low, high = (torch.full_like(target, limit) for limit in _SHAPES)
    for _ in range(50):  # the moment ratio grows with the shape: bisect; NaN ends at the smallest
        middle = (low + high) / 2
        too_small = _moment_ratio(middle) < target
        low, high = torch.where(too_small, middle, low), torch.where(too_small, high, middle)
    shape = (low + high) / 2
    one, two, three = (torch.lgamma(k / shape) for k in (1, 2, 3))
    mean = (right.sqrt() - left.sqrt()) * torch.exp((one - three) / 2 + two - one)
    return shape, left, right, mean


def _mean_square(values_BN: Tensor, chosen_BN: Tensor) -> Tensor:
    return (values_BN.square() * chosen_BN).sum(1) / chosen_BN.sum(1).clamp(min=1)


def _moment_ratio(shape: Tensor) -> Tensor:
    """E|x|^2 / E x^2 of a generalised normal distribution."""
    one, two, three = (torch.lgamma(k / shape) for k in (1, 2, 3))
    return torch.exp(2 * two - one - three)


def _parse_vectors(rows: Sequence[str], width: int) -> tuple[Tensor, Tensor]:
    """libsvm's lines "weight 1:x 2:y ...", numbers that are 0 left out, as (S,) and (S, width) float64."""
    weights = torch.empty(len(rows), dtype=torch.float64)
    vectors = torch.zeros(len(rows), width, dtype=torch.float64)
    for i, row in enumerate(rows):
        weight, *entries = row.split()
        weights[i] = float(weight)
        for entry in entries:
            number, value = entry.split(":")
            vectors[i, int(number) - 1] = float(value)
    return weights, vectors


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dictionaries and numbers, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse."""
        raise pickle.UnpicklingError(f"normalize.pickle refers to {module}.{name}")
