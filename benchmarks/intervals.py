"""Means with 95% intervals over several seeds of several pictures, by a bootstrap of both levels."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
RESAMPLES = 4000


def bootstrap(
    groups: Sequence[Sequence[Floats]],
    statistic: Callable[..., float] = lambda *means: float(np.mean(means)),
    *,
    seed: int = 0,
) -> dict[str, float]:
    """A statistic of group means, with its 95% percentile interval.

    Seeds are drawn anew within each group, and then pictures within each seed, so that the interval holds what both
    kinds of chance do. With three seeds it is a little too narrow, as any bootstrap of three is.

    Args:
        groups: for each group (a method, or a prompt) the scores of each seed's pictures, (B,).
        statistic: of the groups' means, in their order; by default their mean.
        seed: of the bootstrap.
    """
    rng = np.random.default_rng(seed)

    def group_mean(seeds: Sequence[Floats]) -> float:
        return float(np.mean([scores.mean() for scores in seeds]))

    def resampled(seeds: Sequence[Floats]) -> float:
        drawn = [seeds[i] for i in rng.integers(len(seeds), size=len(seeds))]
        return float(np.mean([scores[rng.integers(len(scores), size=len(scores))].mean() for scores in drawn]))

    values = [statistic(*map(resampled, groups)) for _ in range(RESAMPLES)]
    low, high = np.percentile(values, [2.5, 97.5])
    return {"mean": statistic(*map(group_mean, groups)), "low": float(low), "high": float(high)}


def apart(one: dict[str, float], other: dict[str, float]) -> bool:
    """Whether two intervals do not overlap."""
    return one["low"] > other["high"] or other["low"] > one["high"]
