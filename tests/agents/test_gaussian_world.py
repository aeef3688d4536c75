"""Gradients against finite differences where everything is known: a diffusion model of a one-dimensional Gaussian."""

import copy
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from recorder import recorder
from tianshou.data import Batch
from tianshou.utils.torch_utils import policy_within_training_step
from torch import Tensor, nn

from agents.common.actor import DenoisingActor
from agents.common.buffer import LatentReplayBuffer
from agents.common.critic import LatentCritic
from agents.common.policy import DenoisingPolicy
from agents.ddpo import DDPO
from agents.dpok import DPOK
from diffusion_gym.kernels import make_kernel

MEAN, SPREAD, T = 0.5, 0.7, 6
CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}
ALPHA_BAR = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()).cumprod(0)


class GaussianDenoiser(nn.Module):
    """The exact noise prediction for data Normal(MEAN + shift, SPREAD^2)."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))

    def forward(self, latent: Tensor, timestep: Tensor, embedding: Any) -> Tensor:
        return predict_noise(latent, timestep, self.shift)


def predict_noise(latent: Tensor, timestep: Tensor, shift: Tensor) -> Tensor:
    abar = ALPHA_BAR[timestep].to(latent.dtype).view(-1, 1, 1, 1)
    centred = latent - abar.sqrt() * (MEAN + shift)
    return centred * (1 - abar).sqrt() / (abar * SPREAD**2 + 1 - abar)


def reward(x0: Tensor) -> Tensor:
    return -(x0 - 1.5).square()


@dataclass
class Rollouts:
    policy: DenoisingPolicy
    buffer: LatentReplayBuffer
    kernel: Any

    def gradient(self, algorithm: Any) -> float:
        with policy_within_training_step(self.policy):
            algorithm.update(buffer=self.buffer, batch_size=None, repeat=1)
        return float(algorithm.optim._optim.gradient)

    def stored(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Latents, actions, steps, log-probabilities and final rewards of all transitions, float64."""
        index = self.buffer.sample_indices(0)
        final = torch.as_tensor(self.buffer.rew[index]).view(-1, T).sum(1).repeat_interleave(T)
        return (
            torch.as_tensor(self.buffer.latents(index)).double(),
            torch.as_tensor(self.buffer.act[index]).double(),
            torch.as_tensor(self.buffer.obs.step[index]),
            torch.as_tensor(self.buffer.policy.log_prob[index]).double(),
            final,
        )


def roll_out(episodes: int, shift: float = 0.0, baseline: float = 0.0, seed: int = 0) -> Rollouts:
    """Episodes of the policy with `shift`, with reward minus `baseline`."""
    torch.manual_seed(seed)
    kernel = make_kernel("ddim", CONFIG, T)
    actor = DenoisingActor(GaussianDenoiser(shift), kernel, None)
    policy = DenoisingPolicy(actor=actor, action_space=gymnasium.spaces.Box(-9, 9, (1, 1, 1)))
    buffer = LatentReplayBuffer(num_envs=episodes, num_steps=T)
    latent = torch.randn(episodes, 1, 1, 1)
    for k in range(T):
        obs = Batch(latent=latent, step=np.full(episodes, k), prompt_id=np.zeros(episodes, dtype=np.int64))
        with torch.no_grad():
            result = policy(Batch(obs=obs, info=Batch()))
        last = k == T - 1
        rewards = (reward(result.act).flatten().double() - baseline).numpy() if last else np.zeros(episodes)
        done, never = np.full(episodes, last), np.zeros(episodes, dtype=bool)
        buffer.add(
            Batch(
                obs=obs,
                act=result.act.numpy(),
                rew=rewards,
                terminated=done,
                truncated=never,
                obs_next=obs,
                info=Batch(),
                policy=result.policy,
            )
        )
        latent = result.act
    return Rollouts(policy=policy, buffer=buffer, kernel=kernel)


def mean_of(r: Rollouts, latent: Tensor, step: Tensor, shift: Tensor) -> Tensor:
    return r.kernel.mean(predict_noise(latent, r.kernel.timestep(step), shift), latent, step)


def central_difference(loss: Any, at: float, h: float = 1e-4) -> float:
    high, low = (loss(torch.tensor(at + sign * h, dtype=torch.float64)) for sign in (1, -1))
    return float((high - low) / (2 * h))


