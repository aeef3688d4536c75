"""What the fast update computes is what the formulas say, computed slowly: one transition at a time, nothing saved."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from recorder import recorder

from agents.common.lora import merged_adapters
from agents.ddpo import DDPO
from agents.dpok import DPOK


def slow_gradient(w: Any, *, kl_weight: float, clip_range: float) -> torch.Tensor:
    """Gradient of PPO's objective, plus a weight times the KL to the pretrained UNet, over all transitions.

    The old policy is a copy of the present one, the pretrained one a newly loaded UNet; both are called anew at every
    transition, and guidance, means and densities are written out.
    """
    actor, kernel = w.policy.actor, w.env.kernel
    old, pretrained = copy.deepcopy(actor.unet), w.env.pipeline.load_unet()
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
            before, base = mean(old, latent, step, prompt), mean(pretrained, latent, step, prompt)
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
@pytest.mark.parametrize(("kind", "kl_weight"), [(DDPO, 0.0), (DPOK, 0.0), (DPOK, 0.5)])
def test_the_gradient_is_the_slow_references(
    world: Callable[..., Any], kind: Any, kl_weight: float, merged: bool
) -> None:
    w = world(perturb=0.05, prompts=("a cat",))
    if merged:
        with merged_adapters(w.policy.actor.unet):
            w.collect()
    else:
        w.collect()
    settings = {"kl_weight": kl_weight} if kind is DPOK else {}
    algorithm = kind(policy=w.policy, optim=recorder(), max_grad_norm=None, clip_range=1e-3, **settings)
    stats = w.update(algorithm)
    assert stats.gradient_steps == 1
    assert stats.ratio_deviation < 1e-6
    expected = slow_gradient(w, kl_weight=kl_weight, clip_range=1e-3)
    assert (algorithm.optim._optim.gradient - expected).norm() < 1e-4 * expected.norm()
