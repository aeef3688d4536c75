"""The single environment: Gymnasium's own checks, wrappers, and what an episode is."""

import warnings

import diffusers
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics, RecordVideo

from diffusion_gym.envs.text_to_image import TextToImageEnv
from diffusion_gym.rewards import RewardError


def act(observation: dict[str, np.ndarray]) -> np.ndarray:
    """A deterministic policy that depends on all of the observation."""
    return (
        0.9 * observation["latent"] + 0.01 * observation["prompt_embedding"].mean() + 0.1 * observation["step"]
    ).astype(np.float32)


def play(env: gymnasium.Env, **reset: object) -> tuple[float, dict]:
    observation, _ = env.reset(**reset)
    while True:
        observation, reward, terminated, truncated, info = env.step(act(observation))
        assert not truncated
        if terminated:
            return float(reward), info


@pytest.fixture
def env(env_arguments):
    with gymnasium.make("TextToImage-v0", render_mode="rgb_array", **env_arguments) as made:
        yield made


@pytest.mark.filterwarnings("error")
def test_gymnasiums_checker_finds_nothing(env):
    check_env(env.unwrapped)


def test_class_docstring_follows_gymnasiums_headings():
    for heading in (
        "Description",
        "Action Space",
        "Observation Space",
        "Rewards",
        "Starting State",
        "Episode End",
        "Arguments",
    ):
        assert f"## {heading}\n" in TextToImageEnv.__doc__


