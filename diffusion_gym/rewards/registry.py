"""Rewards by name: built-in and registered ones, entry points of other packages, "module:function", and URLs."""

import importlib.metadata
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import torch

from diffusion_gym.rewards.base import Reward
from diffusion_gym.rewards.remote import SCHEMES, RemoteReward

RewardFactory = Callable[..., Reward]
"""`(device) -> reward`, and by keyword only what users may choose: `source` of its weights, `dtype`, other options."""
ENTRY_POINTS = "diffusion_gym.rewards"

_FACTORIES: dict[str, str | RewardFactory] = {
    "aesthetic": "diffusion_gym.rewards.aesthetic:aesthetic",
    "brisque": "diffusion_gym.rewards.brisque:brisque",
    "clip_score": "diffusion_gym.rewards.clip_score:clip_score",
    "emoji_preference": "diffusion_gym.rewards.emoji:emoji_preference",
    "emoji_quality": "diffusion_gym.rewards.emoji:emoji_quality",
    "emoji_reader": "diffusion_gym.rewards.emoji:emoji_reader",
    "hps_v2": "diffusion_gym.rewards.hps_v2:hps_v2",
    "image_reward": "diffusion_gym.rewards.image_reward:image_reward",
    "jpeg_compressibility": "diffusion_gym.rewards.jpeg:jpeg_compressibility",
    "jpeg_incompressibility": "diffusion_gym.rewards.jpeg:jpeg_incompressibility",
    "pick_score": "diffusion_gym.rewards.pick_score:pick_score",
    "safety": "diffusion_gym.rewards.safety:safety",
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


def reward_by_name(
    name: str,
    device: torch.device,
    *,
    options: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Reward:
    """Make the reward of a name, or take the one that "module:function" or a reward server's URL says.

    Args:
        name: the name.
        device: where its network lies.
        options: keyword arguments of its factory, e.g. {"source": "/models/PickScore_v1"}.
        dtype: what its network runs in, if its factory lets one choose.

    Raises:
        ValueError: no such reward, or it has no such option.
        RewardError: no reward server answers at the URL.
        FileNotFoundError: it needs weights that are not there.
    """
    options = dict(options or {})
    if name.startswith(SCHEMES):
        return RemoteReward.from_options(name, options)
    if ":" in name:
        return _own_reward(name, options)
    factory = _factory(name)
    return factory(device, **_keywords(name, factory, options, dtype))


def check_reward_name(name: str, *, options: Mapping[str, str] | None = None) -> None:
    """Raise ValueError if there is no reward of this name or it has no such option; loads no weights.

    A function of one's own is imported. A reward server is not asked for anything.
    """
    options = dict(options or {})
    if name.startswith(SCHEMES):
        return
    if ":" in name:
        _own_reward(name, options)
    else:
        _keywords(name, _factory(name), options, torch.float32)


def _factory(name: str) -> RewardFactory:
    """The factory of a named reward."""
    factory = _FACTORIES.get(name)
    if factory is None:
        for point in importlib.metadata.entry_points(group=ENTRY_POINTS, name=name):
            factory = point.load()
    if factory is None:
        raise ValueError(
            f"reward must be one of {reward_names()}, 'module:function', a URL or a callable, got {name!r}"
        )
    if isinstance(factory, str):
        factory = pkgutil.resolve_name(factory)
    assert callable(factory)
    return factory


def _keywords(name: str, factory: RewardFactory, options: dict[str, str], dtype: torch.dtype) -> dict[str, Any]:
    """The keyword arguments of a factory: the options, checked, and the dtype if it takes one."""
    parameters = inspect.signature(factory).parameters.values()
    known = {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    unknown = sorted(options.keys() - (known - {"dtype"}))
    if unknown:
        has = f"those it has: {sorted(known - {'dtype'})}" if known - {"dtype"} else "it has none"
        raise ValueError(f"reward {name!r} has no option {unknown[0]!r}; {has}")
    return {**options, **({"dtype": dtype} if "dtype" in known else {})}


def _own_reward(place: str, options: Mapping[str, str]) -> Reward:
    """The callable at "module:function"."""
    if options:
        raise ValueError(f"reward {place!r} is a function of your own and takes no options, got {sorted(options)}")
    try:
        found = pkgutil.resolve_name(place)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"reward {place!r} cannot be found ({error}); 'module:function' must name a function that Python can import"
        ) from error
    if not callable(found):
        raise ValueError(f"reward {place!r} must be a callable (images, prompts, metadata), got {found!r}")
    return found
