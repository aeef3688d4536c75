"""Settings that the benchmarks of trainings share; on which prompts and seeds they were chosen is in the README."""

from typing import Any

POLICY_GRADIENT: dict[str, Any] = {"guided_training": False, "learning_rate": 3e-3}
"""What all agents that follow a policy gradient differ in from their defaults."""
DPOK: dict[str, Any] = {**POLICY_GRADIENT, "kl_weight": 0.03, "kl_fraction": 0.5}
