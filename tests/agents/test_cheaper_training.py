"""Options that make training cheaper do what they say, and no more."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from recorder import recorder

from agents.common.lora import merged_adapters
from agents.config import DPOKConfig, SFTConfig
from agents.ddpo import DDPO
from agents.evaluation import load_trained
from agents.report import write_report
from agents.run import train
from agents.run_directory import read_history
from agents.training import Training


def batches(unet: Any) -> list[int]:
    """The sizes of the UNet's calls from now on."""
    found: list[int] = []
    unet.register_forward_pre_hook(lambda _, args: found.append(len(args[0])))
    return found


def test_merged_adapters_change_outputs_by_rounding_and_weights_not_at_all(world: Callable[..., Any]) -> None:
    unet = world(perturb=0.05).policy.actor.unet
    weights = {name: p.detach().clone() for name, p in unet.named_parameters()}
    calls: list[str] = []
    for name, module in unet.named_modules():
        if name.endswith("lora_A.default"):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))

    def output() -> torch.Tensor:
        with torch.no_grad():
            return unet(torch.ones(1, 4, 8, 8), torch.tensor([7]), torch.ones(1, 5, 16)).sample

    apart = output()
    assert calls
    calls.clear()
    with merged_adapters(unet):
        together = output()
    assert not calls
    unet.disable_adapters()
    assert (output() - apart).abs().max() > 1e-3
    unet.enable_adapters()
    assert (together - apart).abs().max() < 1e-5
    assert all(torch.equal(p, weights[name]) for name, p in unet.named_parameters())
    assert torch.equal(output(), apart)


def test_weights_are_put_back_after_an_error(world: Callable[..., Any]) -> None:
    unet = world(perturb=0.05).policy.actor.unet
    weights = [p.detach().clone() for p in unet.parameters()]
    with pytest.raises(KeyboardInterrupt), merged_adapters(unet):
        raise KeyboardInterrupt
    assert all(torch.equal(p, before) for p, before in zip(unet.parameters(), weights, strict=True))


def run(settings: dict[str, Any], **changes: Any) -> Training:
    """A training after two iterations: in the second the adapters are no longer 0."""
    training = Training(DPOKConfig(**{**settings, "learning_rate": 1e-2, "guidance_scale": 3.0, **changes}))
    for _ in range(2):
        training.iterate()
    return training


def test_merging_leaves_the_training_as_it_is(settings: dict[str, Any]) -> None:
    merged, apart = run(settings), run(settings, merge_adapters=False)
    assert merged.config.merges_adapters()
    assert not apart.config.merges_adapters()
    assert merged.history[1]["reward"] == pytest.approx(apart.history[1]["reward"], abs=1e-4)
    assert 0 < merged.history[1]["ratio_deviation"] < 1e-6


@pytest.mark.parametrize("reference", ["pretrained", "rollout"])
def test_a_kl_is_shown_by_what_it_is_taken_to(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reference: Any
) -> None:
    config = DPOKConfig(**settings, kl_reference=reference, passes=2)
    train(config)
    shown = capsys.readouterr().err
    to_rollout = reference == "rollout"
    for record in read_history(config.out):
        assert ("kl" in record, "kl_to_rollout" in record) == (not to_rollout, to_rollout)
    assert ("kl to rollout" in shown) == to_rollout
    titles = []
    monkeypatch.setattr("matplotlib.axes.Axes.set_title", lambda _, title, **__: titles.append(title))
    write_report(config.out)
    assert ("KL to the pretrained model, nats a picture" in titles) == (not to_rollout)
    assert ("KL to the policy that drew the pictures, nats a picture" in titles) == to_rollout


@pytest.mark.parametrize(
    "changes",
    [{"dtype": "bfloat16"}, {"reduction": "sum", "clip_range": 0.1}, {"full": True, "learning_rate": 1e-5}],
)
def test_nothing_is_merged_where_rounding_would_matter(changes: dict[str, Any]) -> None:
    assert DPOKConfig().merges_adapters()
    assert SFTConfig().merges_adapters()
    assert not DPOKConfig(**changes).merges_adapters()


def test_unguided_training_calls_the_unet_half_as_often(settings: dict[str, Any]) -> None:
    config = DPOKConfig(**settings, guidance_scale=3.0, guided_training=False, kl_weight=0.0)
    training = Training(config)
    calls = batches(training.policy.actor.unet)
    record = training.iterate()
    assert calls[:3] == [4, 4, 4]  # three steps of four pictures
    assert record["ratio_deviation"] < 1e-6
    training.save()
    _, actor, _, _ = load_trained(config)
    assert actor.denoiser.guidance_scale == 3.0


def test_unguided_training_is_that_of_the_unguided_policy(settings: dict[str, Any]) -> None:
    unguided, scale_1 = run(settings, guided_training=False), run(settings, guidance_scale=1.0)
    for found, expected in zip(unguided.algorithm.parameters(), scale_1.algorithm.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_without_the_unconditional_gradient_the_ratio_is_exact(world: Callable[..., Any]) -> None:
    w = world(perturb=0.05, num_envs=4)
    w.collect()
    gradients = []
    for whole in (True, False):
        w.policy.actor.denoiser.unconditional_gradient = whole
        algorithm = DDPO(policy=w.policy, optim=recorder(), max_grad_norm=None)
        assert w.update(algorithm).ratio_deviation < 1e-6
        gradients.append(algorithm.optim._optim.gradient)
    assert (gradients[0] - gradients[1]).norm() > 0.05 * gradients[0].norm()
    assert torch.cosine_similarity(*gradients, dim=0) > 0.5


def test_the_option_reaches_the_denoiser(settings: dict[str, Any]) -> None:
    training = Training(DPOKConfig(**settings, guidance_scale=3.0, unconditional_gradient=False))
    calls = batches(training.policy.actor.unet)
    assert training.iterate()["ratio_deviation"] < 1e-6
    assert calls[:3] == [8, 8, 8]
    assert not training.policy.actor.denoiser.unconditional_gradient
