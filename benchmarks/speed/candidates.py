"""Settings that were tried for either side, by name; `benchmarks.speed.search` trains them, the best are compared."""

from dataclasses import replace
from typing import Any

from benchmarks.speed.peer import PeerSettings

SEED = 100
"""Of the search; nothing is reported on it."""
FIRST = PeerSettings(seed=SEED)
FAST = replace(FIRST, learning_rate=3e-3)
UNGUIDED = replace(FAST, guided=False, fraction=0.5)
PEER: dict[str, PeerSettings] = {
    "first": FIRST,
    "lr_3e-4": replace(FIRST, learning_rate=3e-4),
    "lr_3e-3": FAST,
    "fraction_0.5": replace(FAST, fraction=0.5),
    "unguided": replace(FAST, guided=False),
    "unguided_fraction_0.5": UNGUIDED,
    "unguided_steps_5": replace(FAST, guided=False, steps=5),
    "unguided_two_passes": replace(UNGUIDED, inner_epochs=2),
    "unguided_six_updates": replace(UNGUIDED, train_batch=8),
    "unguided_lr_6e-3": replace(UNGUIDED, learning_rate=6e-3),
    "unguided_pictures_32": replace(UNGUIDED, pictures=32, sample_batch=32),
    "unguided_clip_1e-2": replace(UNGUIDED, clip_range=1e-2),
}
"""The peer's, by name. `first` is our own defaults, as far as the peer has the same settings."""
OUR_UNGUIDED: dict[str, Any] = {"learning_rate": 3e-3, "guided_training": False, "kl_fraction": 0.25}
OUR_LITTLE_KL: dict[str, Any] = {**OUR_UNGUIDED, "kl_weight": 0.005}
OURS: dict[str, dict[str, Any]] = {
    "ours_unguided": OUR_UNGUIDED,
    "ours_unguided_pictures_24": {**OUR_UNGUIDED, "pictures": 24},
    "ours_unguided_kl_0.01": {**OUR_UNGUIDED, "kl_weight": 0.01},
    "ours_unguided_kl_0.005": OUR_LITTLE_KL,
    "ours_lr_5e-3": {**OUR_LITTLE_KL, "learning_rate": 5e-3},
    "ours_clip_1e-2": {**OUR_LITTLE_KL, "clip_range": 1e-2},
    "ours_fraction_0.3": {**OUR_LITTLE_KL, "timestep_fraction": 0.3},
    "ours_pictures_96": {**OUR_LITTLE_KL, "pictures": 96},
    "ours_unguided_kl_0": {**OUR_UNGUIDED, "kl_weight": 0.0, "kl_fraction": 1.0},
}
"""Our own, by name: what differs from the defaults of DPOK."""

BEST_PEER = "unguided_clip_1e-2"
"""The highest score of the peer's."""
BEST_OURS = "ours_unguided_kl_0.005"
"""The highest score of ours with a KL term; without one nothing was won."""
