"""The default environment, on the embedded model, and the example of the README."""

import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

ROOT = Path(__file__).parents[2]


@pytest.mark.filterwarnings("error")
def test_make_needs_no_argument():
    with gymnasium.make("TextToImage-v0") as env:
        check_env(env.unwrapped)
        bare = env.unwrapped
        assert bare.kernel.num_steps == 20
        assert bare.pipeline.image_shape == (3, 64, 64)
        assert [term.name for term in bare.reward.terms] == ["emoji_preference"]


def test_the_models_own_policy_draws_pictures_that_the_judges_know():
    """Better than noise in preference, reading and quality, by far."""
    reward = {"emoji_preference": 1.0, "emoji_reader": 0.0, "emoji_quality": 0.0}
    envs = gymnasium.make_vec("TextToImage-v0", num_envs=8, reward=reward, prompts="emoji/probes", device="cpu")
    denoiser, kernel = envs.pipeline.denoiser(), envs.kernel
    generator = torch.Generator().manual_seed(0)
    terms = {}
    for name in ("model", "noise"):
        observation, _ = envs.reset(seed=0)
        for _ in range(kernel.num_steps):
            latent, step = observation["latent"], observation["step"]
            with torch.no_grad():
                output = denoiser(latent, kernel.timestep(step), observation["prompt_embedding"])
            mean = kernel.mean(output, latent, step) if name == "model" else 0.99 * latent
            noise = torch.randn(mean.shape, generator=generator)
            observation, rewards, terminations, _, infos = envs.step(kernel.sample(mean, noise, step))
        assert terminations.all()
        np.testing.assert_allclose(rewards, infos["reward_terms"]["emoji_preference"], rtol=1e-6)
        terms[name] = {key: values.mean() for key, values in infos["reward_terms"].items() if key[0] != "_"}
    assert terms["model"]["emoji_preference"] > terms["noise"]["emoji_preference"]
    assert terms["model"]["emoji_reader"] > terms["noise"]["emoji_reader"] + 0.2
    assert terms["model"]["emoji_quality"] > terms["noise"]["emoji_quality"]


def test_the_example_of_the_readme_runs():
    code = re.findall(r"<!-- runs as a test -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code
    lines = [line for line in code[0].splitlines() if line.strip()]
    assert len(lines) <= 11
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code[0]],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "(4, 64, 64, 3)" in done.stdout


def test_a_slot_and_a_single_environment_give_the_identical_episode():
    arguments = {
        "reward": {"emoji_preference": 1.0, "emoji_reader": 1.0, "emoji_quality": 1.0, "jpeg_compressibility": 0.1},
        "num_inference_steps": 3,
        "device": "cpu",
    }
    rng = np.random.default_rng(0)
    envs = gymnasium.make_vec("TextToImage-v0", num_envs=5, backend="numpy", **arguments)
    observations, _ = envs.reset(seed=40)
    actions = rng.standard_normal((3, *observations["latent"].shape), dtype=np.float32)
    for action in actions:
        _, rewards, _, _, infos = envs.step(action)
    for slot in range(5):
        env = gymnasium.make("TextToImage-v0", **arguments)
        observation, _ = env.reset(seed=40 + slot)
        assert np.array_equal(observation["latent"], observations["latent"][slot])
        for action in actions[:, slot]:
            _, reward, _, _, info = env.step(action)
        assert info["prompt"] == infos["prompt"][slot]
        assert np.array_equal(info["image"], infos["image"][slot])
        assert reward == rewards[slot]
