"""The quickstart: DPOK on one prompt of the embedded model, from nothing to a report."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from agents import run_directory
from agents.build import make_actor
from agents.common.checkpoint import write_atomically
from agents.common.sampling import sample_pictures
from agents.config import DPOKConfig, EvaluateConfig
from agents.evaluation import evaluate, print_table, summary
from agents.report import write_report
from agents.run import train
from agents.run_directory import CONFIG, SUMMARY
from diffusion_gym.pipelines import load_pipeline
from diffusion_gym.prompts import load_prompts
from diffusion_gym.rewards import make_reward

HOPELESS = 0.1
"""A prompt that the pretrained model gets right less often than this gives too little to learn from."""

_PROBE_PICTURES = 64
_PROBE_SEED = 20_000


def quickstart(*, out: Path, seed: int, iterations: int, pictures: int, show: Callable[[str], None]) -> None:
    """Choose the prompt, train, evaluate, report; writes `report.html`, `before_after.png`, `summary.json`.

    Args:
        out: directory of the run; a quickstart begun there is gone on with.
        seed: of everything random.
        iterations: rollouts and updates.
        pictures: pictures a model in the evaluation.
        show: called with what is being done.

    Raises:
        RunError: `out` holds another run.
        ValueError: a number is out of range; before any work.
    """
    evaluation = EvaluateConfig(pictures=pictures)
    evaluation.check()
    DPOKConfig(out=out, seed=seed, iterations=iterations).check()
    start = time.perf_counter()
    resume = (out / CONFIG).is_file()
    if resume:
        prompt = run_directory.read_config(out).prompts[0]
    else:
        run_directory.check(DPOKConfig(out=out))
        show("looking for the prompt at which the pretrained model is weakest but not hopeless")
        prompt = weakest_prompt(show)
    config = DPOKConfig(out=out, resume=resume, prompts=(prompt,), seed=seed, iterations=iterations)
    show(f"DPOK on {prompt!r}, trained on {config.reward}")
    training = train(config)
    report = evaluate(config, evaluation, show=show)
    # What an earlier process trained before this one went on counts too.
    earlier = sum(record["seconds"] for record in training.history[: training.resumed_at])
    text = json.dumps(summary(report, time.perf_counter() - start + earlier), indent=2) + "\n"
    write_atomically(out / SUMMARY, lambda path: path.write_text(text))
    print_table(report)
    show(f"open {write_report(out)}")


def weakest_prompt(show: Callable[[str], None]) -> str:
    """The prompt of DPOK's four at which the pretrained model is weakest, by the reader, and above `HOPELESS`."""
    config = DPOKConfig()
    pipeline = load_pipeline(config.model, device=config.device)
    actor = make_actor(config, pipeline, pipeline.kernel(config.steps), training=False)
    reader = make_reward("emoji_reader", device=pipeline.device)
    shares: dict[str, float] = {}
    for prompt in load_prompts("emoji/probes").texts:
        prompts = [prompt] * _PROBE_PICTURES
        seeds = range(_PROBE_SEED, _PROBE_SEED + _PROBE_PICTURES)
        images = sample_pictures(actor, pipeline, prompts, seeds).images
        shares[prompt] = float((reader(images, prompts, [{} for _ in prompts]).total == 1).float().mean())
        show(f"  {shares[prompt]:4.0%}  {prompt}")
    able = {prompt: share for prompt, share in shares.items() if share >= HOPELESS}
    return min(able, key=lambda prompt: able[prompt]) if able else max(shares, key=lambda prompt: shares[prompt])
