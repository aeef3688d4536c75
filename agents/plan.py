"""What a training will take, found before it is begun: memory of the device, arithmetic and time of an iteration.

Reads the model's configurations only. The UNet's and the decoder's calls are simulated (see `agents.simulate`); a CUDA
device's own needs, and how much of a device's arithmetic a UNet reaches, are rules of thumb, written here as constants.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from agents.common.timer import wait_for
from agents.config import DPOKConfig, SFTConfig, StockConfig, TrainConfig
from agents.inputs import check_inputs
from agents.simulate import SimulatedUNet, decoder_cost, text_encoder_parameters
from diffusion_gym.device import DTYPES, parse_device
from diffusion_gym.pipelines import read_model_files
from diffusion_gym.pipelines.pipeline import decode_chunk

CUDA_CONTEXT = 700 * 2**20
"""Bytes that a CUDA process takes for itself: context, kernels, workspaces."""
FRAGMENTATION = 1.05
"""What the allocator cannot use, as a factor."""
UTILISATION = 0.4
"""Share of the speed of a large matrix product that a UNet reaches."""

DEVICES = {
    "RTX 3090": (24, 71e12),
    "RTX 4090": (24, 165e12),
    "L40S": (48, 362e12),
    "A100": (80, 312e12),
    "H100": (80, 989e12),
}
"""Memory in GB and dense bfloat16 operations a second, from the makers' data sheets."""

REWARD_PARAMETERS = {
    "aesthetic": 428e6,
    "clip_score": 428e6,
    "hps_v2": 986e6,
    "image_reward": 447e6,
    "pick_score": 986e6,
}
"""Of the rewards with large networks."""


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Needs of a training.

    Attributes:
        parameters: of the model's UNet.
        trained: parameters that are trained.
        standing: bytes on the device from the first to the last iteration, by what they are for.
        passing: bytes beside those at the peak of each phase.
        host: bytes in main memory, by what they are for.
        flops: floating-point operations by phase, of an iteration that has the phase.
        gathering: iterations that fill a pool of pictures: the last of them is the first that learns, and later ones
            sample nothing. 0 if every iteration does both.
    """

    parameters: int
    trained: int
    standing: Mapping[str, int]
    passing: Mapping[str, int]
    host: Mapping[str, int]
    flops: Mapping[str, int]
    gathering: int

    @property
    def memory(self) -> int:
        """Bytes that torch's tensors take on the device at the peak."""
        return sum(self.standing.values()) + max(self.passing.values())

    @property
    def cuda_memory(self) -> int:
        """Bytes that the process takes on a CUDA device."""
        return round(self.memory * FRAGMENTATION) + CUDA_CONTEXT


def plan_training(config: TrainConfig) -> TrainingPlan:
    """Work out a training's needs.

    Raises:
        ValueError: the model's configurations cannot be had.
    """
    files = read_model_files(config.model)
    dtype = DTYPES[config.dtype]
    unet = SimulatedUNet(config, files, dtype)
    size = dtype.itemsize
    slots = config.num_slots()
    # The plan is for a GPU unless the CPU is asked for.
    chunk = 1 if config.vae_slicing else decode_chunk(files, torch.device("cpu" if config.device == "cpu" else "cuda"))
    decoder_parameters, decode = decoder_cost(files, dtype, min(chunk, slots))
    micro, several = _micro_batch(config)
    rollout, update, reference = unet.rollout(slots), unet.update(micro, accumulating=several), unet.reference(1)
    reward = sum(n for name, n in REWARD_PARAMETERS.items() if name in config.reward)
    compared = _compared(config)
    moments = 2 if config.full else 3  # beside the weights, or with them
    flops = {
        "sample": rollout.flops // slots * config.pictures * config.steps,
        "decode": decode.flops // min(chunk, slots) * config.pictures,
        "reference": reference.flops * compared,
        "update": update.flops // micro * config.transitions() * config.passes,
    }
    latent = 4 * torch.Size(files.latent_shape).numel()
    latents = latent * config.pictures * getattr(config, "rollouts", 1)
    pool = config.pool if isinstance(config, SFTConfig) else 0
    # While pictures are sampled with merged adapters, the weights are kept apart.
    copies = unet.adapted * size if config.merges_adapters() else 0
    return TrainingPlan(
        parameters=unet.parameters,
        trained=unet.trained,
        standing={
            "model": size * (unet.parameters + text_encoder_parameters(files)) + decoder_parameters,
            "pretrained UNet": size * unet.parameters if config.full and compared else 0,
            "adapters and optimizer": 4 * moments * unet.trained,
            "reward": round(reward * DTYPES[config.reward_dtype].itemsize),
        },
        passing={
            "sample": rollout.memory + copies,
            "decode": decode.memory + copies,
            "update": update.memory,
            "optimizer": 2 * 4 * unet.trained,  # gradients, and AdamW's intermediate results on a GPU
        },
        host={
            "trajectories": latents * (config.steps + 1),
            "pool": latent * pool,
            "means of the rollout": latents * config.steps if getattr(config, "kl_reference", "") == "rollout" else 0,
            "reference outputs": latents * config.steps if isinstance(config, DPOKConfig) and compared else 0,
        },
        flops={name: value for name, value in flops.items() if value},
        gathering=pool // config.pictures,
    )


