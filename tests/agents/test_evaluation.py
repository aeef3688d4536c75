"""What an evaluation measures, and the report of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from agents import cli, run_directory
from agents.config import (
    DPOKConfig,
    EvaluateConfig,
)
from agents.evaluation import (
    choose_prompts,
    diversity_interval,
    evaluate,
    mean_interval,
    save_before_after,
    share_interval,
    summary,
)
from agents.report import write_report
from agents.run import train
from diffusion_gym.pipelines import Denoiser
from diffusion_gym.rewards import register_reward


def test_evaluation_and_report(settings: dict[str, Any]) -> None:
    config = DPOKConfig(**{**settings, "learning_rate": 1e-2})
    train(config)
    report = evaluate(config, EvaluateConfig(pictures=6, rewards=("jpeg_compressibility",)))
    again = evaluate(config, EvaluateConfig(pictures=6, rewards=("jpeg_compressibility",)))
    assert report == again
    assert report["before"]["kl"]["mean"] == 0
    assert report["after"]["kl"]["mean"] > 0
    assert report["after"]["reward"]["mean"] == pytest.approx(-report["after"]["jpeg_compressibility"]["mean"])
    for values in (*report["before"].values(), *report["after"].values()):
        assert values["low"] <= values["mean"] <= values["high"]
    assert summary(report, 1.0)["reward_after"] == report["after"]["reward"]
    scores = json.loads((config.out / run_directory.SCORES).read_text())
    assert len(scores["prompts"]) == len(scores["seeds"]) == 6
    assert np.mean(scores["after"]["diversity"]) == pytest.approx(report["after"]["diversity"]["mean"], abs=1e-4)
    assert np.mean(scores["after"]["reward"]) == pytest.approx(report["after"]["reward"]["mean"], abs=1e-4)
    page = write_report(config.out).read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page
    assert "reward (trained on)" in page
    assert (config.out / "before_after.png").read_bytes().startswith(b"\x89PNG")
    cli.main(["sample", str(config.out), "--pictures", "2", "--seed", "5", "--device", "cpu"])
    assert sorted(path.name for path in (config.out / "samples").iterdir()) == ["5.png", "6.png"]


def test_metadata_reaches_the_reward_in_evaluation_too(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(
        "".join(
            json.dumps({"prompt": text, "target": value}) + "\n" for text, value in (("a cat", 1.0), ("a dog", 3.0))
        )
    )
    register_reward("test_target", lambda device: lambda images, prompts, metadata: [m["target"] for m in metadata])
    prompts = (str(tmp_path / "prompts.jsonl"),)
    config = DPOKConfig(**{**settings, "iterations": 1, "prompts": prompts, "reward": "test_target"})
    train(config)
    report = evaluate(config, EvaluateConfig(pictures=6, batch_size=4))
    assert report["after"]["reward"]["mean"] == pytest.approx(2.0)


def test_more_prompts_than_pictures_are_a_fixed_choice_of_all() -> None:
    chosen = choose_prompts(1000, 50, seed=3)
    assert chosen == choose_prompts(1000, 50, seed=3)
    assert len(set(chosen)) == 50
    assert max(chosen) > 500
    assert choose_prompts(2, 5, seed=3) == [0, 1, 0, 1, 0]


def test_other_prompts_are_evaluated_apart(settings: dict[str, Any]) -> None:
    config = DPOKConfig(**{**settings, "iterations": 1})
    train(config)
    folder = config.out / "unseen"
    report = evaluate(config, EvaluateConfig(pictures=4, prompts=("a fox", "a cow")), folder=folder)
    assert report["prompts"] == ["a cow", "a fox"]
    assert (folder / run_directory.EVALUATION).is_file()
    assert not (config.out / run_directory.EVALUATION).exists()


def test_memory_is_as_in_the_training(settings: dict[str, Any], tiny_pipeline: Any, monkeypatch: Any) -> None:
    config = DPOKConfig(**{**settings, "iterations": 1, "slots": 2, "vae_slicing": True})
    train(config)
    monkeypatch.setattr(tiny_pipeline, "decode_chunk", 4)  # as on a GPU
    rows: list[int] = []
    decoded: list[int] = []
    real = Denoiser.forward

    def forward(self: Any, latent: torch.Tensor, *args: Any) -> torch.Tensor:
        rows.append(len(latent))
        return real(self, latent, *args)

    monkeypatch.setattr(Denoiser, "forward", forward)
    hook = tiny_pipeline.vae.decoder.register_forward_pre_hook(lambda _, args: decoded.append(len(args[0])))
    evaluate(config, EvaluateConfig(pictures=5))
    assert set(rows) == {1, 2}
    assert set(decoded) == {1}
    rows.clear()
    cli.main(["sample", str(config.out), "--pictures", "5"])
    assert set(rows) == {1, 2}
    rows.clear()
    cli.main(["sample", str(config.out), "--pictures", "5", "--batch-size", "3"])
    assert set(rows) == {2, 3}
    hook.remove()


@pytest.mark.parametrize("command", ["evaluate", "sample"])
def test_pictures_can_be_decoded_one_by_one(
    settings: dict[str, Any], tiny_pipeline: Any, monkeypatch: Any, command: str
) -> None:
    config = DPOKConfig(**{**settings, "iterations": 1})
    train(config)
    decoded: list[int] = []
    hook = tiny_pipeline.vae.decoder.register_forward_pre_hook(lambda _, args: decoded.append(len(args[0])))
    for option, size in (([], 4), (["--vae-slicing"], 1)):
        monkeypatch.setattr(tiny_pipeline, "decode_chunk", 4)  # as on a GPU
        cli.main([command, str(config.out), "--pictures", "4", *option])
        assert set(decoded) == {size}
        decoded.clear()
    hook.remove()


@pytest.mark.parametrize(("size", "tile"), [(16, 128), (64, 128), (128, 128), (256, 256), (512, 256), (1024, 256)])
def test_large_pictures_are_scaled_down_for_the_sheet(tmp_path: Path, size: int, tile: int) -> None:
    checkerboard = (torch.arange(size)[:, None] + torch.arange(size)) % 2
    pictures = {"before": checkerboard.float().expand(2, 3, size, size), "after": torch.ones(2, 3, size, size)}
    save_before_after(tmp_path / "sheet.png", pictures, ["a", "b"])
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    gap = max(4, 4 * tile // size)
    assert sheet.shape == (2 * tile + gap, 2 * tile, 3)
    assert (sheet[tile:] == 255).all()
    if tile >= size:  # whole pixels
        assert np.array_equal(sheet[: tile : tile // size, :: tile // size, 0], 255 * checkerboard.repeat(1, 2))
    else:  # antialiased: grey, not every other pixel
        assert np.abs(sheet[8 : tile - 8, 8 : tile - 8].astype(int) - 127).max() < 10
    assert (tmp_path / "sheet.png").stat().st_size < 2**20


def test_intervals() -> None:
    values = np.random.default_rng(0).normal(2.0, 1.0, 400)
    interval = mean_interval(values)
    assert interval["high"] - interval["mean"] == pytest.approx(1.96 / 20, rel=0.1)
    assert share_interval(np.ones(20)) == pytest.approx({"mean": 1.0, "low": 0.839, "high": 1.0}, abs=1e-3)
    same = torch.full((4, 3, 16, 16), 0.5)
    assert diversity_interval(same, ["a"] * 4)["mean"] == 0
    apart = same + torch.tensor([0.2, -0.2, 0.2, -0.2]).view(4, 1, 1, 1)
    assert diversity_interval(apart, ["a", "a", "b", "b"])["mean"] == pytest.approx(0.4)
