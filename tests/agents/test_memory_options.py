"""Options that save memory or time change no result."""

from pathlib import Path
from typing import Any

import pytest
import torch

from agents.config import DPOKConfig
from agents.training import Training


def trained(model: Path, out: Path, **changes: Any) -> tuple[Training, torch.Tensor]:
    """A training after one iteration, and its parameters."""
    config = DPOKConfig(
        out=out,
        model=str(model),
        reward="jpeg_compressibility",
        prompts=("a cat",),
        steps=3,
        pictures=4,
        lora_rank=2,
        learning_rate=1e-2,
        guidance_scale=3.0,
        device="cpu",
        **changes,
    )
    run = Training(config)
    run.iterate()
    return run, torch.cat([p.detach().flatten() for p in run.policy.actor.parameters() if p.requires_grad])


@pytest.mark.parametrize("option", ["gradient_checkpointing", "attention_slicing", "vae_slicing", "compile"])
def test_the_same_rewards_and_parameters(tiny_model, tmp_path, option, monkeypatch):
    compiled = []
    real = torch.compile

    def compile_eagerly(call: Any, *args: Any, **kwargs: Any) -> Any:
        compiled.append(call)
        return real(call, backend="eager")

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    plain, expected = trained(tiny_model, tmp_path)
    assert not compiled
    run, found = trained(tiny_model, tmp_path, **{option: True})
    assert bool(compiled) == (option == "compile")
    assert run.history[0]["reward"] == pytest.approx(plain.history[0]["reward"], abs=1e-4)
    assert run.history[0]["ratio_deviation"] < 1e-6
    # As a whole: AdamW makes steps of equal size from gradients that are nearly 0, whose sign is rounding.
    assert (found - expected).norm() < 1e-3 * expected.norm()
    assert (expected != 0).any()


def test_checkpointing_keeps_fewer_results(tiny_model, tmp_path):
    def kept(**changes: Any) -> int:
        run, _ = trained(tiny_model, tmp_path, **changes)
        sizes: list[int] = []
        bank = run.pipeline.prompts
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.nbytes), t)[1], lambda t: t):
            run.policy.actor.denoiser(torch.zeros(2, 4, 8, 8), torch.tensor(1), bank.embeddings(bank.ids(["a", "b"])))
        return sum(sizes)

    assert kept(gradient_checkpointing=True) < 0.5 * kept()


def test_decoding_one_picture_at_a_time(tiny_model, tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_pipeline, "decode_chunk", 4)  # as on a GPU
    batches: list[int] = []
    hook = tiny_pipeline.vae.decoder.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    trained(tiny_model, tmp_path)
    assert batches == [4]
    trained(tiny_model, tmp_path, vae_slicing=True)
    assert batches == [4, 1, 1, 1, 1]
    hook.remove()
