"""Work that is left out: the gradient is that of doing it all, or an unbiased estimate of it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from recorder import recorder

from agents.ddpo import DDPO
from agents.dpok import DPOK


def make(kind: Any, w: Any, **settings: Any) -> Any:
    return kind(policy=w.policy, optim=recorder(), max_grad_norm=None, **settings)


def gradient(w: Any, algorithm: Any, seed: int = 0) -> torch.Tensor:
    """The gradient of the one optimizer step of an update."""
    assert w.update(algorithm, seed=seed).gradient_steps == 1
    return algorithm.optim._optim.gradient


def rows_with_gradient(w: Any) -> list[int]:
    """Counts, from now on, the latents that go through the UNet with a gradient."""
    seen: list[int] = []
    w.policy.actor.unet.register_forward_pre_hook(
        lambda _, args: seen.append(len(args[0])) if torch.is_grad_enabled() else None
    )
    return seen


def with_zeros(algorithm: Any, share: float) -> Any:
    """Its advantages, but some of them 0."""
    prepare = algorithm._prepare

    def prepare_with_zeros(rollout: Any, rows: Any) -> Any:
        advantage_I = prepare(rollout, rows)
        advantage_I[: round(share * len(advantage_I))] = 0.0
        return advantage_I

    algorithm._prepare = prepare_with_zeros
    return algorithm


def do_all(algorithm: Any) -> Any:
    """It, leaving nothing out."""
    algorithm._contributes = lambda rows, advantage_B: np.ones(len(rows), dtype=np.bool_)
    return algorithm


@pytest.mark.parametrize("kind", ["importance", "score", "without_kl", "with_kl"])
def test_transitions_without_advantage_are_skipped_and_the_gradient_is_the_same(
    world: Callable[..., Any], kind: str
) -> None:
    def algorithm() -> Any:
        if kind in ("importance", "score"):
            return with_zeros(make(DDPO, w, estimator=kind), 0.5)
        return with_zeros(make(DPOK, w, kl_weight=0.0 if kind == "without_kl" else 0.5), 0.5)

    w = world(perturb=0.02)
    w.collect()
    seen = rows_with_gradient(w)
    expected = gradient(w, do_all(algorithm()))
    whole = sum(seen)
    seen.clear()
    skipping = algorithm()
    found = gradient(w, skipping)
    assert (found - expected).norm() / expected.norm() < 1e-4  # float32: sums in another order
    assert sum(seen) == (whole if kind == "with_kl" else whole // 2)  # a KL has a gradient without any advantage


def test_an_update_that_teaches_nothing_makes_a_step_with_gradient_0(world: Callable[..., Any]) -> None:
    w = world()
    w.collect()
    seen = rows_with_gradient(w)
    algorithm = with_zeros(make(DDPO, w), 1.0)
    assert not gradient(w, algorithm).any()
    assert sum(seen) == 2  # one transition, both halves of the guidance
    assert w.update(algorithm).skipped_fraction == 1.0


def test_the_skipped_share_is_told(world: Callable[..., Any]) -> None:
    w = world()
    w.collect()
    assert w.update(with_zeros(make(DDPO, w), 0.25)).skipped_fraction == pytest.approx(0.25)
    assert w.update(with_zeros(make(DPOK, w), 0.25)).skipped_fraction == 0.0


@pytest.mark.parametrize("kl_form", ["exact", "unweighted"])
def test_the_kl_on_a_part_of_the_transitions_is_unbiased(world: Callable[..., Any], kl_form: Any) -> None:
    w = world(perturb=0.05)
    w.collect()

    def dpok(fraction: float) -> Any:
        return make(DPOK, w, reward_weight=0.0, kl_weight=1.0, kl_form=kl_form, kl_fraction=fraction)

    whole = gradient(w, dpok(1.0))
    parts = torch.stack([gradient(w, dpok(0.25), seed=seed) for seed in range(60)])
    error = (parts.mean(0) - whole).norm() / whole.norm()
    spread = (parts - parts.mean(0)).norm(dim=1).mean() / whole.norm()
    assert error < 3 * spread / 60**0.5
    assert spread > 0.1


def test_the_reference_is_asked_about_that_part_alone(world: Callable[..., Any]) -> None:
    w = world()
    w.collect()
    total = w.env.num_envs * w.num_steps
    for fraction, count in [(1.0, total), (0.5, total // 2), (0.01, 1)]:
        algorithm = make(DPOK, w, kl_fraction=fraction)
        stats = w.update(algorithm)
        assert algorithm.reference_outputs.computed == count
        assert stats.kl is not None


@pytest.mark.parametrize("fraction", [0.0, 1.5, -1.0])
def test_a_fraction_out_of_range_is_named(world: Callable[..., Any], fraction: float) -> None:
    with pytest.raises(ValueError, match="kl_fraction"):
        make(DPOK, world(), kl_fraction=fraction)


def test_micro_batches_without_a_compared_transition_change_nothing(world: Callable[..., Any]) -> None:
    w = world(perturb=0.05)
    w.collect()
    settings = {"kl_weight": 1.0, "kl_fraction": 0.25}
    whole, single = (gradient(w, make(DPOK, w, **settings, micro_batch_size=size)) for size in (12, 1))
    assert (whole - single).norm() < 1e-4 * whole.norm()
