"""How far an iteration raises a process's peak memory, by the number of pictures."""

from typing import Any

from agents.config import PolicyGradientConfig
from benchmarks.speed.overhead import settings
from benchmarks.speed.parts import alone
from benchmarks.speed.plan import Plan

MIB = 2**20
ITERATIONS = 2


def rise(config: PolicyGradientConfig) -> dict[str, Any]:
    """Peak memory after two iterations minus that before the first, and what the buffer stores, in MiB.

    Call it in a process of its own that a small one started: a process inherits its parent's peak.
    """
    from agents.training import Training
    from benchmarks.buffer_memory import peak

    training = Training(config)
    before = peak()
    for _ in range(ITERATIONS):
        training.iterate()
    return {
        "pictures": config.pictures,
        "before_mib": before / MIB,
        "rise_mib": (peak() - before) / MIB,
        "stored_mib": training.buffer.nbytes() / MIB,
    }


def measure(plan: Plan) -> dict[str, Any]:
    """The rise for the least and the most pictures, with steps enough to fill the update's micro-batches either way."""
    few, many = (
        alone(rise, settings(plan, pictures=pictures)) for pictures in (plan.many_pictures[0], plan.many_pictures[-1])
    )
    return compare(few, many)


def compare(few: dict[str, Any], many: dict[str, Any]) -> dict[str, Any]:
    """How much further the peak rises with many pictures, and how much more is stored."""
    return {
        "few": few,
        "many": many,
        "growth_mib": many["rise_mib"] - few["rise_mib"],
        "growth_of_stored_mib": many["stored_mib"] - few["stored_mib"],
    }
