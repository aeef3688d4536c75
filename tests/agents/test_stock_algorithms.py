"""Stock Tianshou trains the policy in the environment, unchanged."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tianshou.algorithm import A2C, PPO, Reinforce
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.trainer import OnPolicyTrainerParams

from agents.common.critic import LatentCritic
from agents.common.optim import adamw
from agents.common.venv import BatchedVenv
from agents.ddpo import DDPO
from agents.dpok import DPOK


def trainer_params(world: Any, collector: Any) -> OnPolicyTrainerParams:
    steps = world.env.num_envs * world.num_steps
    return OnPolicyTrainerParams(
        training_collector=collector,
        max_epochs=1,
        epoch_num_steps=2 * steps,
        collection_step_num_env_steps=steps,
        update_step_num_repetitions=1,
        batch_size=6,
        show_progress=False,
        verbose=False,
    )


@pytest.mark.parametrize("name", ["reinforce", "a2c", "ppo", "ddpo", "dpok"])
@pytest.mark.parametrize("stock_buffer", [False, True])
def test_run_training(world: Callable[..., Any], name: str, stock_buffer: bool) -> None:
    w = world()
    critic = LatentCritic(w.policy.actor, latent_shape=w.env.pipeline.latent_shape, hidden=8)
    adam = AdamOptimizerFactory(lr=1e-2)
    algorithm: Any = {
        "reinforce": lambda: Reinforce(policy=w.policy, gamma=1.0, optim=adam),
        "a2c": lambda: A2C(policy=w.policy, critic=critic, gamma=1.0, gae_lambda=1.0, ent_coef=0.0, optim=adam),
        "ppo": lambda: PPO(policy=w.policy, critic=critic, gamma=1.0, gae_lambda=1.0, ent_coef=0.0, optim=adam),
        "ddpo": lambda: DDPO(policy=w.policy, optim=adam),
        "dpok": lambda: DPOK(policy=w.policy, optim=adam, critic=critic, critic_optim=adamw(lr=1e-3)),
    }[name]()
    before = w.parameters()
    steps = w.env.num_envs * w.num_steps
    buffer = VectorReplayBuffer(steps, w.env.num_envs) if stock_buffer else w.buffer
    collector: Any = Collector(w.policy, BatchedVenv(w.env), buffer)
    result = algorithm.run_training(trainer_params(w, collector))
    after = w.parameters()
    assert result.update_step == 2
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(before[key], after[key]) for key in before)
