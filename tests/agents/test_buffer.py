"""The replay buffer keeps what Tianshou's own keeps, in less space."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tianshou.data import Batch, Collector, VectorReplayBuffer

from agents.common.buffer import LatentReplayBuffer
from agents.common.venv import BatchedVenv
from agents.sft import picture_weights
from benchmarks.buffer_memory import fill


def test_it_returns_what_the_stock_buffer_returns(world: Callable[..., Any]) -> None:
    w = world()
    stock = VectorReplayBuffer(w.env.num_envs * w.num_steps, w.env.num_envs)
    collector: Any = Collector(w.policy, BatchedVenv(w.env), stock)
    torch.manual_seed(0)
    collector.reset(gym_reset_kwargs={"seed": 0})
    collector.collect(n_step=len(stock.buffers) * w.num_steps)
    w.collect(0)
    ours, theirs = w.buffer[:], stock[:]
    for name in ("act", "rew", "terminated", "truncated", "done"):
        np.testing.assert_array_equal(ours[name], theirs[name])
    for name in ("latent", "step", "prompt_id"):
        np.testing.assert_array_equal(np.asarray(ours.obs[name]), np.asarray(theirs.obs[name]))
    np.testing.assert_array_equal(np.asarray(ours.policy.log_prob), np.asarray(theirs.policy.log_prob))
    inner = ~ours.done
    np.testing.assert_array_equal(ours.obs_next.latent[inner], np.asarray(theirs.obs_next.latent)[inner])


def test_step_and_prompt_arrive_in_numpy_whatever_the_device(world: Callable[..., Any]) -> None:
    w = world()
    obs, _ = BatchedVenv(w.env).reset()
    assert isinstance(w.env.observe(np.arange(w.env.num_envs))["step"], torch.Tensor)
    assert isinstance(obs.step, np.ndarray)  # the buffer keeps both in numpy, and a CUDA tensor would not go there
    assert isinstance(obs.prompt_id, np.ndarray)


def test_a_rollout_at_stable_diffusion_size_fits() -> None:
    shape = (4, 64, 64)
    buffer = LatentReplayBuffer(num_envs=64, num_steps=50)
    one = fill(LatentReplayBuffer(num_envs=64, num_steps=2), shape)
    a_step = one.act.nbytes // 2
    assert buffer.maxsize * np.prod(shape) * 4 == 50 * a_step
    assert 50 * a_step + one._first_ECHW.nbytes + 2**20 < 400 * 2**20
    assert one.nbytes() < 3 * a_step + 2**16  # two actions and the first latent of each episode


def test_parts_of_episodes_are_refused(world: Callable[..., Any]) -> None:
    w = world()
    w.collector.reset()
    w.collector.collect(n_step=w.env.num_envs)
    w.buffer.reset()
    with pytest.raises(ValueError, match="collect whole episodes"):
        w.collector.collect(n_step=w.env.num_envs)


def test_values_that_are_not_finite_are_seen(world: Callable[..., Any]) -> None:
    w = world()
    w.collect()
    assert not w.buffer.hasnull()
    w.buffer.policy.log_prob[3] = np.nan
    assert w.buffer.hasnull()


def test_old_rollouts_stay_until_they_are_overwritten(world: Callable[..., Any]) -> None:
    w = world(rollouts=2)
    first = None
    for seed in range(3):
        w.collect(seed)
        w.buffer.reset(keep_statistics=True)
        first = w.buffer[:].act.copy() if first is None else first
    size = w.env.num_envs * w.num_steps
    assert len(w.buffer) == 2 * size
    rows = {row.tobytes() for row in w.buffer[:].act}
    assert not rows & {row.tobytes() for row in first}
    state = w.buffer.state_dict()
    other = LatentReplayBuffer(num_envs=w.env.num_envs, num_steps=w.num_steps, rollouts=2)
    other.load_state_dict(state)
    np.testing.assert_array_equal(other[:].act, w.buffer[:].act)
    np.testing.assert_array_equal(other[:].obs.latent, w.buffer[:].obs.latent)


def test_environment_rows_follow_the_slots(world: Callable[..., Any]) -> None:
    w = world()
    venv = BatchedVenv(w.env)
    everything, _ = venv.reset(seed=3)
    some, infos = venv.reset(env_id=np.array([2, 1]))
    assert isinstance(some, Batch)
    assert [info["env_id"] for info in infos] == [2, 1]
    np.testing.assert_array_equal(some.latent.numpy(), w.env.observe(np.array([2, 1]))["latent"].numpy())
    assert torch.equal(w.env.observe(np.array([0, 3]))["latent"], everything.latent[[0, 3]])


def test_picture_weights() -> None:
    prompts = ["a", "a", "b", "b"]
    rewards = np.array([1.0, 3.0, -2.0, -1.0])
    assert picture_weights("best", rewards, prompts).tolist() == [0, 2, 0, 2]
    assert picture_weights("reward", rewards, prompts).tolist() == [1, 3, 0, 0]
    softmax = picture_weights("softmax", rewards, prompts, temperature=1.0)
    assert softmax[:2].sum() == pytest.approx(2.0)
    assert np.log(softmax[1] / softmax[0]) == pytest.approx(2.0 / rewards.std())
    assert not picture_weights("reward", -np.abs(rewards), prompts).any()