def show_plan(config: TrainConfig) -> str:
    """The plan as text, with the time an iteration takes on this machine's device, or on others if it has no GPU.

    Raises:
        ValueError: the device, the prompts, the reward's name or the model's configurations are not to be had.
    """
    device = parse_device(config.device)
    check_inputs(config)
    plan = plan_training(config)
    files = read_model_files(config.model)
    _, height, width = files.image_shape
    peak = max(plan.passing, key=lambda name: plan.passing[name])
    lines = [
        f"model       {files.model}: {height} x {width}, UNet of {plan.parameters / 1e6:,.0f} M parameters in "
        f"{config.dtype}",
        f"trained     {plan.trained / 1e6:,.1f} M parameters",
        *_iterations(config, plan),
        f"memory      {_size(plan.memory)} on the device at the peak of the {peak} phase:",
        *(f"              {_size(value):>10}  {name}" for name, value in plan.standing.items() if value),
        *(f"              {_size(value):>10}  {name} phase" for name, value in plan.passing.items()),
        f"            {_size(plan.cuda_memory)} with what CUDA needs",
        "            main memory: " + ", ".join(f"{_size(value)} {name}" for name, value in plan.host.items() if value),
    ]
    if device.type == "cuda":
        free = torch.cuda.get_device_properties(device).total_memory
        fits = "fits" if plan.cuda_memory <= free else "does NOT fit: lower --slots and --micro-batch-size"
        lines.append(f"device      {torch.cuda.get_device_name(device)}, {_size(free)}: {fits}")
    rate = matrix_product_rate(device, DTYPES[config.dtype]) * UTILISATION
    lines.append(f"time        about {_times(plan, rate)} on this machine ({device.type})")
    if device.type == "cpu" and height * width > 128 * 128:
        lines += [
            f"            about {_times(plan, rate * UTILISATION)} on a {name} ({memory} GB"
            f"{'' if plan.cuda_memory <= memory * 1e9 else ', too small'}) in bfloat16"
            for name, (memory, rate) in DEVICES.items()
        ]
    lines.append("            (rewards not counted; the network is taken to reach 40% of a matrix product's speed)")
    return "\n".join(lines)


def matrix_product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product, measured."""
    size = 4096 if device.type == "cuda" else 768
    a = torch.randn(size, size, device=device).to(dtype)
    times = []
    for _ in range(4):
        wait_for(device)
        start = time.perf_counter()
        _ = a @ a
        wait_for(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def _micro_batch(config: TrainConfig) -> tuple[int, bool]:
    """Transitions in one call with gradient, and whether an optimizer step has several such calls."""
    minibatch = config.minibatch() or config.transitions()
    if isinstance(config, StockConfig):
        return minibatch, False
    return min(config.micro_batch_size, minibatch), config.micro_batch_size < minibatch


def _compared(config: TrainConfig) -> int:
    """Transitions (pictures for supervised agents) of an iteration that the pretrained model is asked about."""
    if isinstance(config, SFTConfig):
        return config.transitions() * config.passes if config.regulariser == "kl-o" else 0
    if not isinstance(config, DPOKConfig) or config.kl_weight == 0 or config.kl_reference == "rollout":
        return 0
    # Each update draws a share of every picture it has, and asks only about what no update drew before.
    share = config.kl_fraction * config.trained_steps() / config.steps
    return round(config.pictures * config.steps * (1 - (1 - share) ** config.rollouts))


def _kinds(plan: TrainingPlan) -> list[Mapping[str, int]]:
    """Operations by phase of each kind of iteration: one that does all, or one that gathers and one that learns."""
    if not plan.gathering:
        return [plan.flops]
    gathers = {name: value for name, value in plan.flops.items() if name in ("sample", "decode")}
    return [gathers, {name: value for name, value in plan.flops.items() if name not in gathers}]


def _iterations(config: TrainConfig, plan: TrainingPlan) -> list[str]:
    """What an iteration does, or those that gather and those that learn."""
    found = []
    for flops in _kinds(plan):
        total = sum(flops.values())
        share = ", ".join(f"{name} {100 * value / total:.0f}%" for name, value in flops.items())
        found.append(f"{total / 1e12:,.1f} TFLOP ({share})")
    sampled = f"{config.pictures} pictures x {config.steps} steps"
    if not plan.gathering:
        return [f"iteration   {sampled}, {found[0]}"]
    pool, full, last = f"{config.transitions():,} pictures", plan.gathering, config.iterations
    learns = f"iterations {full} to {last}, each {config.passes} x {pool}, {found[1]}"
    return [f"gathers     iterations 1 to {full}, each {sampled}, {found[0]}", f"learns      {learns}"]


def _times(plan: TrainingPlan, rate: float) -> str:
    """Time of an iteration at so many operations a second."""
    times = [_time(sum(flops.values()) / rate) for flops in _kinds(plan)]
    if len(times) == 1:
        return f"{times[0]} an iteration"
    return f"{times[0]} an iteration that gathers and {times[1]} one that learns"


def _size(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
