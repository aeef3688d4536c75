"""What the environment costs beside the model: `python -m benchmarks.env_overhead`.

Three questions, each answered in CPU seconds of one thread, by the minimum of alternating repeats:

1. `episode`: a whole episode of N pictures and T steps through the vector environment, against a bare loop of the
   same UNet calls, the same arithmetic and one decoding; the ratio.
2. `sd15_step`: one step of the environment alone at Stable Diffusion 1.5 size (latents 4x64x64, embeddings 77x768,
   64 slots, no UNet), in milliseconds.
3. `start`: `import diffusion_gym`, and the first `gymnasium.make` beyond importing torch and diffusers, in seconds of
   wall time in fresh processes.

The result is written beside this script, `env_overhead.json`.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import torch
from torch import Tensor

import diffusion_gym  # noqa: F401  (registers the environment)
from benchmarks.random_model import save_random_model

RESULT = Path(__file__).with_suffix(".json")


def zero_reward(images: Tensor, prompts: Any, metadata: Any) -> Tensor:
    """A reward that costs nothing."""
    return torch.zeros(len(images))


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def measure_episode(model: str, num_envs: int, steps: int, repeats: int) -> dict[str, float]:
    """The environment's loop against a bare loop of the same UNet calls."""
    arguments: dict[str, Any] = {"model": model, "reward": zero_reward, "prompts": ["a cat", "two dogs"]}
    envs: Any = gymnasium.make_vec(
        "TextToImage-v0",
        num_envs=num_envs,
        num_inference_steps=steps,
        device="cpu",
        prompt_embedding=False,
        **arguments,
    )
    pipeline, kernel = envs.pipeline, envs.kernel
    denoiser = pipeline.denoiser()
    observation, _ = envs.reset(seed=0)
    start = observation["latent"]
    embedding = pipeline.prompts.embeddings(observation["prompt_id"])
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))

    def act(latent: Tensor, k: int) -> Tensor:
        output = denoiser(latent, kernel.timestep(k), embedding)
        return kernel.sample(kernel.mean(output, latent, k), noise, k)

    def bare() -> None:
        latent = start
        for k in range(steps):
            latent = act(latent, k)
        pipeline.decode(latent)

    def environment() -> None:
        latent = envs.reset(seed=0)[0]["latent"]
        for k in range(steps):
            latent = envs.step(act(latent, k))[0]["latent"]

    with torch.no_grad():
        bare()
        environment()
        pairs = [(cpu_seconds(bare), cpu_seconds(environment)) for _ in range(repeats)]
    bare_s, env_s = min(p[0] for p in pairs), min(p[1] for p in pairs)
    return {
        "bare_s": bare_s,
        "environment_s": env_s,
        "ratio": env_s / bare_s,
        "median_of_pairwise_ratios": statistics.median(p[1] / p[0] for p in pairs),
    }


def measure_sd15_step(model: str, repeats: int) -> dict[str, float]:
    """Milliseconds a step at SD 1.5 size, with and without the embedding in the observation."""
    steps, result = 20, {}
    for name, whole in (("with_embedding_ms", True), ("without_embedding_ms", False)):
        envs = gymnasium.make_vec(
            "TextToImage-v0",
            num_envs=64,
            model=model,
            reward=zero_reward,
            prompts=["a cat"],
            num_inference_steps=steps,
            device="cpu",
            prompt_embedding=whole,
        )
        times: list[float] = []
        for _ in range(repeats):
            action = envs.reset(seed=0)[0]["latent"] * 0.9
            times += [cpu_seconds(partial(envs.step, action)) for _ in range(steps - 1)]
        result[name] = 1000 * min(times)
        result[name.replace("_ms", "_median_ms")] = 1000 * statistics.median(times)
    return result


def measure_start(model: str, repeats: int) -> dict[str, float]:
    """Import and first make in fresh processes, the minimum of repeats."""

    def run(code: str) -> float:
        command = [sys.executable, "-c", f"import time; t = time.perf_counter(); {code}"]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])

    stop = "print(time.perf_counter() - t)"
    make = f"gymnasium.make('TextToImage-v0', model={model!r}, reward='jpeg_compressibility', prompts=['a'])"
    if model == "emoji":
        make = "gymnasium.make('TextToImage-v0')"
    libraries = "import torch, diffusers; diffusers.UNet2DConditionModel, diffusers.AutoencoderKL; "
    codes = {
        "import_s": f"import diffusion_gym; {stop}",
        "make_beyond_libraries_s": f"{libraries} t = time.perf_counter(); "
        f"import gymnasium, diffusion_gym; {make}.reset(); {stop}",
    }
    return {name: min(run(code) for _ in range(repeats)) for name, code in codes.items()}


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help='a model directory, or "emoji"')
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        sd15 = str(save_random_model(Path(folder) / "sd15", sample_size=64, text_length=77, text_width=768))
        result = {
            "command": " ".join(["python -m benchmarks.env_overhead", *sys.argv[1:]]),
            "machine": f"{platform.machine()} CPU, one thread; Python {platform.python_version()}, "
            f"torch {torch.__version__}",
            "seed": 0,
            "model": arguments.model if arguments.model == "emoji" else "another model",
            "num_envs": arguments.num_envs,
            "steps": arguments.steps,
            "episode": measure_episode(arguments.model, arguments.num_envs, arguments.steps, arguments.repeats),
            "sd15_step": measure_sd15_step(sd15, arguments.repeats),
            "start": measure_start(arguments.model, min(arguments.repeats, 3)),
        }
    text = json.dumps(result, indent=2)
    arguments.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
