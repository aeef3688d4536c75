"""Which size of micro-batch is fastest."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from agents.common import micro_batch
from agents.config import DPOKConfig
from agents.training import Training


def measured(w: Any, monkeypatch: pytest.MonkeyPatch, cost: Callable[[int], float], largest: int = 16) -> Any:
    """What is found where a call of some size takes `cost` seconds, by a clock that is slow at nothing else."""
    now = [0.0]
    monkeypatch.setattr(micro_batch.time, "perf_counter", lambda: now[0])
    denoise = w.policy.actor.denoiser.forward

    def slow(latent: torch.Tensor, *others: Any) -> torch.Tensor:
        now[0] += cost(len(latent))
        return denoise(latent, *others)

    monkeypatch.setattr(w.policy.actor.denoiser, "forward", slow)
    bank = w.env.pipeline.prompts
    shape = w.env.pipeline.latent_shape
    return micro_batch.seconds_a_transition(
        w.policy.actor, shape, bank.embeddings(bank.ids(["a cat"])), largest=largest
    )


def test_larger_is_better_where_a_call_has_a_fixed_cost(
    world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measured(world(), monkeypatch, lambda size: 1.0 + 0.1 * size)
    assert min(found, key=lambda size: found[size]) == 16
    assert found == pytest.approx({16: 2.6 / 16, 8: 1.8 / 8})  # and stops where it gets slower


def test_smaller_is_better_where_a_large_call_is_slow(
    world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measured(world(), monkeypatch, lambda size: 1.0 + 0.1 * size**3)
    assert min(found, key=lambda size: found[size]) == 2
    assert sorted(found) == [1, 2, 4, 8, 16]


def test_sizes_that_memory_does_not_hold_are_left_out(
    world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cost(size: int) -> float:
        if size > 4:
            raise torch.OutOfMemoryError
        return 1.0

    w = world()
    assert sorted(measured(w, monkeypatch, cost)) == [2, 4]
    assert all(p.grad is None for p in w.policy.parameters())


def test_the_training_uses_the_fastest(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.training.seconds_a_transition", lambda *_, largest: {largest: 2.0, 7: 1.0})
    assert Training(DPOKConfig(**settings)).algorithm.micro_batch_size == 64  # type: ignore[attr-defined]
    training = Training(DPOKConfig(**settings, measure_micro_batch=True))
    assert training.algorithm.micro_batch_size == 7  # type: ignore[attr-defined]
    assert training.iterate()["ratio_deviation"] < 1e-6
