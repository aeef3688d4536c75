"""Prompt sets: from a name, a list, a text file or a JSONL file."""

import json
import math
import os
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NAMED: dict[str, str | Callable[[], Sequence[str]]] = {
    "emoji/probes": "diffusion_gym.emoji.grammar:PROBES",
    "emoji/train": "diffusion_gym.emoji.grammar:training_prompts",
    "emoji/held_out": "diffusion_gym.emoji.grammar:held_out_prompts",
    "emoji/colored": "diffusion_gym.emoji.grammar:colored_prompts",
    "emoji/colored_held_out": "diffusion_gym.emoji.grammar:colored_held_out_prompts",
}


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts, each with a weight and metadata.

    Attributes:
        texts: the prompts, at least one.
        weights: how often each is drawn by the weighted sampler, greater than 0; None where none were given.
        metadata: what is known about each beyond its text; handed to the reward.
    """

    texts: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    metadata: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if not self.texts:
            raise ValueError("prompts must hold at least one prompt, got none")
        for text in self.texts:
            check_prompt(text, "prompts")
        if not self.metadata:
            object.__setattr__(self, "metadata", tuple({} for _ in self.texts))
        if len(self.metadata) != len(self.texts):
            raise ValueError(f"prompts have {len(self.texts)} texts and {len(self.metadata)} metadata")
        if self.weights is not None:
            if len(self.weights) != len(self.texts):
                raise ValueError(f"prompts have {len(self.texts)} texts and {len(self.weights)} weights")
            for text, weight in zip(self.texts, self.weights, strict=True):
                if not (weight > 0 and math.isfinite(weight)):
                    raise ValueError(f"prompts: the weight of {text!r} must be greater than 0, got {weight!r}")

    def __len__(self) -> int:
        return len(self.texts)


def register_prompts(name: str, source: str | Callable[[], Sequence[str]]) -> None:
    """Give a prompt set a name, for a world of prompts beside the embedded one.

    Args:
        name: e.g. "world/train".
        source: a function that returns the prompts, or "module:attribute" of one (or of a sequence), imported when
            the set is first asked for.

    Raises:
        TypeError: `name` is not a string.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {name!r}")
    _NAMED[name] = source


def load_prompts(prompts: "str | os.PathLike[str] | Iterable[str | Mapping[str, Any]] | PromptSet") -> PromptSet:
    """Read a prompt set.

    Args:
        prompts: a registered name ("emoji/probes", "emoji/train", "emoji/held_out", "emoji/colored",
            "emoji/colored_held_out"); a path to a .txt or .jsonl file; a list of prompts, or of mappings with a
            "prompt", perhaps a "weight", and metadata; or a PromptSet.

    Raises:
        TypeError, ValueError: `prompts` is none of these, is empty, or holds something that is no prompt; the message
            says which entry.
    """
    if isinstance(prompts, PromptSet):
        return prompts
    if isinstance(prompts, str) and prompts in _NAMED:
        source = _NAMED[prompts]
        found = pkgutil.resolve_name(source) if isinstance(source, str) else source
        return PromptSet(texts=tuple(found() if callable(found) else found))
    if isinstance(prompts, str | os.PathLike):
        return _from_file(prompts)
    if isinstance(prompts, Mapping) or not isinstance(prompts, Iterable):
        raise TypeError(f"prompts must be a name, a file, a list of strings or a PromptSet, got {prompts!r}")
    return _from_entries((f"prompts[{i}]", entry) for i, entry in enumerate(prompts))


def check_prompt(prompt: object, argument: str) -> str:
    """Return `prompt` if it is a string with a visible character in it, else raise naming `argument`."""
    if not isinstance(prompt, str):
        raise TypeError(f"{argument}: a prompt must be a string, got {prompt!r}")
    if not prompt.strip():
        raise ValueError(f"{argument}: a prompt must not be blank, got {prompt!r}")
    return prompt


def _from_file(prompts: str | os.PathLike[str]) -> PromptSet:
    path = Path(prompts)
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(
            f"prompts must be one of {sorted(_NAMED)}, a .txt or .jsonl file, or a list, got {str(prompts)!r}; "
            "for a single prompt write a list of one"
        )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"prompts: cannot read the file {str(path)!r} ({error})") from error
    entries: list[tuple[str, Any]] = []
    for number, line in enumerate(lines, 1):
        where = f"prompts: line {number} of {str(path)!r}"
        if not line.strip():
            continue
        if path.suffix == ".jsonl":
            try:
                entries.append((where, json.loads(line)))
            except ValueError as error:
                raise ValueError(f"{where} is not JSON ({error})") from error
        else:
            entries.append((where, line.strip()))
    if not entries:
        raise ValueError(f"prompts: the file {str(path)!r} holds no prompt")
    return _from_entries(entries)


def _from_entries(entries: Iterable[tuple[str, Any]]) -> PromptSet:
    texts: list[str] = []
    weights: list[float | None] = []
    metadata: list[Mapping[str, Any]] = []
    for where, entry in entries:
        fields = dict(entry) if isinstance(entry, Mapping) else {"prompt": entry}
        if "prompt" not in fields:
            raise ValueError(f'{where} must have a "prompt", got {entry!r}')
        texts.append(check_prompt(fields.pop("prompt"), where))
        weight = fields.pop("weight", None)
        if weight is not None and (isinstance(weight, bool) or not isinstance(weight, int | float)):
            raise TypeError(f"{where}: weight must be a number, got {weight!r}")
        weights.append(weight)
        metadata.append(fields)
    given = any(weight is not None for weight in weights)
    return PromptSet(
        texts=tuple(texts),
        weights=tuple(1.0 if w is None else float(w) for w in weights) if given else None,
        metadata=tuple(metadata),
    )
