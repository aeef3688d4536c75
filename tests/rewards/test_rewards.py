"""Rewards: file sizes, sums of terms, names, and what happens when a reward misbehaves."""

import importlib
import io

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_gym.emoji.preference import Preference, PreferenceNet
from diffusion_gym.emoji.quality import Quality, QualityNet
from diffusion_gym.emoji.reader import Reader, ReaderNet
from diffusion_gym.rewards import RewardError, make_reward, register_reward, reward_names

PROMPTS = ["a cat", "two dogs", "a cat and a dog"]
NOTHING = [{}, {}, {}]


def pictures(n: int = 3, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def mean_value(images, prompts, metadata):
    return images.mean((1, 2, 3))


def prompt_length(images, prompts, metadata):
    return [len(prompt) for prompt in prompts]


def test_jpeg_rewards_are_the_size_of_the_file_in_kilobytes():
    images = pictures()
    images[1] = 0.5  # flat: small
    scores = make_reward("jpeg_incompressibility")(images, PROMPTS, NOTHING).total
    for image, score in zip(images, scores, strict=True):
        buffer = io.BytesIO()
        pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
        assert float(score) == pytest.approx(len(buffer.getvalue()) / 1000)
    assert scores[1] < scores[0]
    minus = make_reward("jpeg_compressibility")(images, PROMPTS, NOTHING).total
    assert torch.equal(minus, -scores)


def test_a_sum_of_terms_is_weighted_and_reported():
    images = pictures()
    reward = make_reward([("jpeg_compressibility", 0.5), (mean_value, -2.0), prompt_length, prompt_length])
    scores = reward(images, PROMPTS, NOTHING)
    assert list(scores.terms) == ["jpeg_compressibility", "mean_value", "prompt_length", "prompt_length_2"]
    jpeg = make_reward("jpeg_compressibility")(images, PROMPTS, NOTHING).total
    lengths = torch.tensor([5.0, 8.0, 15.0])
    torch.testing.assert_close(scores.terms["mean_value"], images.mean((1, 2, 3)))
    torch.testing.assert_close(scores.total, 0.5 * jpeg - 2 * images.mean((1, 2, 3)) + 2 * lengths)
    assert scores.total.dtype == scores.terms["prompt_length"].dtype == torch.float32
    assert repr(reward).startswith("WeightedReward(0.5 * jpeg_compressibility + -2 * mean_value")


def test_a_mapping_of_names_to_weights():
    scores = make_reward({"jpeg_compressibility": 1.0, "jpeg_incompressibility": 1.0})(pictures(), PROMPTS, NOTHING)
    assert torch.equal(scores.total, torch.zeros(3))


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([1, 2, 3]),
        np.array([1.0, 2.0, 3.0]),
        [1, 2, 3],
        torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16, requires_grad=True),
    ],
)
def test_any_numbers_become_float32(values):
    total = make_reward(lambda images, prompts, metadata: values)(pictures(), PROMPTS, NOTHING).total
    assert torch.equal(total, torch.tensor([1.0, 2.0, 3.0]))
    assert not total.requires_grad


def test_metadata_and_device_reach_the_reward():
    devices = []

    def factory(device):
        devices.append(device)
        return lambda images, prompts, metadata: [m["count"] for m in metadata]

    register_reward("test_count", factory)
    reward = make_reward("test_count", device="cpu")
    assert devices == [torch.device("cpu")]
    assert reward(pictures(2), PROMPTS[:2], [{"count": 1}, {"count": 4}]).total.tolist() == [1.0, 4.0]


def test_names_are_not_overwritten():
    register_reward("test_taken", "diffusion_gym.rewards.jpeg:jpeg_compressibility")
    with pytest.raises(ValueError, match="test_taken"):
        register_reward("test_taken", lambda device: mean_value)
    with pytest.raises(TypeError, match="factory"):
        register_reward("test_other", 3)
    with pytest.raises(ValueError, match="name"):
        register_reward(" ", lambda device: mean_value)


def test_entry_points_of_other_packages_are_found(tmp_path, monkeypatch):
    package = tmp_path / "their_rewards"
    package.mkdir()
    (package / "__init__.py").write_text(
        "def factory(device):\n    return lambda images, prompts, metadata: [7.0] * len(prompts)\n"
    )
    info = tmp_path / "their_rewards-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-rewards\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[diffusion_gym.rewards]\nseven = their_rewards:factory\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert "seven" in reward_names()
    assert make_reward("seven")(pictures(), PROMPTS, NOTHING).total.tolist() == [7.0] * 3


