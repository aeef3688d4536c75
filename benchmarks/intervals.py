"""95% intervals over several seeds of training and several pictures of evaluation, by a bootstrap of both."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Interval = dict[str, float]
RESAMPLES = 4000


def of_pairs(scores_SB: Floats) -> Floats:
    """Scores (S, B) of a mean over pairs of pictures, given as each picture's mean over its pairs, for `bootstrap`.

    A picture that is drawn anew moves its own value and its share in all others, so each value's deviation from its
    seed's mean counts twice; the seeds' means stay.
    """
    mean_S1 = scores_SB.mean(1, keepdims=True)
    return np.asarray(mean_S1 + 2.0 * (scores_SB - mean_S1))


def mean_of_means(*groups: Floats) -> float:
    """The mean of the groups' means."""
    return float(np.mean([group.mean() for group in groups]))


def change(before: Floats, after: Floats) -> float:
    """Of the mean, from one group to the other."""
    return float(after.mean() - before.mean())


def bootstrap(
    groups: Sequence[Floats],
    statistic: Callable[..., float] = mean_of_means,
    *,
    paired: bool = False,
    seed: int = 0,
) -> Interval:
    """A statistic of groups of scores, with its 95% percentile interval.

    All seeds of training are evaluated from the same noise, so seeds and pictures are drawn anew apart from each other:
    some of the rows, and for all of them the same columns. With three seeds the interval is somewhat too narrow, as any
    bootstrap of three is.

    Args:
        groups: scores (S, B) of S seeds and B pictures each; the i-th pictures of all seeds come from the same noise.
        statistic: takes the groups; by default the mean of their means.
        paired: whether the groups, too, have the same seeds and noise, as before and after a training, or the same
            training on several prompts.
        seed: of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    point = statistic(*groups)

    def drawn() -> float:
        resampled, chosen = [], None
        for group in groups:
            if chosen is None or not paired:
                chosen = np.ix_(*(rng.integers(size, size=size) for size in group.shape))
            resampled.append(group[chosen])
        return statistic(*resampled)

    low, high = np.percentile([drawn() for _ in range(RESAMPLES)], [2.5, 97.5])
    return {"mean": point, "low": float(low), "high": float(high)}


def apart(one: Interval, other: Interval) -> bool:
    """Whether two intervals do not overlap."""
    return one["low"] > other["high"] or other["low"] > one["high"]
