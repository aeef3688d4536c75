"""Reward-weighted supervised fine-tuning on the tiny model."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from recorder import recorder

from agents.common.optim import adamw
from agents.sft import RewardWeightedSFT

MakeWorld = Callable[..., Any]


def gradient(w: Any, **settings: Any) -> torch.Tensor:
    """The gradient of one step on a rollout's pictures, with the same draws each time."""
    algorithm = RewardWeightedSFT(
        policy=w.policy,
        pipeline=w.env.pipeline,
        optim=recorder(),
        max_grad_norm=None,
        **settings,
    )
    torch.manual_seed(7)
    stats = w.update(algorithm)
    assert stats.gradient_steps == 1
    return algorithm.optim._optim.gradient  # type: ignore[attr-defined]


def test_gradient_is_that_of_the_weighted_denoising_loss(world: MakeWorld) -> None:
    w = world(perturb=0.02)
    w.collect()
    found = gradient(w, weighting="best")
    np.random.seed(0)  # noqa: NPY002
    order = np.random.permutation(w.env.num_envs)  # noqa: NPY002
    rewards = np.asarray(w.buffer.rew).reshape(-1, w.num_steps).sum(1)
    last = w.buffer[:].act[w.num_steps - 1 :: w.num_steps]
    texts = [w.env.pipeline.prompts.text(int(i)) for i in w.buffer[:].obs.prompt_id[:: w.num_steps]]
    best = {max((i for i, t in enumerate(texts) if t == text), key=lambda i: rewards[i]) for text in texts}
    torch.manual_seed(7)
    timestep = torch.randint(1000, (len(order),))
    noise = torch.randn(len(order), *last.shape[1:])
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square()
    abar = (1 - beta).cumprod(0)[timestep].view(-1, 1, 1, 1)
    latent = abar.sqrt() * torch.as_tensor(last[order]) + (1 - abar).sqrt() * noise
    embedding = w.env.pipeline.prompts.embeddings(w.env.pipeline.prompts.ids([texts[i] for i in order]))
    output = w.policy.actor.unet(latent, timestep, encoder_hidden_states=embedding.tokens_BLD, return_dict=False)[0]
    chosen = torch.tensor([float(i in best) for i in order])
    loss = (chosen / chosen.mean() * (output - noise).square().flatten(1).mean(1)).mean()
    parameters = [p for p in w.policy.parameters() if p.requires_grad]
    expected = torch.cat([g.double().flatten() for g in torch.autograd.grad(loss, parameters)])
    assert (found - expected).norm() / expected.norm() < 1e-4


def test_micro_batches_change_nothing(world: MakeWorld) -> None:
    w = world(perturb=0.02)
    w.collect()
    whole, parts = gradient(w, micro_batch_size=4), gradient(w, micro_batch_size=3)
    assert (whole - parts).norm() / whole.norm() < 1e-5


def test_regularisers(world: MakeWorld) -> None:
    w = world(perturb=0.02)
    w.collect()
    plain, every = gradient(w, weighting="best"), gradient(w, weighting="softmax", temperature=1e9)
    kl_d = gradient(w, weighting="best", regulariser="kl-d", regulariser_weight=2.0)
    assert (kl_d - (plain + 2.0 * every)).norm() / kl_d.norm() < 1e-4  # a constant added to every weight
    kl_o = gradient(w, weighting="best", regulariser="kl-o", regulariser_weight=2.0)
    assert (kl_o - plain).norm() / plain.norm() > 1e-3
    untrained = world()
    untrained.collect()
    same = gradient(untrained, weighting="best", regulariser="kl-o", regulariser_weight=2.0)
    base = gradient(untrained, weighting="best")
    assert (same - base).norm() / base.norm() < 1e-5  # at the pretrained model the distance is least


def test_the_distance_to_the_pretrained_model_counts_without_adapters_too(world: MakeWorld) -> None:
    w = world(lora=False)
    w.collect()
    settings = {"policy": w.policy, "pipeline": w.env.pipeline, "optim": recorder(), "max_grad_norm": None}
    algorithms = [RewardWeightedSFT(**settings, regulariser="kl-o", regulariser_weight=weight) for weight in (0.0, 2.0)]
    for parameter in w.policy.actor.unet.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    found = []
    for algorithm in algorithms:
        torch.manual_seed(7)
        w.update(algorithm)
        found.append(algorithm.optim._optim.gradient)
    assert (found[1] - found[0]).norm() / found[0].norm() > 1e-3


def test_pretraining_pictures_enter_with_their_weight(world: MakeWorld) -> None:
    w = world(perturb=0.02)
    w.collect()
    pictures = torch.zeros(2, *w.env.pipeline.latent_shape), ["a cat", "a dog"]
    with_none = gradient(w, pretraining=pictures, pretraining_weight=0.0)
    with_some = gradient(w, pretraining=pictures, pretraining_weight=1.0)
    twice = gradient(w, pretraining=pictures, pretraining_weight=2.0)
    assert (with_some - with_none).norm() / with_none.norm() > 1e-2
    assert (twice + with_none - 2 * with_some).norm() / with_some.norm() < 1e-4


def test_a_pool_is_gathered_first_and_then_kept(world: MakeWorld) -> None:
    w = world()
    algorithm = RewardWeightedSFT(policy=w.policy, pipeline=w.env.pipeline, optim=adamw(lr=1e-3), pool=8)
    steps = []
    for seed in range(3):
        w.collect(seed)
        assert algorithm.wants_pictures == (seed < 2)
        steps.append(w.update(algorithm, batch_size=4).gradient_steps)
        w.buffer.reset()
    assert steps == [0, 2, 2]


def test_wrong_arguments_are_named(world: MakeWorld) -> None:
    w = world()
    for name in ("weighting", "regulariser"):
        with pytest.raises(ValueError, match=name):
            RewardWeightedSFT(policy=w.policy, pipeline=w.env.pipeline, optim=adamw(lr=1.0), **{name: "other"})
