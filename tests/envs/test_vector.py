"""The vector environment: Gymnasium's conventions, and equality with the single environment."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

from diffusion_gym.prompts import CyclicSampler


def act(observation):
    """The policy of the single environment's tests, for one slot's arrays."""
    return (
        0.9 * observation["latent"] + 0.01 * observation["prompt_embedding"].mean() + 0.1 * observation["step"]
    ).astype(np.float32)


def act_batch(observation):
    rows = [
        {name: np.asarray(values[i]) for name, values in observation.items()} for i in range(len(observation["step"]))
    ]
    return np.stack([act(row) for row in rows])


def play(envs, **reset):
    observation, _ = envs.reset(**reset)
    for _ in range(3):
        observation, rewards, terminations, truncations, infos = envs.step(act_batch(observation))
        assert not truncations.any()
    assert terminations.all()
    return rewards, infos


@pytest.fixture
def envs(env_arguments):
    made = gymnasium.make_vec("TextToImage-v0", num_envs=5, backend="numpy", render_mode="rgb_array", **env_arguments)
    yield made
    made.close()


@pytest.mark.filterwarnings("error")
def test_spaces_batch_and_observations_lie_in_them(envs):
    assert envs.num_envs == 5
    assert envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert envs.observation_space == batch_space(envs.single_observation_space, 5)
    assert envs.action_space == batch_space(envs.single_action_space, 5)
    observation, infos = envs.reset(seed=0)
    assert observation in envs.observation_space
    assert infos["_prompt"].all()
    observation, rewards, terminations, truncations, infos = envs.step(envs.action_space.sample())
    assert observation in envs.observation_space
    assert rewards.shape == terminations.shape == truncations.shape == (5,)
    assert infos == {}


@pytest.mark.parametrize("prompt_sampler", ["uniform", "weighted", "cyclic"])
def test_slot_i_seeded_s_plus_i_is_the_single_environment_seeded_s_plus_i(env_arguments, prompt_sampler):
    """Pictures, prompts and rewards, over several episodes without a new seed."""
    prompts = [{"prompt": text, "weight": i + 1.0} for i, text in enumerate(env_arguments["prompts"])]
    arguments = {**env_arguments, "prompts": prompts}
    envs = gymnasium.make_vec("TextToImage-v0", num_envs=5, backend="numpy", prompt_sampler=prompt_sampler, **arguments)
    episodes = [play(envs, seed=40), play(envs), play(envs)]
    single_sampler = CyclicSampler(4, stride=5) if prompt_sampler == "cyclic" else prompt_sampler
    for i in range(5):
        env = gymnasium.make("TextToImage-v0", prompt_sampler=single_sampler, **arguments)
        for n, (rewards, infos) in enumerate(episodes):
            observation, _ = env.reset(seed=40 + i if n == 0 else None)
            for _ in range(3):
                observation, reward, _, _, info = env.step(act(observation))
            assert info["prompt"] == infos["prompt"][i]
            np.testing.assert_array_equal(info["image"], infos["image"][i])
            assert reward == pytest.approx(rewards[i], abs=1e-6)
            for name, value in info["reward_terms"].items():
                assert value == pytest.approx(infos["reward_terms"][name][i], abs=1e-6)
    assert len({infos["image"][i].tobytes() for _, infos in episodes for i in range(5)}) == 15


def test_seeds_may_be_given_slot_by_slot(envs):
    whole, _ = envs.reset(seed=3)
    listed, _ = envs.reset(seed=[3, 4, 5, 6, 7])
    np.testing.assert_array_equal(whole["latent"], listed["latent"])
    assert envs.np_random_seed == (3, 4, 5, 6, 7)
    mixed, _ = envs.reset(seed=[3, None, None, None, 7])
    np.testing.assert_array_equal(mixed["latent"][[0, 4]], whole["latent"][[0, 4]])
    assert not np.array_equal(mixed["latent"][1], whole["latent"][1])
    assert len(envs.np_random) == 5


def test_unseeded_slots_differ(envs):
    observation, _ = envs.reset()
    assert len({row.tobytes() for row in observation["latent"]}) == 5


def test_prompts_can_be_chosen_for_all_slots_or_each(envs):
    _, infos = envs.reset(options={"prompt": "a grey owl"})
    assert infos["prompt"].tolist() == ["a grey owl"] * 5
    _, infos = envs.reset(seed=1)
    drawn = infos["prompt"]
    _, infos = envs.reset(seed=1, options={"prompt": [None, "x", None, "y", None]})
    assert infos["prompt"].tolist() == [drawn[0], "x", drawn[2], "y", drawn[4]]


def test_some_slots_are_reset_while_the_others_go_on(envs):
    mask = np.array([True, False, True, False, False])
    first, _ = envs.reset(seed=0)
    before, *_ = envs.step(act_batch(first))
    after, infos = envs.reset(seed=0, options={"reset_mask": mask})
    assert infos["_prompt"].tolist() == mask.tolist()
    assert infos["prompt"][1] is None
    assert after["step"].tolist() == [0, 1, 0, 1, 1]
    np.testing.assert_array_equal(after["latent"][mask], first["latent"][mask])
    np.testing.assert_array_equal(after["latent"][~mask], before["latent"][~mask])
    observation = after
    for _ in range(2):
        observation, rewards, terminations, _, infos = envs.step(act_batch(observation))
    assert terminations.tolist() == (~mask).tolist()
    assert infos["_image"].tolist() == infos["_reward_terms"].tolist() == (~mask).tolist()
    assert infos["prompt"][0] is None
    assert (rewards[mask] == 0).all()
    assert (rewards[~mask] != 0).all()
    assert not infos["image"][mask].any()
    assert infos["image"][~mask].any(axis=(1, 2, 3)).all()
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"\[1, 3, 4\]"):
        envs.step(act_batch(observation))
    envs.reset(options={"reset_mask": ~mask})
    envs.step(act_batch(observation))


def test_some_slots_can_be_stepped_in_any_order(envs):
    whole, _ = envs.reset(seed=0)
    actions = act_batch(whole)
    expected, *_ = envs.step(actions)
    envs.reset(seed=0)
    some, rewards, _, _, _ = envs.step_slots([3, 1], actions[[3, 1]])
    assert rewards.shape == (2,)
    assert some["step"].tolist() == [1, 1]
    for name in some:
        np.testing.assert_array_equal(some[name], expected[name][[3, 1]])
    _rest, *_ = envs.step_slots([4, 2, 0], actions[[4, 2, 0]])
    observation = envs.observe()
    np.testing.assert_array_equal(observation["latent"], expected["latent"])
    shuffled = [2, 0, 4, 1, 3]
    moved, *_ = envs.step_slots(shuffled, observation["latent"][shuffled] + 1)
    np.testing.assert_array_equal(moved["latent"], observation["latent"][shuffled] + 1)
    np.testing.assert_array_equal(envs.observe()["latent"], observation["latent"] + 1)
    np.testing.assert_array_equal(envs.observe([4])["latent"][0], observation["latent"][4] + 1)


def test_torch_observations_are_those_of_numpy(env_arguments):
    results = []
    for backend in ("torch", "numpy"):
        envs = gymnasium.make_vec("TextToImage-v0", num_envs=3, backend=backend, **env_arguments)
        observation, _ = envs.reset(seed=5)
        assert all(isinstance(value, torch.Tensor) == (backend == "torch") for value in observation.values())
        results.append({name: np.asarray(value) for name, value in observation.items()})
    assert results[0].keys() == results[1].keys()
    for name in results[0]:
        np.testing.assert_array_equal(results[0][name], results[1][name])
        assert results[0][name].dtype == results[1][name].dtype


def test_torch_observations_and_actions_are_not_aliases_of_the_state(env_arguments):
    envs = gymnasium.make_vec("TextToImage-v0", num_envs=3, **env_arguments)
    observation, _ = envs.reset(seed=5)
    latent, embedding = observation["latent"].clone(), observation["prompt_embedding"].clone()
    observation["latent"].zero_()
    observation["prompt_embedding"][1].zero_()  # a careless reader writes into the shared tensor
    again = envs.observe()
    assert torch.equal(again["latent"], latent)
    assert torch.equal(again["prompt_embedding"], embedding)
    action = latent.clone()
    envs.step(action)
    action.zero_()
    assert torch.equal(envs.observe()["latent"], latent)


def test_embeddings_are_gathered_once_an_episode_and_follow_the_prompts(env_arguments):
    envs = gymnasium.make_vec("TextToImage-v0", num_envs=3, **env_arguments)
    first, _ = envs.reset(seed=5)
    second, *_ = envs.step(first["latent"])
    assert second["prompt_embedding"] is first["prompt_embedding"]
    third, _ = envs.reset(options={"prompt": "a new prompt"})
    expected = envs.unwrapped.pipeline.prompts.embeddings(third["prompt_id"]).tokens_BLD
    assert torch.equal(third["prompt_embedding"], expected)
    assert not torch.equal(third["prompt_embedding"], first["prompt_embedding"])


def test_the_embedding_can_be_left_out(env_arguments):
    envs = gymnasium.make_vec("TextToImage-v0", num_envs=3, backend="numpy", prompt_embedding=False, **env_arguments)
    observation, _ = envs.reset(seed=0)
    assert set(observation) == {"latent", "step", "prompt_id"}
    assert observation in envs.observation_space


def test_a_latent_keeps_no_gradient(env_arguments):
    envs = gymnasium.make_vec("TextToImage-v0", num_envs=2, **env_arguments)
    observation, _ = envs.reset(seed=0)
    observation, *_ = envs.step(observation["latent"].requires_grad_() * 2)
    assert not observation["latent"].requires_grad


@pytest.mark.filterwarnings("error")
def test_record_episode_statistics_and_info_lists(envs):
    wrapped = DictInfoToList(RecordEpisodeStatistics(envs))
    rewards, infos = play(wrapped, seed=0)
    assert len(infos) == 5
    for reward, info in zip(rewards, infos, strict=True):
        assert info["episode"]["r"] == pytest.approx(reward, rel=1e-5)
        assert info["episode"]["l"] == 3
        assert info["image"].shape == (16, 16, 3)
        assert set(info["reward_terms"]) == {"jpeg_compressibility", "brightness"}


def test_render_shows_every_slot(envs):
    _rewards, infos = play(envs, seed=0)
    frames = envs.render()
    assert len(frames) == 5
    for frame, image in zip(frames, infos["image"], strict=True):
        np.testing.assert_array_equal(frame, image)


def test_close_can_be_called_twice(env_arguments):
    envs = gymnasium.make_vec("TextToImage-v0", num_envs=2, **env_arguments)
    envs.close()
    envs.close()
    assert envs.closed


def test_cyclic_slots_walk_the_list_in_order(env_arguments):
    prompts = [f"prompt {i}" for i in range(7)]
    envs = gymnasium.make_vec(
        "TextToImage-v0", num_envs=3, prompt_sampler="cyclic", **{**env_arguments, "prompts": prompts}
    )
    seen = [text for _ in range(7) for text in envs.reset()[1]["prompt"]]
    assert seen == [prompts[i % 7] for i in range(21)]


def test_divergence_names_the_slots_and_off_the_cpu_waits_for_the_last_step(env_arguments, monkeypatch):
    """Off the CPU a look at the values would stall the device, so it is taken when an episode ends."""
    envs = gymnasium.make_vec("TextToImage-v0", num_envs=3, **env_arguments)
    observation, _ = envs.reset(seed=0)
    good = observation["latent"]
    bad = good.clone()
    bad[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"slot\(s\) \[1\]"):
        envs.step(bad)

    class Elsewhere:
        type = "cuda"

    core = envs.unwrapped._core
    check = type(core)._check_range

    def check_as_if_elsewhere(self, *args, **kwargs):
        real, self.device = self.device, Elsewhere()
        monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
        try:
            check(self, *args, **kwargs)
        finally:
            monkeypatch.undo()
            monkeypatch.setattr(type(core), "_check_range", check_as_if_elsewhere)
            self.device = real

    monkeypatch.setattr(type(core), "_check_range", check_as_if_elsewhere)
    envs.step(bad)
    envs.step(good)
    with pytest.raises(ValueError, match=r"slot\(s\) \[1\]"):
        envs.step(good)
    envs.reset()
    for _ in range(3):
        terminations = envs.step(good)[2]
    assert terminations.all()
