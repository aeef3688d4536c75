"""What an iteration costs beyond the UNet, and what DPOK's KL term adds to one."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from agents.config import DDPOConfig, DPOKConfig, PolicyGradientConfig
from benchmarks.speed.parts import alone, alternate, cpu_seconds, ratio
from benchmarks.speed.plan import Plan


@dataclass
class Call:
    """One call of the UNet: what it was given, whether its adapters were merged, whether a gradient went back."""

    arguments: tuple[Any, ...]
    named: dict[str, Any]
    merged: bool
    gradient: bool = False


def settings(plan: Plan, **changes: Any) -> DDPOConfig:
    """The configuration that is measured: DDPO as it comes, on one prompt."""
    config = DDPOConfig(
        out=Path("unused"),
        model=plan.model,
        reward=plan.reward,
        prompts=("a green rabbit",),
        steps=plan.steps,
        pictures=plan.pictures,
        device="cpu",
    )
    return replace(config, **changes)


def record_calls(unet: Any, function: Callable[[], object]) -> list[Call]:
    """The calls of the UNet that `function` makes."""
    from peft.tuners.lora import LoraLayer

    calls: list[Call] = []
    adapter = next(module for module in unet.modules() if isinstance(module, LoraLayer))

    def keep(module: Any, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        call = Call(arguments, named, merged=adapter.merged)
        calls.append(call)
        if output[0].requires_grad:
            output[0].register_hook(lambda gradient: setattr(call, "gradient", True))

    handle = unet.register_forward_hook(keep, with_kwargs=True)
    try:
        function()
    finally:
        handle.remove()
    return calls


def replay(unet: Any, calls: list[Call]) -> float:
    """CPU seconds of the same calls, with a backward pass where there was one, and nothing else.

    Calls that were made with merged adapters are so again; the merging itself is not timed.
    """
    from agents.common.lora import merged_adapters

    seconds = 0.0
    for merged, group in groupby(calls, key=lambda call: call.merged):
        with merged_adapters(unet) if merged else nullcontext():
            seconds += cpu_seconds(partial(_call, unet, list(group)))
    return seconds


def _call(unet: Any, calls: list[Call]) -> None:
    import torch

    for call in calls:
        with torch.set_grad_enabled(call.gradient):
            output = unet(*call.arguments, **call.named)[0]
        if call.gradient:
            output.backward(torch.ones_like(output))
    unet.zero_grad()


def iteration(config: PolicyGradientConfig, repeats: int) -> dict[str, Any]:
    """CPU seconds of an iteration, of its UNet calls alone, and of decoding and judging its pictures."""
    import torch

    from agents.training import Training

    training = Training(config)
    unet = training.policy.actor.unet
    calls = record_calls(unet, training.iterate)
    latents = torch.randn(config.pictures, *training.pipeline.latent_shape)
    images = training.pipeline.decode(latents)
    prompts = list(config.prompts) * config.pictures
    names = ("iteration", "bare", "decode", "reward")
    steps: list[Callable[[], float]] = [
        partial(cpu_seconds, training.iterate),
        partial(replay, unet, calls),
        partial(cpu_seconds, partial(training.pipeline.decode, latents)),
        partial(cpu_seconds, partial(training.env.reward, images, prompts, [{}] * config.pictures)),
    ]
    rounds = alternate(steps, repeats)
    seconds = dict(zip(names, rounds, strict=True))
    rest = [i - d - r for i, d, r in zip(seconds["iteration"], seconds["decode"], seconds["reward"], strict=True)]
    total = sum(seconds["iteration"])
    return {
        "reward": config.reward,
        "pictures": config.pictures,
        "steps": config.steps,
        "unet_calls": {
            "sampling": [len(call.arguments[0]) for call in calls if not call.gradient],
            "update": [len(call.arguments[0]) for call in calls if call.gradient],
        },
        "seconds": seconds,
        "over_bare": ratio(seconds["iteration"], seconds["bare"]),
        "over_bare_without_decode_and_reward": ratio(rest, seconds["bare"]),
        "share_of_decode": sum(seconds["decode"]) / total,
        "share_of_reward": sum(seconds["reward"]) / total,
    }


def kl_settings(plan: Plan) -> dict[str, DPOKConfig]:
    """DPOK without its KL term, as it comes, and with it on half of the transitions; by the share it is taken on."""
    common = {name: getattr(settings(plan), name) for name in ("out", "model", "reward", "prompts", "device")}
    config = DPOKConfig(**common, pictures=plan.pictures, steps=plan.steps)
    return {"0": replace(config, kl_weight=0.0), "1": config, "0.5": replace(config, kl_fraction=0.5)}


def kl_cost(plan: Plan) -> dict[str, Any]:
    """CPU seconds of an iteration of DPOK with its KL term on all, or half, of the transitions, against without."""
    from agents.training import Training

    chosen = kl_settings(plan)
    trainings = [Training(config) for config in chosen.values()]
    rounds = alternate([partial(cpu_seconds, training.iterate) for training in trainings], plan.repeats)
    seconds = dict(zip(chosen, rounds, strict=True))
    without = seconds.pop("0")
    return {
        share: {"with_kl": found, "without_kl": without, "ratio": ratio(found, without)}
        for share, found in seconds.items()
    }


def measure(plan: Plan) -> dict[str, Any]:
    """Both, each in a process of its own."""
    rewards = [plan.reward] if plan.second_reward is None else [plan.reward, plan.second_reward]
    found = [alone(iteration, settings(plan, reward=reward), plan.repeats) for reward in rewards]
    return {"iterations": found, "dpok_kl": alone(kl_cost, plan)}
