"""What the fast update computes is what the formulas say, computed slowly: one transition at a time, nothing saved."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from recorder import recorder

from agents.common.lora import merged_adapters
from agents.ddpo import DDPO
from agents.dpok import DPOK


def slow_gradient(w: Any, *, old: Any, reference: Any, kl_weight: float, clip_range: float) -> torch.Tensor:
    """Gradient of PPO's objective, plus a weight times the KL to a reference, over all transitions.

    `old`, the UNet that drew the pictures, and `reference` are called anew at every transition, and guidance, means and
    densities are written out.
    """
    actor, kernel = w.policy.actor, w.env.kernel
    prompts = actor.prompts
    buffer = w.buffer
    index = buffer.sample_indices(0)
    rewards = np.asarray(buffer.rew)[index].reshape(-1, w.num_steps).sum(1)
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)

    def mean(unet: Any, latent: torch.Tensor, step: int, prompt: int) -> torch.Tensor:
        t = kernel.timestep(torch.tensor([step]))
        embedding = prompts.embeddings(torch.tensor([prompt])).tokens_BLD
        conditional = unet(latent, t, encoder_hidden_states=embedding).sample
        unconditional = unet(latent, t, encoder_hidden_states=prompts.embeddings(prompts.ids([""])).tokens_BLD).sample
        return kernel.mean(unconditional + 3.0 * (conditional - unconditional), latent, torch.tensor([step]))

    loss = torch.zeros(())
    for row, i in enumerate(index):
        step = row % w.num_steps
        prompt = int(np.asarray(buffer.obs.prompt_id)[i])
        latent = torch.as_tensor(buffer.get(np.array([i]), "obs").latent)
        action = torch.as_tensor(buffer.act[np.array([i])])
        variance = kernel.sigma(torch.tensor([step])).square()
        new = mean(actor.unet, latent, step, prompt)
        with torch.no_grad():
            before, base = mean(old, latent, step, prompt), mean(reference, latent, step, prompt)
        # Densities' means over the latent; what does not depend on the mean cancels in the ratio.
        log_ratio = ((action - before).square() - (action - new).square()).div(2 * variance).mean()
        ratio = log_ratio.exp()
        advantage = float(advantages[row // w.num_steps])
        bounded = ratio.clamp(1 - clip_range, 1 + clip_range)
        loss = loss - torch.minimum(ratio * advantage, bounded * advantage)
        loss = loss + kl_weight * (new - base).square().div(2 * variance).mean()
    trained = [p for p in actor.parameters() if p.requires_grad]
    return torch.cat([g.double().flatten() for g in torch.autograd.grad(loss / len(index), trained)])


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (DDPO, {}),
        (DPOK, {"kl_weight": 0.0}),
        (DPOK, {"kl_weight": 0.5}),
        (DPOK, {"kl_weight": 0.5, "kl_reference": "rollout"}),
    ],
    ids=["ddpo", "dpok_without_kl", "dpok", "dpok_kl_to_rollout"],
)
def test_the_gradient_is_the_slow_references(
    world: Callable[..., Any], kind: Any, settings: dict[str, Any], merged: bool
) -> None:
    w = world(perturb=0.05, prompts=("a cat",))
    algorithm = kind(policy=w.policy, optim=recorder(), max_grad_norm=None, clip_range=1e-3, **settings)
    unet = w.policy.actor.unet
    with merged_adapters(unet) if merged else nullcontext():
        w.collect()
    old = copy.deepcopy(unet)
    reference = old if "kl_reference" in settings else w.env.pipeline.load_unet()
    weights = {"kl_weight": settings.get("kl_weight", 0.0), "clip_range": 1e-3}
    for moved in (False, True):
        if moved:  # as later optimizer steps find it
            for parameter in unet.parameters():
                if parameter.requires_grad:
                    parameter.data += 1e-3 * torch.randn_like(parameter)
        stats = w.update(algorithm)
        assert (stats.ratio_deviation < 1e-6) != moved
        expected = slow_gradient(w, old=old, reference=reference, **weights)
        assert (algorithm.optim._optim.gradient - expected).norm() < 1e-4 * expected.norm()


def test_the_kl_to_the_rollouts_policy_needs_no_reference(world: Callable[..., Any]) -> None:
    w = world(perturb=0.05)
    gradients = []
    for settings in ({"kl_weight": 0.0}, {"kl_weight": 0.5, "kl_reference": "rollout"}):
        algorithm = DPOK(policy=w.policy, optim=recorder(), max_grad_norm=None, **settings)
        w.collect()
        stats = w.update(algorithm)
        gradients.append(algorithm.optim._optim.gradient)
    assert algorithm.reference_outputs is None
    assert stats.kl is None  # which is the one to the pretrained model
    assert stats.kl_to_rollout is not None
    assert stats.kl_to_rollout < 1e-6
    # The KL to itself has no gradient: it holds a policy back only once it has moved.
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[0].norm()
