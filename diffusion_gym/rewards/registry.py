"""Rewards by name: the built-in ones, registered ones, entry points of other packages, and "module:function"."""

import importlib.metadata
import pkgutil
from collections.abc import Callable

import torch

from diffusion_gym.rewards.base import Reward

RewardFactory = Callable[[torch.device], Reward]
ENTRY_POINTS = "diffusion_gym.rewards"

_FACTORIES: dict[str, str | RewardFactory] = {
    "emoji_preference": "diffusion_gym.rewards.emoji:emoji_preference",
    "emoji_quality": "diffusion_gym.rewards.emoji:emoji_quality",
    "emoji_reader": "diffusion_gym.rewards.emoji:emoji_reader",
    "jpeg_compressibility": "diffusion_gym.rewards.jpeg:jpeg_compressibility",
    "jpeg_incompressibility": "diffusion_gym.rewards.jpeg:jpeg_incompressibility",
}


def register_reward(name: str, factory: str | RewardFactory) -> None:
    """Give a reward a name.

    Args:
        name: not taken by another reward.
        factory: called as `factory(device)` when the reward is made, returns the reward; or "module:attribute" of one.

    Raises:
        TypeError: `name` is not a string, or `factory` is neither callable nor a string.
        ValueError: `name` is blank or taken.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {name!r}")
    if not name.strip():
        raise ValueError(f"name must not be blank, got {name!r}")
    if not callable(factory) and not isinstance(factory, str):
        raise TypeError(f"factory must be callable or 'module:attribute', got {factory!r}")
    if _FACTORIES.get(name, factory) != factory:
        raise ValueError(f"name {name!r} is already the name of a reward")
    _FACTORIES[name] = factory


def reward_names() -> list[str]:
    """Every name that `make_reward` knows, sorted."""
    found = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return sorted({*_FACTORIES, *(point.name for point in found)})


def reward_by_name(name: str, device: torch.device) -> Reward:
    """Make the reward of a name, or take the one that "module:function" says.

    Raises:
        ValueError: no such reward.
        FileNotFoundError: it needs weights that are not there.
    """
    if ":" in name:
        return _reward_at(name)
    factory = _FACTORIES.get(name)
    if factory is None:
        for point in importlib.metadata.entry_points(group=ENTRY_POINTS, name=name):
            factory = point.load()
    if factory is None:
        raise ValueError(f"reward must be one of {reward_names()}, 'module:function' or a callable, got {name!r}")
    if isinstance(factory, str):
        factory = pkgutil.resolve_name(factory)
    assert callable(factory)
    return factory(device)


def _reward_at(place: str) -> Reward:
    """The callable at "module:function"."""
    try:
        found = pkgutil.resolve_name(place)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"reward {place!r} cannot be found ({error}); 'module:function' must name a function that Python can import"
        ) from error
    if not callable(found):
        raise ValueError(f"reward {place!r} must be a callable (images, prompts, metadata), got {found!r}")
    return found