@pytest.mark.filterwarnings("error")
def test_an_episode(env, env_arguments):
    observation, info = env.reset(seed=1)
    assert info == {"prompt": info["prompt"]}
    assert info["prompt"] in env_arguments["prompts"]
    bank = env.unwrapped.pipeline.prompts
    assert bank.text(int(observation["prompt_id"])) == info["prompt"]
    np.testing.assert_array_equal(
        observation["prompt_embedding"], bank.embeddings(np.array([observation["prompt_id"]])).tokens_BLD[0].numpy()
    )
    prompt = info["prompt"]
    for k in range(3):
        assert observation["step"] == k
        action = act(observation)
        observation, reward, terminated, truncated, info = env.step(action)
        assert observation in env.observation_space
        np.testing.assert_array_equal(observation["latent"], action)
        assert (terminated, truncated) == (k == 2, False)
        if k < 2:
            assert (reward, info) == (0.0, {})
    picture = env.unwrapped.pipeline.decode(torch.tensor(action)[None])
    np.testing.assert_array_equal(info["image"], np.rint(picture[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8))
    assert info["prompt"] == prompt
    terms = info["reward_terms"]
    assert terms["brightness"] == pytest.approx(float(picture.mean()) + 0.1 * len(prompt), abs=1e-6)
    assert reward == pytest.approx(2.0 * terms["jpeg_compressibility"] + terms["brightness"], rel=1e-6)
    np.testing.assert_array_equal(env.render(), info["image"])


def test_noise_is_standard_normal_and_belongs_to_the_seed_not_the_prompt(env):
    latents = np.stack([env.reset(seed=seed)[0]["latent"] for seed in range(200)])
    assert abs(latents.mean()) < 0.02
    assert latents.std() == pytest.approx(1.0, abs=0.01)
    first, _ = env.reset(seed=5, options={"prompt": "a purple whale"})
    second, _ = env.reset(seed=5, options={"prompt": "a grey owl"})
    np.testing.assert_array_equal(first["latent"], second["latent"])
    assert first["prompt_id"] != second["prompt_id"]


def test_a_chosen_prompt_need_not_be_in_the_set(env):
    _, info = play(env, seed=0, options={"prompt": "a purple whale"})
    assert info["prompt"] == "a purple whale"


def test_prompt_metadata_reaches_the_reward(env_arguments):
    seen = []

    def reward(images, prompts, metadata):
        seen.append((prompts, metadata))
        return torch.zeros(len(images))

    prompts = [{"prompt": "two cats", "count": 2}]
    with gymnasium.make("TextToImage-v0", **{**env_arguments, "reward": reward, "prompts": prompts}) as env:
        play(env, seed=0)
        play(env, options={"prompt": "elsewhere"})
    assert seen == [(["two cats"], [{"count": 2}]), (["elsewhere"], [{}])]


def test_the_same_seed_gives_the_same_episodes_and_another_seed_others(env):
    first = [play(env, seed=7), play(env), play(env)]
    again = [play(env, seed=7), play(env), play(env)]
    other = play(env, seed=8)
    for (reward_a, info_a), (reward_b, info_b) in zip(first, again, strict=True):
        assert reward_a == reward_b
        assert info_a["prompt"] == info_b["prompt"]
        np.testing.assert_array_equal(info_a["image"], info_b["image"])
    assert not np.array_equal(other[1]["image"], first[0][1]["image"])
    assert not np.array_equal(first[0][1]["image"], first[1][1]["image"])


def test_environments_of_a_process_share_one_pipeline(env, env_arguments, tiny_pipeline):
    other = gymnasium.make("TextToImage-v0", **env_arguments)
    assert env.unwrapped.pipeline is other.unwrapped.pipeline is tiny_pipeline


def test_the_environment_never_loads_the_unet(env, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the environment asked for the UNet")

    monkeypatch.setattr(diffusers.UNet2DConditionModel, "from_pretrained", refuse)
    play(env, seed=0)
    assert not any(isinstance(value, diffusers.UNet2DConditionModel) for value in vars(env.unwrapped.pipeline).values())


@pytest.mark.filterwarnings("error")
def test_record_episode_statistics(env):
    wrapped = RecordEpisodeStatistics(env)
    reward, info = play(wrapped, seed=0)
    assert info["episode"]["r"] == pytest.approx(reward)
    assert info["episode"]["l"] == 3


def test_record_video_shows_the_picture_emerging(env, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # moviepy's own
        wrapped = RecordVideo(env, str(tmp_path), episode_trigger=lambda episode: True, disable_logger=True)
    frames = []
    observation, _ = wrapped.reset(seed=0)
    for _ in range(3):
        frames = list(wrapped.recorded_frames)
        observation, *_ = wrapped.step(act(observation))
    assert len(frames) == 3
    assert frames[0].shape == (16, 16, 3)
    assert not np.array_equal(frames[0], frames[2])
    wrapped.close()
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]


def test_sync_vector_env_of_gymnasium_accepts_it(env_arguments):
    envs = gymnasium.make_vec("TextToImage-v0", num_envs=2, vectorization_mode="sync", **env_arguments)
    observation, _ = envs.reset(seed=0)
    assert observation in envs.observation_space
    for _ in range(3):
        observation, _rewards, terminations, _, infos = envs.step(0.5 * observation["latent"])
    assert terminations.all()
    assert infos["image"].shape == (2, 16, 16, 3)
    envs.close()


def test_stepping_without_an_episode_asks_for_a_reset(env):
    bare = env.unwrapped
    with pytest.raises(gymnasium.error.ResetNeeded):
        bare.step(np.zeros((4, 8, 8), dtype=np.float32))
    with pytest.raises(gymnasium.error.ResetNeeded):
        bare.render()
    play(env, seed=0)
    with pytest.raises(gymnasium.error.ResetNeeded):
        bare.step(np.zeros((4, 8, 8), dtype=np.float32))
    play(env)


def test_a_failed_reward_leaves_the_step_untaken(env_arguments):
    broken = [True]

    def reward(images, prompts, metadata):
        if broken[0]:
            raise RuntimeError("judge is away")
        return [1.5]

    with gymnasium.make("TextToImage-v0", **{**env_arguments, "reward": reward, "num_inference_steps": 1}) as env:
        observation, info = env.reset(seed=0)
        with pytest.raises(
            RewardError, match=rf"reward 'reward' raised RuntimeError .*{info['prompt']}.*judge is away"
        ):
            env.step(act(observation))
        broken[0] = False
        _, value, terminated, _, _ = env.step(act(observation))
        assert (value, terminated) == (1.5, True)


def test_torch_actions_and_other_number_types_are_taken(env):
    observation, _ = env.reset(seed=0)
    for action in (
        torch.tensor(observation["latent"]),
        observation["latent"].astype(np.float64),
        observation["latent"].tolist(),
    ):
        taken, *_ = env.unwrapped.step(action)
        np.testing.assert_array_equal(taken["latent"], observation["latent"])


def test_the_action_is_copied(env):
    observation, _ = env.reset(seed=0)
    action = observation["latent"].copy()
    before = action.copy()
    taken, *_ = env.step(action)
    action[:] = 0
    taken["latent"][:] = 0
    env.unwrapped.step(before)
    np.testing.assert_array_equal(env.unwrapped._core.observe(np.zeros(1, dtype=np.int64))["latent"][0], before)


def test_make_works_by_module_name_and_registers_once():
    import diffusion_gym

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        diffusion_gym.register_envs()
    assert gymnasium.spec("TextToImage-v0").max_episode_steps is None
    assert gymnasium.spec("TextToImage-v0").vector_entry_point is not None
