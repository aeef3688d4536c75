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
    "lr_1e-2": replace(FIRST, learning_rate=1e-2),
    "fraction_0.5": replace(FAST, fraction=0.5),
    "unguided": replace(FAST, guided=False),
    "unguided_fraction_0.5": UNGUIDED,
    "unguided_steps_5": replace(FAST, guided=False, steps=5),
    "unguided_two_passes": replace(UNGUIDED, inner_epochs=2),
    "unguided_pictures_32": replace(UNGUIDED, pictures=32, sample_batch=32),
    "unguided_six_updates": replace(UNGUIDED, train_batch=8),
    "unguided_clip_1e-2": replace(UNGUIDED, clip_range=1e-2),
    "unguided_lr_6e-3": replace(UNGUIDED, learning_rate=6e-3),
    "steps_5": replace(FAST, steps=5),
    "clip_1e-2": replace(FAST, clip_range=1e-2),
    "own_adapters": replace(FAST, adapters="attention", rank=4),
    "two_passes": replace(FAST, inner_epochs=2),
    "six_updates": replace(FAST, train_batch=8),
    "pictures_32": replace(FAST, pictures=32, sample_batch=32),
    "tracking": replace(FAST, tracking=96),
    "clip_1e-4": replace(FAST, clip_range=1e-4),
    "steps_20": replace(FAST, steps=20),
}
"""The peer's, by name. `first` is our own defaults, as far as the peer has the same settings; the rest was tried with
the learning rate that was found with them."""
OUR_FAST: dict[str, Any] = {"learning_rate": 3e-3}
OUR_UNGUIDED: dict[str, Any] = {**OUR_FAST, "guided_training": False, "kl_fraction": 0.25}
OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours_lr_3e-3": OUR_FAST,
    "ours_unguided": OUR_UNGUIDED,
    "ours_unguided_kl_fraction_1": {**OUR_UNGUIDED, "kl_fraction": 1.0},
    "ours_unguided_steps_5": {**OUR_UNGUIDED, "steps": 5},
    "ours_unguided_pictures_24": {**OUR_UNGUIDED, "pictures": 24},
    "ours_unguided_passes_2": {**OUR_UNGUIDED, "passes": 2},
    "ours_unguided_fraction_0.3": {**OUR_UNGUIDED, "timestep_fraction": 0.3},
    "ours_unguided_kl_0.005": {**OUR_UNGUIDED, "kl_weight": 0.005},
    "ours_unguided_kl_0.01": {**OUR_UNGUIDED, "kl_weight": 0.01},
    "ours_unguided_kl_0.05": {**OUR_UNGUIDED, "kl_weight": 0.05},
    "ours_unguided_lr_6e-3": {**OUR_UNGUIDED, "learning_rate": 6e-3},
    "ours_unguided_uniform": {**OUR_UNGUIDED, "step_weights": "uniform"},
    "ours_half_gradient": {**OUR_FAST, "unconditional_gradient": False, "kl_fraction": 0.25},
}
"""Our own, by name: what differs from the defaults of DPOK."""

BEST_PEER = "unguided_fraction_0.5"
"""The highest score of the peer's."""
BEST_OURS = "ours_unguided_kl_0.01"
"""Less KL weight scores higher still, but leaves the pretrained model further behind than the peer does."""
