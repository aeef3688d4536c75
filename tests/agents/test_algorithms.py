"""DDPO and DPOK on the tiny model: ratios, accumulation, KL."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from recorder import recorder

from agents.common.advantages import PerPromptStatistics
from agents.common.critic import LatentCritic
from agents.common.optim import adamw
from agents.common.rollout import Rollout, chunks
from agents.ddpo import DDPO
from agents.dpok import DPOK

MakeWorld = Callable[..., Any]


def gradient(w: Any, algorithm: Any, **settings: Any) -> torch.Tensor:
    """The gradient that the one optimizer step of an update got, all parameters in one vector."""
    stats = w.update(algorithm, **settings)
    assert stats.gradient_steps == algorithm.optim._optim.steps == 1
    return algorithm.optim._optim.gradient


@pytest.mark.parametrize("micro", [1, 2, 3, 5, 12])
def test_ratio_is_one_before_the_first_update(world: MakeWorld, micro: int) -> None:
    w = world(perturb=0.02)
    w.collect()
    stats = w.update(DDPO(policy=w.policy, optim=adamw(lr=1e-3), micro_batch_size=micro), batch_size=4)
    assert stats.ratio_deviation < 1e-6
    assert stats.gradient_steps == 3


def test_ratio_is_one_with_a_bfloat16_unet_in_the_rollouts_geometry(world: MakeWorld) -> None:
    w = world(perturb=0.02, dtype="bfloat16")
    w.collect()
    rollout = Rollout(w.buffer, w.policy.actor)
    for step in range(w.num_steps):  # one denoising step of all slots, as the rollout ran it
        t = rollout.gather(np.flatnonzero(rollout.step_I == step))
        with torch.no_grad():
            mean, _ = w.policy.actor.mean_and_output(t.latent_BCHW, t.step_B, t.embedding)
        log_prob = w.policy.actor.kernel.log_prob(t.action_BCHW, mean, t.step_B)
        assert log_prob.dtype == t.log_prob_B.dtype == torch.float32
        assert (torch.exp(log_prob - t.log_prob_B) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("algorithm", [DDPO, DPOK])
def test_accumulation_is_exact(world: MakeWorld, algorithm: Any) -> None:
    w = world(perturb=0.02, num_envs=2, num_steps=10)
    gradients = []
    for micro in (1, 4, 20):
        w.collect()
        gradients.append(
            gradient(w, algorithm(policy=w.policy, optim=recorder(), micro_batch_size=micro, max_grad_norm=None))
        )
    for other in gradients[:2]:
        assert (other - gradients[2]).norm() / gradients[2].norm() < 1e-5


def test_clipping_limits_the_gradient_of_the_whole_minibatch(world: MakeWorld) -> None:
    w = world(perturb=0.02)
    w.collect()
    clipped = gradient(w, DDPO(policy=w.policy, optim=recorder(), micro_batch_size=4, max_grad_norm=1e-3))
    assert clipped.norm() == pytest.approx(1e-3, rel=1e-3)


def test_score_function_equals_importance_sampling_at_the_first_step(world: MakeWorld) -> None:
    w = world(perturb=0.02)
    found = []
    for estimator in ("score", "importance"):
        w.collect()
        algorithm = DDPO(policy=w.policy, optim=recorder(), estimator=estimator, max_grad_norm=None)
        found.append(gradient(w, algorithm))
    assert (found[0] - found[1]).norm() / found[0].norm() < 1e-5


def test_equal_noise_gives_every_step_a_score_of_the_same_spread(world: MakeWorld) -> None:
    w = world(num_steps=10)
    kernel, generator = w.env.kernel, torch.Generator().manual_seed(0)
    plain = DDPO(policy=w.policy, optim=recorder())
    equal = DDPO(policy=w.policy, optim=recorder(), step_weights="equal_noise")
    spread = []
    for step in range(10):
        step_B = torch.full((512,), step)
        latent = torch.randn(512, *w.env.pipeline.latent_shape, generator=generator)
        output = torch.randn(latent.shape, generator=generator).requires_grad_()
        mean = kernel.mean(output, latent, step_B)
        action = kernel.sample(mean.detach(), torch.randn(latent.shape, generator=generator), step_B)
        kernel.log_prob(action, mean, step_B, reduction="sum").sum().backward()
        assert output.grad is not None
        spread.append(float(output.grad.std()))
    assert plain.step_weight_T().tolist() == [1.0] * 10
    assert max(spread) > 5 * np.median(spread)
    weighted = equal.step_weight_T() * spread
    assert weighted.max() / weighted.min() < 1.03
    assert equal.step_weight_T().mean() == pytest.approx(1.0)


def test_step_weights_multiply_the_steps_gradients(world: MakeWorld) -> None:
    w = world(perturb=0.02)
    w.collect()
    algorithm = DDPO(policy=w.policy, optim=recorder(), step_weights="equal_noise", max_grad_norm=None)
    found = gradient(w, algorithm)
    rollout = Rollout(w.buffer, w.policy.actor)
    advantage = algorithm._prepare(rollout, np.arange(len(rollout)))
    t = rollout.gather(np.arange(len(rollout)))
    mean, _ = w.policy.actor.mean_and_output(t.latent_BCHW, t.step_B, t.embedding)
    log_prob = w.policy.actor.kernel.log_prob(t.action_BCHW, mean, t.step_B)
    weight = torch.from_numpy(advantage * algorithm.step_weight_T()[rollout.step_I]).float()
    parameters = [p for p in w.policy.parameters() if p.requires_grad]
    plain = torch.autograd.grad(-(weight * log_prob).mean(), parameters)
    expected = torch.cat([g.double().flatten() for g in plain])
    assert (found - expected).norm() / expected.norm() < 1e-4


def test_one_odd_reward_among_equals_does_not_take_the_whole_gradient(world: MakeWorld) -> None:
    w = world()
    w.collect()
    dpok = DPOK(policy=w.policy, optim=recorder(), statistics=PerPromptStatistics(size=2, min_count=1))
    rollout = Rollout(w.buffer, w.policy.actor)
    rollout.reward_E = np.array([0.5, 1.0, 1.0, 1.0])  # the odd one is no longer among the last two of any prompt
    rollout.prompts = lambda: ["a cat"] * 4  # type: ignore[method-assign]
    advantage = dpok._prepare(rollout, np.arange(len(rollout)))
    assert advantage.min() == -5.0
    assert advantage.max() == 0.0


def test_dpok_without_kl_is_plain_policy_gradient(world: MakeWorld) -> None:
    w = world(perturb=0.02)
    w.collect()
    dpok = DPOK(policy=w.policy, optim=recorder(), kl_weight=0.0, normalise=False, max_grad_norm=None)
    assert dpok.reference_outputs is None
    found = gradient(w, dpok)
    rollout = Rollout(w.buffer, w.policy.actor)
    t = rollout.gather(np.arange(len(rollout)))
    mean, _ = w.policy.actor.mean_and_output(t.latent_BCHW, t.step_B, t.embedding)
    log_prob = w.policy.actor.kernel.log_prob(t.action_BCHW, mean, t.step_B)
    reward = torch.as_tensor(np.repeat(rollout.reward_E, w.num_steps), dtype=torch.float32)
    parameters = [p for p in w.policy.parameters() if p.requires_grad]
    plain = torch.autograd.grad(-(reward * log_prob).mean(), parameters)
    expected = torch.cat([g.double().flatten() for g in plain])
    assert (found - expected).norm() / expected.norm() < 1e-4


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_logged_kl_equals_the_one_computed_by_hand(world: MakeWorld, reduction: str) -> None:
    w = world(perturb=0.05, reduction=reduction)
    w.collect()
    stats = w.update(DPOK(policy=w.policy, optim=adamw(lr=1e-9), kl_weight=0.1), batch_size=None)
    actor, kernel = w.policy.actor, w.env.kernel
    rollout = Rollout(w.buffer, actor)
    t = rollout.gather(np.arange(len(rollout)))
    with torch.no_grad():
        output = actor.denoiser(t.latent_BCHW, kernel.timestep(t.step_B), t.embedding)
        actor.unet.disable_adapters()
        base = actor.denoiser(t.latent_BCHW, kernel.timestep(t.step_B), t.embedding)
        actor.unet.enable_adapters()
    # |mean - mean'|^2 / (2 sigma^2), from the coefficients of the two model outputs
    k = t.step_B
    shift = kernel.mean_output_T[k].view(-1, 1, 1, 1) * (output - base)
    by_hand = (shift / kernel.sigma_T[k].view(-1, 1, 1, 1)).square().flatten(1).sum(1) / 2
    per_picture = by_hand.view(-1, w.num_steps).sum(1).mean()
    assert per_picture > 0.01
    assert stats.kl == pytest.approx(float(per_picture), rel=1e-4)


def test_unweighted_kl_is_the_difference_of_the_outputs(world: MakeWorld) -> None:
    w = world(perturb=0.05)
    w.collect()
    quiet = {"policy": w.policy, "optim": recorder(), "reward_weight": 0.0, "max_grad_norm": None, "kl_weight": 1.0}
    exact = gradient(w, DPOK(**quiet))
    algorithm = DPOK(**quiet, kl_form="unweighted")
    found = gradient(w, algorithm)
    assert (exact - found).norm() / found.norm() > 0.1  # another weighting of the steps
    rollout = Rollout(w.buffer, w.policy.actor)
    t = rollout.gather(np.arange(len(rollout)))
    _, output = w.policy.actor.mean_and_output(t.latent_BCHW, t.step_B, t.embedding)
    base = algorithm.reference_outputs.get(rollout.index_I, output.device)
    parameters = [p for p in w.policy.parameters() if p.requires_grad]
    expected = torch.autograd.grad((output - base).square().mean(), parameters)
    vector = torch.cat([g.double().flatten() for g in expected])
    assert (found - vector).norm() / vector.norm() < 1e-4


def test_a_very_large_kl_weight_stays_at_the_base_model(world: MakeWorld) -> None:
    moved = []
    for kl_weight in (0.0, 1e6):
        w = world()
        algorithm = DPOK(policy=w.policy, optim=adamw(lr=1e-3), kl_weight=kl_weight, max_grad_norm=None)
        for iteration in range(6):
            w.collect(iteration)
            w.update(algorithm, batch_size=6, repeat=2, seed=iteration)
            w.buffer.reset()
        w.collect(100)
        rollout = Rollout(w.buffer, w.policy.actor)
        t = rollout.gather(np.arange(len(rollout)))
        with torch.no_grad():
            mean, _ = w.policy.actor.mean_and_output(t.latent_BCHW, t.step_B, t.embedding)
            w.policy.actor.unet.disable_adapters()
            base, _ = w.policy.actor.mean_and_output(t.latent_BCHW, t.step_B, t.embedding)
            w.policy.actor.unet.enable_adapters()
        moved.append(float(w.env.kernel.kl_divergence(mean, base, t.step_B, reduction="sum").mean()))
    assert moved[1] < 0.05 * moved[0]  # not 0: AdamW steps by its learning rate however small the gradient


def test_reference_is_computed_once_for_a_stored_transition(world: MakeWorld) -> None:
    w = world(rollouts=2)
    algorithm = DPOK(policy=w.policy, optim=adamw(lr=1e-3), kl_weight=0.1, micro_batch_size=5)
    size = w.env.num_envs * w.num_steps
    for iteration in range(3):
        w.collect(iteration)
        w.update(algorithm, batch_size=4, repeat=3)
        w.buffer.reset(keep_statistics=True)  # as the trainer does
        assert len(w.buffer) == min(iteration + 1, 2) * size
        assert algorithm.reference_outputs.computed == (iteration + 1) * size


def test_old_rollouts_enter_the_statistics_once(world: MakeWorld) -> None:
    w = world(rollouts=2, prompts=("a cat",))
    algorithm = DPOK(policy=w.policy, optim=adamw(lr=1e-4))
    for iteration in range(3):
        w.collect(iteration)
        w.update(algorithm)
    assert len(algorithm.statistics.state_dict()["a cat"]) == 3 * w.env.num_envs


def test_clamped_ratio_has_no_gradient_outside_the_band(world: MakeWorld) -> None:
    w = world(perturb=0.02)
    w.collect()
    w.buffer.policy.log_prob[:] -= 1.0  # ratio e, far outside
    settings: dict[str, Any] = {"policy": w.policy, "kl_weight": 0.0, "max_grad_norm": None}
    assert gradient(w, DPOK(ratio_form="clamped", optim=recorder(), **settings)).norm() == 0
    assert gradient(w, DPOK(ratio_form="ppo", optim=recorder(), **settings)).norm() > 0


def test_timestep_subsets_are_unbiased(world: MakeWorld) -> None:
    w = world(perturb=0.02)
    w.collect()

    def score(fraction: float) -> DDPO:
        return DDPO(
            policy=w.policy, optim=recorder(), estimator="score", timestep_fraction=fraction, max_grad_norm=None
        )

    whole = gradient(w, score(1.0))
    rollout = Rollout(w.buffer, w.policy.actor)
    rows = rollout.choose(1 / 3)
    assert sorted(rollout.episode(rows).tolist()) == list(range(w.env.num_envs))
    parts = torch.stack([gradient(w, score(1 / 3), seed=seed) for seed in range(60)])
    error = (parts.mean(0) - whole).norm() / whole.norm()
    spread = (parts - parts.mean(0)).norm(dim=1).mean() / whole.norm()
    assert error < 3 * spread / 60**0.5
    assert spread > 0.1


def test_critic_fits_the_reward_and_is_the_baseline(world: MakeWorld) -> None:
    w = world()
    critic = LatentCritic(w.policy.actor, latent_shape=w.env.pipeline.latent_shape, hidden=16)
    algorithm = DPOK(policy=w.policy, optim=adamw(lr=1e-6), critic=critic, critic_optim=adamw(lr=1e-2), normalise=False)
    w.collect()
    losses = [w.update(algorithm).value_loss for _ in range(10)]
    assert losses[-1] < 0.2 * losses[0]
    rollout = Rollout(w.buffer, w.policy.actor)
    rows = np.arange(len(rollout))
    advantage = algorithm._prepare(rollout, rows)
    residual = np.repeat(rollout.reward_E, w.num_steps) - algorithm._values(rollout, rows)
    np.testing.assert_allclose(advantage, residual)


def test_full_fine_tuning_keeps_a_frozen_reference(world: MakeWorld) -> None:
    w = world(lora=False)
    algorithm = DPOK(policy=w.policy, optim=adamw(lr=1e-3), kl_weight=0.1)
    w.collect()
    assert w.update(algorithm, batch_size=None).kl == pytest.approx(0.0, abs=1e-6)
    assert w.update(algorithm, batch_size=None).kl > 1e-4
    trained = {id(p) for group in algorithm.optim._optim.param_groups for p in group["params"]}
    assert trained == {id(p) for p in w.policy.parameters()}


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda w: DDPO(policy=w.policy, optim=recorder(), clip_range=0), "clip_range"),
        (lambda w: DDPO(policy=w.policy, optim=recorder(), timestep_fraction=0), "timestep_fraction"),
        (lambda w: DDPO(policy=w.policy, optim=recorder(), estimator="other"), "estimator"),
        (lambda w: DPOK(policy=w.policy, optim=recorder(), kl_form="other"), "kl_form"),
        (lambda w: DPOK(policy=w.policy, optim=recorder(), kl_weight=-1), "kl_weight"),
        (lambda w: DPOK(policy=w.policy, optim=recorder(), critic_optim=recorder()), "critic"),
    ],
)
def test_wrong_arguments_are_named(world: MakeWorld, make: Any, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        make(world())


def test_score_function_refuses_several_steps(world: MakeWorld) -> None:
    w = world()
    w.collect()
    with pytest.raises(ValueError, match="score"):
        w.update(DDPO(policy=w.policy, optim=recorder(), estimator="score"), repeat=2)


def test_chunks_cover_everything_once() -> None:
    parts = chunks(np.arange(10), 4)
    assert [len(part) for part in parts] == [4, 4, 2]
    assert np.concatenate(parts).tolist() == list(range(10))
