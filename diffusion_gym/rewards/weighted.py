"""One or several rewards as a weighted sum, with every term reported."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from diffusion_gym.device import parse_dtype
from diffusion_gym.rewards.base import Reward, Scores, check_pictures, checked_call
from diffusion_gym.rewards.registry import check_reward_name, reward_by_name

RewardSpec = (
    str
    | Callable[..., Any]
    | Mapping[str, float]
    | Sequence[str | Callable[..., Any] | tuple[str | Callable[..., Any], float]]
)
"""What users write for a reward: a name, a callable, {name: weight}, or [name, callable, (either, weight), ...]; in the
place of a name also "module:function" or the URL of a reward server."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """One term of the sum: its name in reports, the reward, and its weight."""

    name: str
    reward: Reward
    weight: float


class WeightedReward:
    """sum_i weight_i * reward_i(images, prompts, metadata); make one with `make_reward`."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = tuple(terms)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Scores:
        """Score pictures.

        Raises:
            TypeError, ValueError: an argument is not a batch of pictures, prompts and metadata.
            RewardError: a term raised or returned something else than a finite number a picture.
        """
        check_pictures(images, prompts, metadata)
        terms = {
            term.name: checked_call(term.name, term.reward, images, list(prompts), list(metadata))
            for term in self.terms
        }
        total = torch.zeros(len(images), dtype=torch.float32)
        for term in self.terms:
            total += term.weight * terms[term.name]
        return Scores(total=total, terms=terms)

    def changed(self, change: Callable[[Reward], Reward]) -> "WeightedReward":
        """The same sum of changed rewards, with their names and weights."""
        return WeightedReward([replace(term, reward=change(term.reward)) for term in self.terms])

    def __repr__(self) -> str:
        return "WeightedReward(" + " + ".join(f"{term.weight:g} * {term.name}" for term in self.terms) + ")"


def make_reward(
    reward: RewardSpec | WeightedReward,
    *,
    device: torch.device | str = "cpu",
    dtype: str | torch.dtype = "float32",
    sources: Mapping[str, str] | None = None,
) -> WeightedReward:
    """Make a reward from what a user writes.

    Args:
        reward: a name, "module:function" or the URL of a reward server; a callable `(images, prompts, metadata) ->
            (B,)`; a mapping {name: weight}; or a sequence of names, callables and (name or callable, weight) pairs.
            Without a weight it is 1.
        device: where rewards with a network of their own should put it.
        dtype: what those networks run in.
        sources: where named rewards get their weights, a path or hub id: {"pick_score": "/models/PickScore_v1"}; other
            options of a reward as {"name.option": value}. Without an entry a reward takes its own default.

    Raises:
        TypeError, ValueError: `reward` is none of these, a weight is not a finite number, or `sources` names a reward
            that is not asked for.
        FileNotFoundError: a named reward needs weights that are not there.
        RewardError: no reward server answers at a URL.
    """
    if isinstance(reward, WeightedReward):
        return reward
    checked = _checked_terms(reward)
    device, dtype = torch.device(device), parse_dtype(dtype)
    options = _options(sources or {}, [term for term, _ in checked])
    terms: list[Term] = []
    for term, weight in checked:
        name = _unused_name(term, {t.name for t in terms})
        made = reward_by_name(term, device, options=options.get(term), dtype=dtype) if isinstance(term, str) else term
        terms.append(Term(name=name, reward=made, weight=weight))
    return WeightedReward(terms)


def check_reward(reward: RewardSpec, *, sources: Mapping[str, str] | None = None) -> None:
    """Raise what `make_reward` would of a reward that is misspelt, without loading any weights.

    Args:
        reward: as `make_reward` takes it.
        sources: as `make_reward` takes them.

    Raises:
        TypeError, ValueError: as `make_reward`.
    """
    terms = [term for term, _ in _checked_terms(reward)]
    options = _options(sources or {}, terms)
    for term in terms:
        if isinstance(term, str):
            check_reward_name(term, options=options.get(term))


def _checked_terms(reward: RewardSpec) -> list[tuple[str | Reward, float]]:
    """Terms and weights of what a user writes."""
    if isinstance(reward, str) or callable(reward):
        pairs: list[tuple[Any, Any]] = [(reward, 1.0)]
    elif isinstance(reward, Mapping):
        pairs = list(reward.items())
    elif isinstance(reward, Sequence):
        pairs = [item if isinstance(item, tuple) and len(item) == 2 else (item, 1.0) for item in reward]
    else:
        raise TypeError(f"reward must be a name, a callable, a mapping or a sequence of terms, got {reward!r}")
    if not pairs:
        raise ValueError(f"reward must have at least one term, got {reward!r}")
    return [(_check_term(term), _check_weight(term, weight)) for term, weight in pairs]


def _options(sources: Mapping[str, str], terms: Sequence[Any]) -> dict[str, dict[str, str]]:
    """Options of each named reward: {"name": x} is its source, {"name.option": x} another option."""
    found: dict[str, dict[str, str]] = {}
    names = [term for term in terms if isinstance(term, str)]
    for key, value in sources.items():
        name, option = key, "source"
        if key not in names:
            name, _, option = key.rpartition(".")  # a URL has dots of its own
        if name not in names:
            raise ValueError(f"sources: {key!r} belongs to no reward asked for; those are {list(map(_name_of, terms))}")
        found.setdefault(name, {})[option] = value
    return found


def _check_term(term: Any) -> str | Reward:
    if not isinstance(term, str) and not callable(term):
        raise TypeError(f"reward: a term must be a name or a callable, got {term!r}")
    return term


def _check_weight(term: Any, weight: Any) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise TypeError(f"reward: the weight of {_name_of(term)!r} must be a number, got {weight!r}")
    if not isfinite(weight):
        raise ValueError(f"reward: the weight of {_name_of(term)!r} must be finite, got {weight!r}")
    return float(weight)


def _name_of(term: Any) -> str:
    if isinstance(term, str):
        return term
    return getattr(term, "__name__", None) or type(term).__name__


def _unused_name(term: Any, taken: set[str]) -> str:
    """The term's name, with a number behind it if an earlier term has that name."""
    name, n = _name_of(term), 2
    while name in taken:
        name, n = f"{_name_of(term)}_{n}", n + 1
    return name
