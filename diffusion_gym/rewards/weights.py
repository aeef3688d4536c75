"""Weights from disk into a network: never by running a pickle, and never into a network they do not fit."""

import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_gym.hub import in_short
from diffusion_gym.rewards.sources import Wanted

_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Tensors by name, and what they were loaded for, so that an error can say what does not fit.

    Attributes:
        tensors: on the CPU, in the dtypes they were saved in.
        wanted: what they should be.
        place: the file they come from.
    """

    tensors: Mapping[str, Tensor]
    wanted: Wanted
    place: Path

    def wrong(self, why: str) -> ValueError:
        """The error for tensors of another architecture."""
        return self.wanted.wrong(self.place, f"it is of another architecture, {why}")

    def shape(self, name: str, dims: int) -> tuple[int, ...]:
        """Shape of a tensor that must be there with so many dimensions, or ValueError."""
        if name not in self.tensors:
            raise self.wrong(f"without {name}")
        shape = tuple(self.tensors[name].shape)
        if len(shape) != dims:
            raise self.wrong(f"where {name} has shape {shape}, not {dims} dimensions")
        return shape

    def depth(self, prefix: str) -> int:
        """Number of layers: one more than the largest number that follows `prefix` in a name."""
        numbers = [re.match(re.escape(prefix) + r"(\d+)\.", name) for name in self.tensors]
        return 1 + max((int(number[1]) for number in numbers if number), default=-1)

    def part(self, prefix: str) -> "Checkpoint":
        """The tensors whose names start with `prefix`, without it."""
        return replace(
            self, tensors={n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}
        )

    def renamed(self, rules: Mapping[str, str]) -> "Checkpoint":
        """The same tensors, each name changed by all rules in turn: {regular expression: replacement}."""
        tensors = {}
        for name, tensor in self.tensors.items():
            for pattern, replacement in rules.items():
                name = re.sub(pattern, replacement, name)
            tensors[name] = tensor
        return replace(self, tensors=tensors)

    def build(self, make: Callable[[], nn.Module]) -> nn.Module:
        """Make a network whose parameters are these tensors; nothing is drawn at random and nothing copied.

        Returns:
            The network, frozen, in eval mode.

        Raises:
            ValueError: a tensor is missing, left over or of another shape.
        """
        with torch.device("meta"):
            network = make()
        self._check({name: tuple(tensor.shape) for name, tensor in network.state_dict().items()})
        network.load_state_dict(self.tensors, assign=True)
        for module in network.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_meta:  # position_ids: counts from 0 and belongs to no state
                    setattr(module, name, torch.arange(buffer.shape[-1]).expand(buffer.shape))
        return network.eval().requires_grad_(False)

    def _check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise ValueError unless the tensors are those of these names and shapes."""
        if missing := shapes.keys() - self.tensors.keys():
            raise self.wrong(f"without {_some(missing)}")
        if left := self.tensors.keys() - shapes.keys():
            raise self.wrong(f"with {_some(left)} as well")
        for name, shape in shapes.items():
            if self.shape(name, len(shape)) != shape:
                raise self.wrong(f"where {name} has shape {tuple(self.tensors[name].shape)}, not {shape}")


def load_checkpoint(path: Path, wanted: Wanted) -> Checkpoint:
    """Read a .safetensors file, or a file of torch.save that holds nothing but tensors.

    The tensors may lie under the key "state_dict". Position counters, which old networks saved, are left out.

    Raises:
        ValueError: the file is damaged, holds something else, or would run code when read.
    """
    import safetensors
    import safetensors.torch

    try:
        if path.suffix == ".safetensors":
            data = safetensors.torch.load_file(path)
        else:
            data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise wanted.wrong(
            path, "it is damaged, or a pickle of more than tensors, which is not read because it could run code"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, safetensors.SafetensorError) as error:
        raise wanted.wrong(path, f"it is damaged or incomplete ({in_short(error)})") from error
    if isinstance(data, Mapping) and isinstance(data.get("state_dict"), Mapping):
        data = data["state_dict"]
    if not isinstance(data, Mapping) or not all(isinstance(value, Tensor) for value in data.values()):
        raise wanted.wrong(path, "it holds something else than tensors with names")
    tensors = {str(name): tensor for name, tensor in data.items() if not str(name).endswith("position_ids")}
    return Checkpoint(tensors=tensors, wanted=wanted, place=path)


def load_tokenizer(kind: str, directory: Path, wanted: Wanted, *, vocabulary: int) -> Any:
    """A tokenizer of transformers.

    Args:
        kind: its class.
        directory: holds its files.
        wanted: what is expected, for the errors.
        vocabulary: number of tokens that the network knows.

    Raises:
        ValueError: the files are damaged, or it has more tokens than the network knows.
    """
    import transformers

    try:
        tokenizer = getattr(transformers, kind).from_pretrained(directory)
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise wanted.wrong(directory, f"it is damaged ({in_short(error)})") from error
    if len(tokenizer) > vocabulary:
        raise wanted.wrong(directory, f"it has {len(tokenizer)} tokens, of which the network knows {vocabulary}")
    return tokenizer


def _some(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
