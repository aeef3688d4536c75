"""Which size of micro-batch is fastest."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from recorder import recorder

from agents.common import micro_batch
from agents.common.algorithm import DenoisingAlgorithm
from agents.config import DPOKConfig, SFTConfig
from agents.ddpo import DDPO
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
    algorithm = DDPO(policy=w.policy, optim=recorder())
    return micro_batch.seconds_a_transition(algorithm, shape, bank.embeddings(bank.ids(["a cat"])), largest=largest)


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


def test_the_first_pass_of_a_size_is_not_timed(world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[int] = Counter()

    def cost(size: int) -> float:
        seen[size] += 1
        return 1.0 if seen[size] == 1 else 4.0 + seen[size]

    found = measured(world(), monkeypatch, cost)
    assert found == pytest.approx({16: 6.0 / 16, 8: 6.0 / 8})
    assert seen == {16: 3, 8: 3}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
)
def test_sizes_that_memory_does_not_hold_are_left_out(
    world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def cost(size: int) -> float:
        if size > 4:
            raise error
        return 1.0

    w = world()
    assert sorted(measured(w, monkeypatch, cost)) == [2, 4]
    assert all(p.grad is None for p in w.policy.parameters())


def test_other_errors_are_not_hidden(world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def cost(size: int) -> float:
        raise RuntimeError("a bug" if size == 16 else "out of memory")

    with pytest.raises(RuntimeError, match="a bug"):
        measured(world(), monkeypatch, cost)
    with pytest.raises(RuntimeError, match="out of memory"):
        measured(world(), monkeypatch, cost, largest=8)


@pytest.mark.parametrize(
    ("config", "calls"),
    [
        (DPOKConfig, [16]),  # guidance doubles the rows
        (SFTConfig, [8]),
        (partial(SFTConfig, regulariser="kl-o"), [8, 8]),
    ],
    ids=["dpok", "sft", "sft_kl_o"],
)
def test_what_is_timed_is_what_an_update_calls(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, config: Any, calls: list[int]
) -> None:
    training = Training(config(**settings, guidance_scale=3.0))
    assert isinstance(training.algorithm, DenoisingAlgorithm)
    bank, rows = training.pipeline.prompts, []
    training.policy.actor.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    monkeypatch.setattr(micro_batch.time, "perf_counter", lambda: float(len(rows)))
    found = micro_batch.seconds_a_transition(
        training.algorithm, training.pipeline.latent_shape, bank.embeddings(bank.ids(["a cat"])), largest=8, repeats=1
    )
    assert rows[: 2 * len(calls)] == 2 * calls
    assert found[8] == len(calls) / 8


def test_the_training_uses_the_fastest(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.training.seconds_a_transition", lambda *_, largest: {largest: 2.0, 7: 1.0})
    assert Training(DPOKConfig(**settings)).algorithm.micro_batch_size == 64  # type: ignore[attr-defined]
    training = Training(DPOKConfig(**settings, measure_micro_batch=True))
    assert training.algorithm.micro_batch_size == 7  # type: ignore[attr-defined]
    assert training.iterate()["ratio_deviation"] < 1e-6