@pytest.mark.parametrize("ratio_form", ["ppo", "clamped"])
@pytest.mark.parametrize("kl_form", ["exact", "unweighted"])
def test_dpok_gradient_equals_finite_differences_of_its_loss(ratio_form: Any, kl_form: Any) -> None:
    r = roll_out(50)
    algorithm = DPOK(
        policy=r.policy,
        optim=recorder(),
        reward_weight=2.0,
        kl_weight=0.3,
        kl_form=kl_form,
        ratio_form=ratio_form,
        normalise=False,
        clip_range=0.2,
        max_grad_norm=None,
    )
    at = 0.1
    with torch.no_grad():
        r.policy.actor.denoiser.shift.fill_(at)  # the rollout's policy and the reference have 0
    found = r.gradient(algorithm)
    latent, action, step, old, final = r.stored()

    def loss(shift: Tensor) -> Tensor:
        timestep = r.kernel.timestep(step)
        mean = mean_of(r, latent, step, shift)
        sigma = r.kernel.sigma(step).double()
        ratio = torch.exp(torch.distributions.Normal(mean, sigma).log_prob(action).flatten() - old)
        clipped = -2.0 * final * ratio.clamp(0.8, 1.2)
        policy_loss = torch.maximum(-2.0 * final * ratio, clipped) if ratio_form == "ppo" else clipped
        base = torch.zeros((), dtype=torch.float64)
        if kl_form == "exact":
            kl = ((mean - mean_of(r, latent, step, base)) / sigma).square().flatten() / 2
        else:
            kl = (predict_noise(latent, timestep, shift) - predict_noise(latent, timestep, base)).square().flatten()
        return (policy_loss + 0.3 * kl).mean()

    assert found == pytest.approx(central_difference(loss, at), rel=2e-3)


@pytest.mark.parametrize("estimator", ["score", "importance"])
def test_ddpo_gradient_equals_finite_differences_of_its_loss(estimator: Any) -> None:
    r = roll_out(50)
    at = 0.1
    with torch.no_grad():
        r.policy.actor.denoiser.shift.fill_(at)
    algorithm = DDPO(
        policy=r.policy, optim=recorder(), estimator=estimator, clip_range=0.2, advantage_clip=1.5, max_grad_norm=None
    )
    found = r.gradient(algorithm)
    latent, action, step, old, final = r.stored()
    episode = final[::T]
    last_32 = episode[-32:]  # what the statistics remember of the one prompt
    advantage = ((final - last_32.mean()) / (last_32.std(correction=0) + 1e-6)).clamp(-1.5, 1.5)

    def loss(shift: Tensor) -> Tensor:
        sigma = r.kernel.sigma(step).double()
        log_prob = torch.distributions.Normal(mean_of(r, latent, step, shift), sigma).log_prob(action).flatten()
        if estimator == "score":
            return -(advantage * log_prob).mean()
        ratio = torch.exp(log_prob - old)
        return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2)).mean()

    assert found == pytest.approx(central_difference(loss, at), rel=2e-3)


def test_policy_gradient_equals_finite_differences_of_the_expected_reward() -> None:
    episodes, h = 20_000, 0.02

    def expected(shift: float) -> float:
        torch.manual_seed(1)
        kernel = make_kernel("ddim", CONFIG, T)
        latent = torch.randn(episodes, 1, 1, 1, dtype=torch.float64)
        for k in range(T):
            step = torch.full((episodes,), k)
            noise = predict_noise(latent, kernel.timestep(step), torch.tensor(shift, dtype=torch.float64))
            latent = kernel.sample(kernel.mean(noise, latent, step), torch.randn_like(latent), step)
        return float(reward(latent).mean())

    true = (expected(h) - expected(-h)) / (2 * h)
    estimates = []
    for seed in range(8):
        r = roll_out(2500, baseline=-1.5, seed=seed)
        algorithm = DPOK(
            policy=r.policy, optim=recorder(), kl_weight=0.0, normalise=False, max_grad_norm=None, micro_batch_size=5000
        )
        estimates.append(-r.gradient(algorithm) * T)  # the loss is a mean over the T steps, and descends
    error = np.std(estimates, ddof=1) / len(estimates) ** 0.5
    assert true > 0
    assert abs(np.mean(estimates) - true) < 4 * error
    assert error < 0.1 * true


def test_value_gradient_equals_finite_differences() -> None:
    r = roll_out(20)
    torch.manual_seed(0)
    critic = LatentCritic(r.policy.actor, latent_shape=(1, 1, 1), hidden=8)
    exact = copy.deepcopy(critic).double()
    algorithm = DPOK(
        policy=r.policy, optim=recorder(), critic=critic, critic_optim=recorder(), value_steps=1, value_batch_size=10**6
    )
    r.gradient(algorithm)
    assert algorithm.critic_optim is not None
    found = algorithm.critic_optim._optim.gradient  # type: ignore[attr-defined]
    latent, _, step, _, final = r.stored()
    direction = torch.randn_like(found)

    def loss(along: Tensor) -> Tensor:
        moved = copy.deepcopy(exact)
        vector = nn.utils.parameters_to_vector(moved.parameters()) + along * direction
        nn.utils.vector_to_parameters(vector, moved.parameters())
        return (moved.from_features(latent.flatten(1), step).flatten() - final).square().mean().detach()

    assert float(found @ direction) == pytest.approx(central_difference(loss, 0.0, h=1e-5), rel=1e-3)
