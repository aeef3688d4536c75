"""Rewards in the background: in order, errors to whoever asks, and an environment that does not wait for them."""

import random
import threading
import time

import gymnasium
import numpy as np
import pytest
import torch

from diffusion_gym.rewards import RewardError, RewardPool, make_reward

NOTHING = [{}, {}]


def batch(value):
    return torch.full((2, 3, 4, 4), value), [f"{value}", "b"], NOTHING


def first_value(images, prompts, metadata):
    return images[:, 0, 0, 0]


@pytest.mark.parametrize("workers", [1, 4])
def test_results_belong_to_their_batches(workers):
    dice = random.Random(0)

    def judge(images, prompts, metadata):
        time.sleep(dice.uniform(0, 0.01))
        return images[:, 0, 0, 0]

    pool = RewardPool(make_reward([(judge, 2.0)]), workers=workers)
    values = [i / 64 for i in range(40)]
    pending = [pool.submit(*batch(value)) for value in values]
    order = random.Random(1).sample(range(40), 40)
    for i in order:
        scores = pending[i].result()
        assert scores.total.tolist() == [2 * values[i]] * 2
        assert scores.terms["judge"].tolist() == [values[i]] * 2
    pool.close()


def test_submitting_does_not_wait_and_one_worker_is_one_thread():
    go_on, threads = threading.Event(), set()

    def judge(images, prompts, metadata):
        assert go_on.wait(20)
        threads.add(threading.current_thread())
        return images[:, 0, 0, 0]

    pool = RewardPool(make_reward(judge))
    pending = [pool.submit(*batch(0.25)) for _ in range(3)]
    go_on.set()
    assert [one.result().total.tolist() for one in pending] == [[0.25, 0.25]] * 3
    assert len(threads) == 1
    assert threading.main_thread() not in threads


def test_an_error_reaches_who_asks_and_names_the_batch():
    def judge(images, prompts, metadata):
        if prompts[0] == "0.5":
            raise KeyError("oops")
        return images[:, 0, 0, 0]

    pool = RewardPool(make_reward(judge))
    good, bad, fine = (pool.submit(*batch(value)) for value in (0.25, 0.5, 0.75))
    assert fine.result().total.tolist() == [0.75, 0.75]
    assert good.result().total.tolist() == [0.25, 0.25]
    for _ in range(2):
        with pytest.raises(RewardError, match=r"batch 2 of 2 pictures: reward 'judge' raised KeyError for .*'0.5'"):
            bad.result()
    with pytest.raises(TypeError, match="images"):
        pool.submit(3, ["a"], [{}]).result()


def test_closing_drops_what_has_not_begun():
    begun, go_on = threading.Event(), threading.Event()

    def judge(images, prompts, metadata):
        begun.set()
        assert go_on.wait(20)
        return images[:, 0, 0, 0]

    pool = RewardPool(make_reward(judge))
    first, second = pool.submit(*batch(0.25)), pool.submit(*batch(0.5))
    assert begun.wait(20)
    threading.Timer(0.1, go_on.set).start()
    pool.close()
    assert first.result().total.tolist() == [0.25, 0.25]
    with pytest.raises(RewardError, match="batch 2 of 2 pictures: not scored, the pool was closed"):
        second.result()
    with pytest.raises(RuntimeError):
        pool.submit(*batch(0.5))


@pytest.mark.parametrize(("workers", "error"), [(0, ValueError), (1.0, TypeError), (True, TypeError)])
def test_bad_workers_are_named(workers, error):
    with pytest.raises(error, match="workers"):
        RewardPool(make_reward(first_value), workers=workers)


def play(envs):
    observation, _ = envs.reset(seed=3)
    for _ in range(3):
        observation, *rest = envs.step(0.9 * observation["latent"])
    return rest


def test_an_environment_with_deferred_rewards_gives_the_same_later(env_arguments):
    known = gymnasium.make_vec("TextToImage-v0", num_envs=5, **env_arguments)
    later = gymnasium.make_vec("TextToImage-v0", num_envs=5, defer_rewards=True, **env_arguments)
    rewards, terminations, _, infos = play(known)
    zeros, same_terminations, _, pending = play(later)
    assert not zeros.any()
    assert np.array_equal(terminations, same_terminations)
    assert pending.keys() == {"prompt", "_prompt", "image", "_image", "pending_reward", "_pending_reward"}
    assert pending["_pending_reward"].all()
    for name in ("prompt", "image"):
        np.testing.assert_array_equal(pending[name], infos[name])
    scores = pending["pending_reward"].result()
    np.testing.assert_array_equal(scores.total.numpy(), rewards)
    for name, values in scores.terms.items():
        np.testing.assert_array_equal(values.numpy(), infos["reward_terms"][name])
    later.close()
    known.close()
    with pytest.raises(TypeError, match="defer_rewards"):
        gymnasium.make_vec("TextToImage-v0", num_envs=2, defer_rewards=1, **env_arguments)


def test_deferred_rewards_of_some_slots_are_in_their_order(env_arguments):
    rewards, _, _, _ = play(gymnasium.make_vec("TextToImage-v0", num_envs=5, **env_arguments))
    envs = gymnasium.make_vec("TextToImage-v0", num_envs=5, defer_rewards=True, **env_arguments).unwrapped
    slots = np.array([4, 1, 2])
    observation, _ = envs.reset(seed=3)
    latent = observation["latent"][slots]
    for _ in range(3):
        latent = 0.9 * latent
        *_, infos = envs.step_slots(slots, latent)
    np.testing.assert_allclose(infos["pending_reward"].result().total.numpy(), rewards[slots], atol=1e-6)


def test_a_failing_deferred_reward_raises_where_it_is_asked_for(env_arguments):
    def judge(images, prompts, metadata):
        return [float("nan")] * len(prompts)

    envs = gymnasium.make_vec("TextToImage-v0", num_envs=2, defer_rewards=True, **{**env_arguments, "reward": judge})
    _, terminations, _, infos = play(envs)
    assert terminations.all()
    with pytest.raises(RewardError, match="batch 1 of 2 pictures: reward 'judge' returned nan"):
        infos["pending_reward"].result()