def test_a_function_is_found_by_module_and_name(tmp_path, monkeypatch):
    (tmp_path / "their_module.py").write_text(
        "limit = 3\ndef brightness(images, prompts, metadata):\n    return images.mean((1, 2, 3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    scores = make_reward({"their_module:brightness": 2.0})(pictures(), PROMPTS, NOTHING)
    assert torch.allclose(scores.total, 2 * pictures().mean((1, 2, 3)))
    assert list(scores.terms) == ["their_module:brightness"]
    for place in ("their_module:limit", "their_module:nothing", "no_such_module_xyz:f", "their_module:"):
        with pytest.raises(ValueError, match=place):
            make_reward(place)


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ([1.0, float("nan"), 2.0], "returned nan for the prompt 'two dogs'"),
        ([1.0, 2.0, float("inf")], "returned inf for the prompt 'a cat and a dog'"),
        ([1.0, 2.0], r"shape \(3,\).*got \(2,\).*'a cat'"),
        (torch.zeros(3, 1), r"shape \(3,\).*got \(3, 1\)"),
        (1.0, r"got \(\)"),
        (None, "must return 3 numbers.*NoneType"),
        ("abc", "must return 3 numbers.*str"),
        (torch.zeros(3, dtype=torch.complex64), "must return 3 numbers"),
    ],
)
def test_a_bad_result_names_the_reward_and_the_prompt(returned, says):
    def judge(images, prompts, metadata):
        return returned

    with pytest.raises(RewardError, match=f"(?s)reward 'judge' .*{says}"):
        make_reward(judge)(pictures(), PROMPTS, NOTHING)


def test_a_reward_that_raises_is_named_with_its_prompts():
    def judge(images, prompts, metadata):
        raise KeyError("oops")

    with pytest.raises(RewardError, match=r"reward 'judge' raised KeyError for the prompts 'a cat', .*oops") as caught:
        make_reward(judge)(pictures(), PROMPTS, NOTHING)
    assert isinstance(caught.value.__cause__, KeyError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ("nonsense", ValueError, "jpeg_compressibility"),
        (3, TypeError, "a name"),
        ([], ValueError, "at least one"),
        ({}, ValueError, "at least one"),
        ([("jpeg_compressibility", "1")], TypeError, "weight of 'jpeg_compressibility'"),
        ({"jpeg_compressibility": float("nan")}, ValueError, "weight of 'jpeg_compressibility'"),
        ([("jpeg_compressibility", True)], TypeError, "weight"),
        ([3], TypeError, "term"),
    ],
)
def test_bad_specifications_are_named(spec, error, says):
    with pytest.raises(error, match=f"reward.*{says}"):
        make_reward(spec)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((np.zeros((1, 3, 4, 4)), ["a"], [{}]), TypeError, "images"),
        ((torch.zeros(3, 4, 4), ["a"], [{}]), ValueError, "images"),
        ((torch.zeros(1, 1, 4, 4), ["a"], [{}]), ValueError, "images"),
        ((torch.zeros(1, 3, 4, 4, dtype=torch.uint8), ["a"], [{}]), TypeError, "images"),
        ((torch.zeros(1, 3, 4, 4), "a", [{}]), TypeError, "prompts"),
        ((torch.zeros(1, 3, 4, 4), [1], [{}]), TypeError, "prompts"),
        ((torch.zeros(1, 3, 4, 4), ["a", "b"], [{}]), ValueError, "prompts"),
        ((torch.zeros(1, 3, 4, 4), ["a"], {}), TypeError, "metadata"),
        ((torch.zeros(1, 3, 4, 4), ["a"], []), ValueError, "metadata"),
    ],
)
def test_bad_batches_are_named(arguments, error, says):
    with pytest.raises(error, match=says):
        make_reward("jpeg_compressibility")(*arguments)


def test_emoji_rewards_are_the_judges_scores(monkeypatch):
    """With random weights: what is tested is the way from the name to the judge and back."""
    torch.manual_seed(0)
    judges = {
        Preference: Preference(PreferenceNet().eval()),
        Reader: Reader(ReaderNet().eval()),
        Quality: Quality(QualityNet().eval()),
    }
    for cls, judge in judges.items():
        monkeypatch.setattr(cls, "load", classmethod(lambda cls, device="cpu", judge=judge: judge))
    images = pictures(size=64)
    scores = make_reward({"emoji_preference": 1.0, "emoji_reader": 1.0, "emoji_quality": 1.0})(images, PROMPTS, NOTHING)
    torch.testing.assert_close(scores.terms["emoji_preference"], judges[Preference].score(images, PROMPTS))
    torch.testing.assert_close(scores.terms["emoji_reader"], judges[Reader].accuracy(images, PROMPTS).fraction)
    torch.testing.assert_close(scores.terms["emoji_quality"], judges[Quality].score(images))
    torch.testing.assert_close(scores.total, sum(scores.terms.values()))
