"""The plan of a training against what torch allocates and what a training does."""

from collections import Counter
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from agents import plan as plan_module
from agents.build import make_actor
from agents.config import DDPOConfig, DPOKConfig, SFTConfig, TrainConfig
from agents.plan import plan_training, show_plan
from agents.simulate import SimulatedUNet, decoder_cost
from agents.training import Training
from benchmarks.random_model import save_random_model, save_random_sdxl
from diffusion_gym.pipelines import load_pipeline, read_model_files


def allocated(call: Any) -> int:
    """Peak bytes that torch's allocator gave out during a call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        kept = call()
    live = peak = 0
    for event in run.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    del kept
    return peak


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("agent", [DDPOConfig, SFTConfig])
def test_memory_is_what_torch_allocates(agent, checkpointing):
    config = agent(gradient_checkpointing=checkpointing, device="cpu")
    pipeline = load_pipeline("emoji", device="cpu")
    actor = make_actor(config, pipeline, pipeline.kernel(10))
    simulated = SimulatedUNet(config, pipeline.files, torch.float32)
    latent, timestep = torch.randn(16, *pipeline.latent_shape), torch.zeros(16, dtype=torch.int64)
    embedding = pipeline.prompts.embeddings(pipeline.prompts.ids(["a cat"] * 16))

    denoise = actor.denoiser.conditional if agent is SFTConfig else actor.denoiser

    def update() -> torch.Tensor:
        out = denoise(latent, timestep, embedding)
        out.square().mean().backward()
        return out

    def rollout() -> torch.Tensor:
        with torch.no_grad():
            return actor.denoiser(latent, timestep, embedding)

    assert simulated.update(16).memory == pytest.approx(allocated(update), rel=0.2)
    assert simulated.rollout(16).memory == pytest.approx(allocated(rollout), rel=0.2)
    pipeline.decode(latent[:1])  # loads it
    decoded = allocated(lambda: pipeline.decode(latent[:2]))
    assert decoder_cost(pipeline.files, torch.float32, 2)[1].memory == pytest.approx(decoded, rel=0.25)


@pytest.mark.parametrize("save", [save_random_model, save_random_sdxl])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_arithmetic_is_what_torch_counts(tmp_path, save, guidance_scale):
    config = DDPOConfig(model=str(save(tmp_path / "m")), guidance_scale=guidance_scale, lora_rank=2, device="cpu")
    pipeline = load_pipeline(config.model, device="cpu")
    actor = make_actor(config, pipeline, pipeline.kernel(10))
    embedding = pipeline.prompts.embeddings(pipeline.prompts.ids(["a", "b", "c"]))
    simulated = SimulatedUNet(config, pipeline.files, torch.float32)
    with FlopCounterMode(display=False) as counted, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        actor.denoiser(torch.randn(3, *pipeline.latent_shape), torch.zeros(3, dtype=torch.int64), embedding)
    assert simulated.rollout(3).flops == pytest.approx(counted.get_total_flops(), rel=1e-3)
    trained = sum(p.numel() for p in actor.parameters() if p.requires_grad)
    assert (simulated.trained, simulated.parameters) == (
        trained,
        sum(p.numel() for p in actor.unet.parameters()) - trained,
    )
    assert 1.5 < simulated.update(3).flops / simulated.rollout(3).flops < 3.5


def prepared(config: TrainConfig, model: Any, out: Any) -> tuple[Training, Counter[str]]:
    """A training of a tiny guided model, and the rows that its UNet gets from now on, by what they are for."""
    config.out, config.model, config.reward = out, str(model), "jpeg_compressibility"
    config.prompts, config.device, config.guidance_scale = ("a cat",), "cpu", 2.0
    training = Training(config)
    rows: Counter[str] = Counter()

    def count(module: Any, args: Any) -> None:
        adapted = not next(m for m in module.modules() if isinstance(m, BaseTunerLayer)).disable_adapters
        rows["update" if torch.is_grad_enabled() else "sample" if adapted else "reference"] += len(args[0])

    training.policy.actor.unet.register_forward_pre_hook(count)
    return training, rows


def planned_rows(config: TrainConfig) -> dict[str, float]:
    """The plan's arithmetic in rows of UNet calls."""
    guided = DDPOConfig(model=config.model, guidance_scale=2.0, lora_rank=config.lora_rank)
    one = SimulatedUNet(guided, read_model_files(config.model), torch.float32)
    flops = plan_training(config).flops
    forward, with_gradient = one.rollout(8).flops / 16, one.update(8).flops / 16  # guidance doubles the rows
    found = {"sample": flops["sample"] / forward, "update": flops["update"] / with_gradient}
    return found | {"reference": flops.get("reference", 0) / forward}


