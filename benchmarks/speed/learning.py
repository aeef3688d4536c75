"""Trainings of both sides under a budget of CPU time, judged afterwards by the same code.

A training saves its adapters every so often; evaluation loads them, of either side, into our actor and
judges pictures drawn from fixed noise. Its time counts for neither side, nor does that of loading.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agents.config import DPOKConfig
from benchmarks.speed.parts import alone, cpu_seconds
from benchmarks.speed.peer import PeerSettings, make_trainer

POINTS = "points.json"


@dataclass(frozen=True)
class Side:
    """One side's training: what makes it, and what it is made of.

    Attributes:
        settings: all of them.
        make: called in a process of its own with `arguments`; returns what makes an iteration, and the UNet.
        arguments: of `make`.
    """

    settings: dict[str, Any]
    make: Callable[..., tuple[Callable[[], object], Any]]
    arguments: tuple[Any, ...]

    def is_done(self, budget: float, points: int, folder: Path) -> bool:
        """Whether `folder` holds this training, with this budget and number of points."""
        path = folder / POINTS
        return path.is_file() and json.loads(path.read_text())["settings"] == self.whole(budget, points)

    def whole(self, budget: float, points: int) -> dict[str, Any]:
        """The settings with budget and points, as JSON has them."""
        return dict(json.loads(json.dumps({**self.settings, "budget": budget, "points": points})))


def ours(config: DPOKConfig) -> Side:
    """A training by this project."""
    return Side(config.to_json(), _make_ours, (config,))


def peer(directory: str, settings: PeerSettings) -> Side:
    """A training by the peer, which is installed in `directory`."""
    return Side(asdict(settings), _make_peer, (directory, settings))


def _make_ours(config: DPOKConfig) -> tuple[Callable[[], object], Any]:
    from agents.training import Training

    training = Training(config)
    return training.iterate, training.policy.actor.unet


def _make_peer(directory: str, settings: PeerSettings) -> tuple[Callable[[], object], Any]:
    trainer = make_trainer(directory, settings)
    return lambda: trainer.step(0, 0), trainer.sd_pipeline.unet


def train(side: Side, budget: float, points: int, folder: Path) -> None:
    """Train for `budget` CPU seconds in a process of its own, and save the adapters about `points` times."""
    alone(measure, side, side.whole(budget, points), folder)


def train_pair(sides: Sequence[Side], budget: float, points: int, folders: Sequence[Path]) -> None:
    """Train both at the same time, a core each, so that what slows the machine slows both.

    A pair that is done is left alone; one of which either is missing, or of other settings, begins again.
    """
    if all(side.is_done(budget, points, folder) for side, folder in zip(sides, folders, strict=True)):
        return
    with ThreadPoolExecutor(len(sides)) as pool:
        count = len(sides)
        list(pool.map(train, sides, [budget] * count, [points] * count, folders))


def measure(side: Side, settings: dict[str, Any], folder: Path) -> None:
    """Iterate until `settings["budget"]` is spent, saving adapters and the CPU seconds at which they were saved."""
    from agents.common.lora import save_lora

    iterate, unet = side.make(*side.arguments)
    budget, interval = settings["budget"], settings["budget"] / settings["points"]
    seconds, points = 0.0, [0.0]
    shutil.rmtree(folder, ignore_errors=True)
    save_lora(unet, folder / "0")
    while seconds < budget:
        seconds += cpu_seconds(iterate)
        if seconds >= min(budget, (points[-1] // interval + 1) * interval):
            save_lora(unet, folder / str(len(points)))
            points.append(seconds)
    (folder / POINTS).write_text(json.dumps({"settings": settings, "seconds": points}, indent=1) + "\n")


def seconds(folder: Path) -> list[float]:
    """CPU seconds at which a training saved its adapters; empty if it is not done."""
    path = folder / POINTS
    return json.loads(path.read_text())["seconds"] if path.is_file() else []


def curve(folder: Path, settings: dict[str, Any]) -> list[dict[str, float]]:
    """CPU seconds and evaluated reward of each of a training's saved adapters."""
    times = seconds(folder)
    rewards = judged(folder, range(len(times)), settings)
    return [{"seconds": s, "reward": r} for s, r in zip(times, rewards, strict=True)]


def judged(folder: Path, numbers: Sequence[int], settings: dict[str, Any], *, kl: bool = False) -> list[float]:
    """The mean reward, or KL to the pretrained model in nats a picture, of saved adapters.

    Args:
        folder: of the training.
        numbers: which of its saved adapters.
        settings: model, reward, prompt, pictures, first_seed and steps of the evaluation.
        kl: the KL, instead of the reward.
    """
    paths = [folder / str(number) / ("kl.json" if kl else "reward.json") for number in numbers]
    missing = [path for path in paths if not path.is_file() or json.loads(path.read_text())["settings"] != settings]
    if missing:
        alone(_judge, missing, settings, kl)
    return [json.loads(path.read_text())["mean"] for path in paths]


def _judge(paths: list[Path], settings: dict[str, Any], kl: bool) -> None:
    """Judge the adapters beside each path, and write it."""
    import torch

    from agents.common.actor import DenoisingActor
    from agents.common.lora import load_lora
    from agents.common.reference import Reference
    from agents.common.sampling import sample_pictures
    from diffusion_gym.pipelines import load_pipeline
    from diffusion_gym.rewards import make_reward

    pipeline = load_pipeline(settings["model"], device="cpu")
    judge = make_reward(settings["reward"], device=torch.device("cpu"))
    prompts = [settings["prompt"]] * settings["pictures"]
    seeds = range(settings["first_seed"], settings["first_seed"] + settings["pictures"])
    for path in paths:
        unet: Any = pipeline.load_unet()
        load_lora(unet, path.parent)
        actor = DenoisingActor.from_pipeline(pipeline, pipeline.kernel(settings["steps"]), unet=unet)
        samples = sample_pictures(actor, pipeline, prompts, seeds, reference=Reference(actor) if kl else None)
        values = samples.kl if kl else judge(samples.images, prompts, [{} for _ in prompts]).total
        assert values is not None
        path.write_text(json.dumps({"settings": settings, "mean": float(values.mean())}) + "\n")
