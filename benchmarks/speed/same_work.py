"""The peer's iteration and ours, doing the same: pictures, steps, guidance, transitions an optimizer step, adapters.

Each side trains in a process of its own, and they iterate in turn. The ways in which the peer can split an optimizer
step are tried first, and the fastest is taken. A check comes before: our update is given the peer's own first pictures
and adapters, and must find the peer's log-probabilities, loss and gradient.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from agents.config import DDPOConfig
from benchmarks.intervals import Floats
from benchmarks.speed.overhead import settings
from benchmarks.speed.parts import alone, in_turn, ratio
from benchmarks.speed.peer import PeerSettings, make_trainer
from benchmarks.speed.plan import Plan
from benchmarks.speed.scaling import trainer


@dataclass(frozen=True)
class Case:
    """Which layers get adapters, of which rank."""

    adapters: Literal["attention", "all"]
    rank: int


CASES = {"our adapters": Case("all", 16), "peer's adapters": Case("attention", 4)}
"""The adapters that either side has by default."""
LEARNING_RATE, CLIP_RANGE = 3e-4, 2e-3


def our_settings(plan: Plan, case: Case) -> DDPOConfig:
    """DDPO that learns from every step in two optimizer steps an iteration."""
    return settings(
        plan,
        timestep_fraction=1.0,
        step_weights="uniform",
        batch_size=plan.pictures * plan.steps // 2,
        learning_rate=LEARNING_RATE,
        clip_range=CLIP_RANGE,
        lora_targets=case.adapters,
        lora_rank=case.rank,
    )


def peer_settings(plan: Plan, case: Case) -> list[PeerSettings]:
    """The same for the peer, in the ways in which it can split an optimizer step."""
    half = plan.pictures // 2
    return [
        PeerSettings(
            model=plan.model,
            reward=plan.reward,
            prompt="a green rabbit",
            steps=plan.steps,
            pictures=plan.pictures,
            sample_batch=plan.pictures,
            train_batch=train_batch,
            accumulation=half // train_batch,
            learning_rate=LEARNING_RATE,
            clip_range=CLIP_RANGE,
            adapters=case.adapters,
            rank=case.rank,
        )
        for train_batch in sorted({max(1, half // split) for split in plan.splits}, reverse=True)
    ]


def peer(directory: str, settings: PeerSettings) -> Callable[[], object]:
    """What makes an epoch of the peer."""
    trainer = make_trainer(directory, settings)
    return lambda: trainer.step(0, 0)


def measure(plan: Plan, directory: str) -> dict[str, Any]:
    """Check and measure every case."""
    return {name: _measure_case(plan, CASES[name], directory) for name in plan.cases}


def _measure_case(plan: Plan, case: Case, directory: str) -> dict[str, Any]:
    ours, ways = our_settings(plan, case), peer_settings(plan, case)
    checked = check(ours, replace(ways[0], accumulation=2, train_batch=plan.pictures // 2), directory)
    trials = in_turn([(peer, (directory, way)) for way in ways], 1)
    fastest = ways[int(np.argmin(trials))]
    ours_s, peer_s = in_turn([(trainer, (ours,)), (peer, (directory, fastest))], plan.repeats)
    return {
        "check": checked,
        "peer_seconds_by_train_batch": {way.train_batch: seconds[0] for way, seconds in zip(ways, trials, strict=True)},
        "ours": {"settings": ours.to_json(), "seconds": ours_s},
        "peer": {"settings": asdict(fastest), "seconds": peer_s},
        "ours_over_peer": ratio(ours_s, peer_s),
    }


def check(ours: DDPOConfig, peer: PeerSettings, directory: str) -> dict[str, float]:
    """One optimizer step from all pictures of the peer's first epoch, by both sides.

    Returns:
        The largest difference of the ratio from 1 (the peer's log-probabilities against ours), and loss and norm of the
        gradient of both. The loss of normalised advantages at ratio 1 is 0 but for rounding.
    """
    first = alone(first_epoch, directory, peer)
    stats = alone(our_update, ours, first)
    return {
        "ratio_deviation": stats.ratio_deviation,
        "our_loss": stats.loss,
        "peer_loss": first["loss"],
        "our_gradient_norm": stats.grad_norm,
        "peer_gradient_norm": first["gradient_norm"],
    }


def first_epoch(directory: str, settings: PeerSettings) -> dict[str, Any]:
    """The peer's first epoch: its adapters before, its transitions, and loss and gradient norm of its one update."""
    import torch
    from peft import get_peft_model_state_dict

    trainer = make_trainer(directory, settings)
    unet, accelerator = trainer.sd_pipeline.unet, trainer.accelerator
    adapters = {name: value.clone().numpy() for name, value in get_peft_model_state_dict(unet).items()}
    found: dict[str, Any] = {"adapters": adapters}
    losses: list[float] = []
    sample, backward, clip, reward = (
        trainer._generate_samples,
        accelerator.backward,
        accelerator.clip_grad_norm_,
        trainer.compute_rewards,
    )

    def keep_samples(**arguments: Any) -> Any:
        samples, pictures = sample(**arguments)
        for name in ("latents", "next_latents", "log_probs"):
            found[name] = torch.cat([part[name] for part in samples]).numpy()
        return samples, pictures

    def keep_rewards(*arguments: Any, **named: Any) -> Any:
        rewards, metadata = reward(*arguments, **named)
        found["rewards"] = torch.cat(rewards).numpy()
        return rewards, metadata

    def keep_loss(loss: Any) -> None:
        losses.append(float(loss.detach()))
        backward(loss)

    def keep_norm(parameters: Any, limit: float) -> Any:
        norm = clip(parameters, limit)
        found["gradient_norm"] = float(norm)
        return norm

    trainer._generate_samples, trainer.compute_rewards = keep_samples, keep_rewards
    accelerator.backward, accelerator.clip_grad_norm_ = keep_loss, keep_norm
    trainer.step(0, 0)
    return {**found, "loss": float(np.mean(losses))}


def our_update(config: DDPOConfig, first: dict[str, Any]) -> Any:
    """Statistics of our update from the peer's adapters and transitions."""
    import torch
    from peft import set_peft_model_state_dict
    from tianshou.data import Batch
    from tianshou.utils.torch_utils import policy_within_training_step

    from agents.training import Training

    training = Training(config)
    adapters = {name: torch.from_numpy(value) for name, value in first["adapters"].items()}
    set_peft_model_state_dict(training.policy.actor.unet, adapters)
    numbers = training.pipeline.prompts.ids(list(config.prompts) * config.pictures)
    rewards: Floats = np.asarray(first["rewards"], dtype=np.float64)
    for step in range(config.steps):
        last = np.full(config.pictures, step == config.steps - 1)
        training.buffer.add(
            Batch(
                obs=Batch(latent=first["latents"][:, step], step=np.full(config.pictures, step), prompt_id=numbers),
                act=first["next_latents"][:, step],
                rew=np.where(last, rewards, 0.0),
                terminated=last,
                truncated=np.zeros(config.pictures, dtype=bool),
                obs_next=Batch(latent=first["next_latents"][:, step]),
                info=Batch(),
                policy=Batch(log_prob=torch.from_numpy(first["log_probs"][:, step].copy())),
            )
        )
    with policy_within_training_step(training.policy):
        stats: Any = training.algorithm.update(training.buffer, None, 1)
    return stats