@pytest.mark.parametrize(
    "config",
    [
        DPOKConfig(pictures=6, slots=3, steps=4, passes=2, micro_batch_size=4, lora_rank=2),
        DPOKConfig(pictures=6, steps=4, kl_weight=0.0, timestep_fraction=1.0, lora_rank=2),
        SFTConfig(pictures=6, steps=4, weighting="softmax", regulariser="kl-o", lora_rank=2),
    ],
    ids=["dpok", "without_kl", "sft"],
)
def test_the_plan_counts_the_calls_that_a_training_makes(tiny_model, tmp_path, config: TrainConfig):
    training, rows = prepared(config, tiny_model, tmp_path)
    training.iterate()
    expected = planned_rows(config)
    assert {name: rows[name] for name in expected} == pytest.approx(expected, rel=0.02)
    assert plan_training(config).gathering == 0


def test_a_pool_is_gathered_first_and_then_learned_from(tiny_model, tmp_path):
    config = SFTConfig(pictures=4, steps=3, pool=12, passes=2, iterations=5, regulariser="kl-o", lora_rank=2)
    training, rows = prepared(config, tiny_model, tmp_path)
    planned, plan = planned_rows(config), plan_training(config)
    assert plan.gathering == 3
    for iteration in range(1, 6):
        rows.clear()
        training.iterate()
        expected = {
            "sample": planned["sample"] * (iteration <= plan.gathering),
            "update": planned["update"] * (iteration >= plan.gathering),
            "reference": planned["reference"] * (iteration >= plan.gathering),
        }
        assert {name: rows[name] for name in expected} == pytest.approx(expected, rel=0.02)
    assert plan.host["pool"] == training.algorithm._latent_PCHW.nbytes


@pytest.mark.parametrize("regulariser", ["none", "kl-o"])
def test_the_plan_of_a_pool_as_a_user_sees_it(monkeypatch, regulariser):
    # So fast that the times in seconds are the operations in units of 10^12.
    monkeypatch.setattr(plan_module, "matrix_product_rate", lambda *_: 1e12 / plan_module.UTILISATION)
    config = SFTConfig(device="cpu", pictures=48, pool=1440, iterations=40, regulariser=regulariser)  # type: ignore[arg-type]
    flops = plan_training(config).flops
    gathers = (flops["sample"] + flops["decode"]) / 1e12
    learns = (flops["update"] + flops.get("reference", 0)) / 1e12
    text = show_plan(config)
    assert f"iterations 1 to 30, each 48 pictures x 10 steps, {gathers:.1f} TFLOP (sample" in text
    assert f"iterations 30 to 40, each 2 x 1,440 pictures, {learns:.1f} TFLOP (" in text
    assert f"about {gathers:.1f} s an iteration that gathers and {learns:.1f} s one that learns on this machine" in text


