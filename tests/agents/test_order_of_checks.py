"""What a command names is looked at before anything large is loaded."""

from pathlib import Path
from typing import Any

import pytest

from agents import cli
from agents.config import DDPOConfig, DPOKConfig, EvaluateConfig, SampleConfig
from agents.evaluation import evaluate
from agents.plan import show_plan
from agents.run import train
from agents.sample import sample
from diffusion_gym.rewards import register_reward

LOADED: list[str] = []


def large(device: Any, *, source: str = "somewhere") -> Any:
    """The factory of a reward that takes minutes to load."""
    LOADED.append(source)
    return lambda images, prompts, metadata: [0.0] * len(prompts)


@pytest.fixture(autouse=True)
def nothing_loaded() -> None:
    register_reward("test_large", large)
    LOADED.clear()


@pytest.fixture
def no_unet(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the UNet was loaded")

    monkeypatch.setattr("diffusion_gym.pipelines.Pipeline.load_unet", load)


TYPOS = [
    ({"prompts": ("missing.txt",)}, "missing.txt"),
    ({"reward": "test_large=1,nonsense=1"}, "nonsense"),
    ({"reward_sources": ("test_large.sauce=x",)}, "sauce"),
    ({"reward_sources": ("other=x",)}, "other"),
    ({"reward": "test_large=1,no_module:function=1"}, "no_module"),
    ({"device": "cuda"}, "CUDA"),
]


@pytest.mark.parametrize(
    ("change", "says"), [*TYPOS, ({"model": "/nowhere"}, "nowhere"), ({"steps": 5000}, "from 1 to 1000")]
)
def test_a_typo_in_a_training_is_found_before_the_reward_is_loaded(settings, monkeypatch, no_unet, change, says):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=says):
        train(DDPOConfig(**{**settings, "reward": "test_large", **change}))
    assert not LOADED
    assert not settings["out"].exists()


@pytest.mark.parametrize(("change", "says"), TYPOS)
def test_a_dry_run_finds_it_too_before_it_begins(settings, monkeypatch, change, says):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with monkeypatch.context() as patch:
        patch.setattr("agents.plan.plan_training", lambda config: pytest.fail("work was begun"))
        with pytest.raises(ValueError, match=says):
            show_plan(DPOKConfig(**{**settings, "reward": "test_large", **change}))


def test_a_dry_run_loads_no_reward(settings, capsys):
    assert "iteration   4 pictures x 3 steps" in show_plan(DPOKConfig(**{**settings, "reward": "test_large"}))
    # A server may be started later.
    assert "iteration" in show_plan(DPOKConfig(**{**settings, "reward": "http://127.0.0.1:9"}))
    assert not LOADED
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "dpok", "--dry-run", "--reward", "nonsense"])
    assert stopped.value.code == 2
    assert "'nonsense'" in capsys.readouterr().err


@pytest.fixture
def trained(settings: dict[str, Any]) -> DDPOConfig:
    config = DDPOConfig(**{**settings, "iterations": 1, "reward": "test_large"})
    train(config)
    LOADED.clear()
    return config


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rewards": ("jpeg_compressibility", "nonsense")}, "nonsense"),
        ({"rewards": ("clip_score",), "reward_sources": ("clip_score.sauce=x",)}, "sauce"),
        ({"prompts": ("missing.txt",)}, "missing.txt"),
        ({"device": "cuda"}, "CUDA"),
        ({"steps": 5000}, "from 1 to 1000"),
        ({"steps": 0}, "--steps"),
        ({"batch_size": 0}, "--batch-size"),
        ({"pictures": 1}, "--pictures"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_an_evaluation_finds_it_before_anything_is_loaded(trained, monkeypatch, no_unet, change, says):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=says):
        evaluate(trained, EvaluateConfig(**change))
    assert not LOADED


def test_an_evaluation_loads_its_rewards_before_the_unet(trained: DDPOConfig, no_unet: None, tmp_path: Path) -> None:
    settings = EvaluateConfig(rewards=("clip_score",), reward_sources=(f"clip_score={tmp_path / 'missing'}",))
    with pytest.raises(OSError, match="missing"):
        evaluate(trained, settings)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompts": ("missing.txt",)}, "missing.txt"),
        ({"device": "cuda"}, "CUDA"),
        ({"steps": 5000}, "from 1 to 1000"),
        ({"steps": 0}, "--steps must be 1 or more, got 0"),
        ({"batch_size": 0}, "--batch-size must be 1 or more, got 0"),
        ({"pictures": 0}, "--pictures must be 1 or more, got 0"),
        ({"seed": -1}, "--seed must be 0 or more, got -1"),
    ],
)
def test_samples_are_refused_by_name(trained, monkeypatch, no_unet, change, says):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=says):
        sample(trained, SampleConfig(**change))
    assert not (trained.out / "samples").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sample", "nowhere", "--steps", "0"], "--steps"),
        (["sample", "nowhere", "--batch-size", "0"], "--batch-size"),
        (["evaluate", "nowhere", "--steps", "0"], "--steps"),
        (["evaluate", "nowhere", "--prompts", "a cat", "prompts.txt"], "prompts.txt"),
        (["serve", "test_large", "--port", "70000"], "--port"),
        (["quickstart", "--iterations", "0"], "--iterations"),
        (["quickstart", "--seed", "-1"], "--seed"),
    ],
)
def test_the_command_refuses_numbers_by_name(monkeypatch, capsys, tmp_path, arguments, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("agents.quickstart.weakest_prompt", lambda show: pytest.fail("work was begun"))
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err
    assert not LOADED
