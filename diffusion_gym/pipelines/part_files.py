"""Which files of a repository make up a model's parts, chosen by name."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
"""Parts that have weights."""

_TOKENIZER = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_CONFIGURATIONS = frozenset(
    {
        "model_index.json",
        "sampling.json",
        "scheduler/scheduler_config.json",
        *(f"{part}/config.json" for part in PARTS),
        *(f"{part}/{name}" for part in ("tokenizer", "tokenizer_2") for name in _TOKENIZER),
    }
)
CONFIGURATION_PATTERNS = ("model_index.json", "scheduler/*", "tokenizer*/*", "*/config.json")
"""The configurations for a command line, whatever the family."""


@dataclass(frozen=True)
class Weights:
    """The weights of a part.

    Attributes:
        names: one file, or an index and its shards.
        variant: "fp16" for half-precision files, None for plain ones.
    """

    names: tuple[str, ...]
    variant: str | None


def configurations(names: Collection[str]) -> frozenset[str]:
    """All but the weights: of a pipeline directory the files that are read; none without its index."""
    return _CONFIGURATIONS.intersection(names) if "model_index.json" in names else frozenset()


def part_files(part: str, names: Collection[str]) -> frozenset[str]:
    """A part's configuration and weights; none if one lacks."""
    config, weights = f"{part}/config.json", find_weights(part, own_names(part, names))
    if config not in names or weights is None:
        return frozenset()
    return frozenset({config, *(f"{part}/{name}" for name in weights.names)})


def own_names(part: str, names: Iterable[str]) -> set[str]:
    """Names of the files in a part's directory, without the directory."""
    return {name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")}


def find_weights(part: str, names: Collection[str]) -> Weights | None:
    """The weights among the files of a part's directory: safetensors before pickles, plain before half precision."""
    text = part.startswith("text_encoder")
    for suffix, stem in (
        ("safetensors", "model" if text else "diffusion_pytorch_model"),
        ("bin", "pytorch_model" if text else "diffusion_pytorch_model"),
    ):
        for variant in (None, "fp16"):
            found = _one_file(stem, suffix, variant, names) or _shards(stem, suffix, variant, names)
            if found:
                return Weights(found, variant)
    return None


def weight_patterns(part: str) -> tuple[str, ...]:
    """A part for a command line, where the names of its files are not known."""
    return f"{part}/config.json", f"{part}/*.safetensors*"


def _one_file(stem: str, suffix: str, variant: str | None, names: Collection[str]) -> tuple[str, ...]:
    name = f"{stem}.{variant}.{suffix}" if variant else f"{stem}.{suffix}"
    return (name,) if name in names else ()


def _shards(stem: str, suffix: str, variant: str | None, names: Collection[str]) -> tuple[str, ...]:
    """The index and all of its shards; none if one lacks."""
    index = f"{stem}.{suffix}.index.{variant}.json" if variant else f"{stem}.{suffix}.index.json"
    mark = re.escape(f".{variant}") if variant else ""
    # Older libraries put the variant behind the number.
    pattern = re.compile(rf"{stem}(?:{mark}-\d+-of-(\d+)|-\d+-of-(\d+){mark})\.{suffix}")
    shards = {name: match for name in names if (match := pattern.fullmatch(name))}
    complete = any(int(match[1] or match[2]) == len(shards) for match in shards.values())
    return (index, *sorted(shards)) if index in names and complete else ()