def test_gradients_of_earlier_micro_batches_are_there_all_the_time():
    config = DDPOConfig(full=True, gradient_checkpointing=True, device="cpu")
    pipeline = load_pipeline("emoji", device="cpu")
    actor = make_actor(config, pipeline, pipeline.kernel(10))
    simulated = SimulatedUNet(config, pipeline.files, torch.float32)
    latent, timestep = torch.randn(4, *pipeline.latent_shape), torch.zeros(4, dtype=torch.int64)
    embedding = pipeline.prompts.embeddings(pipeline.prompts.ids(["a cat"] * 4))

    def update() -> torch.Tensor:
        for _ in range(2):
            out = actor.denoiser(latent, timestep, embedding)
            out.square().mean().backward()
        return out

    once, twice = (simulated.update(4, accumulating=again).memory for again in (False, True))
    assert twice == pytest.approx(allocated(update), rel=0.2)
    assert once < twice <= once + 4 * simulated.trained
    several = plan_training(DDPOConfig(full=True, pictures=4, steps=4, batch_size=8, micro_batch_size=4, device="cpu"))
    whole = plan_training(DDPOConfig(full=True, pictures=4, steps=4, batch_size=4, micro_batch_size=4, device="cpu"))
    assert several.passing["update"] > whole.passing["update"]


def test_a_whole_unet_is_kept_twice_where_there_is_a_kl():
    plans = {weight: plan_training(DPOKConfig(full=True, kl_weight=weight, device="cpu")) for weight in (0.0, 0.02)}
    more = sum(plans[0.02].standing.values()) - sum(plans[0.0].standing.values())
    assert more == 4 * plans[0.0].parameters
    adapters = plan_training(DPOKConfig(device="cpu"))
    assert adapters.standing["pretrained UNet"] == 0


def test_weights_are_kept_apart_while_adapters_are_merged():
    merged, apart = (plan_training(DPOKConfig(merge_adapters=merge, device="cpu")) for merge in (True, False))
    pipeline = load_pipeline("emoji", device="cpu")
    unet = make_actor(DPOKConfig(), pipeline, pipeline.kernel(10)).unet
    weights = sum(m.get_base_layer().weight.nbytes for m in unet.modules() if isinstance(m, BaseTunerLayer))
    assert merged.passing["sample"] - apart.passing["sample"] == weights


def test_replay_asks_the_reference_about_what_no_update_drew_before(tiny_model, tmp_path):
    config = DPOKConfig(out=tmp_path, model=str(tiny_model), reward="jpeg_compressibility", prompts=("a cat",))
    config.pictures, config.steps, config.rollouts, config.kl_fraction = 12, 4, 2, 0.5
    config.device, config.guidance_scale, config.lora_rank = "cpu", 2.0, 2
    training = Training(config)
    training.iterate()
    outputs = training.algorithm.reference_outputs
    before = outputs.computed
    for _ in range(3):
        training.iterate()
    plan, one = plan_training(config), SimulatedUNet(config, read_model_files(config.model), torch.float32)
    assert plan.flops["reference"] / one.rollout(1).flops == pytest.approx((outputs.computed - before) / 3, rel=0.15)
    # Stored for the whole buffer, whatever share was asked about.
    assert plan.host["reference outputs"] == outputs._output_ICHW.nbytes
    assert plan.host["trajectories"] == pytest.approx(training.buffer.nbytes(), rel=0.1)
    assert plan_training(DPOKConfig(kl_weight=0.0, device="cpu")).host["reference outputs"] == 0


def test_the_speed_of_the_device_is_measured_with_its_work_done(monkeypatch):
    waited = []
    monkeypatch.setattr(plan_module, "wait_for", waited.append)
    assert plan_module.matrix_product_rate(torch.device("cpu"), torch.float32) > 0
    assert len(waited) == 8


def test_the_plan_as_a_user_sees_it():
    text = show_plan(DDPOConfig(device="cpu", pictures=8, steps=3))
    assert "64 x 64, UNet of 7 M parameters in float32" in text
    assert "8 pictures x 3 steps" in text
    assert "an iteration on this machine (cpu)" in text
