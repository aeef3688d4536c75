"""Training from a configuration: environment, policy and algorithm put together, and the loop around them."""

import json
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tianshou.algorithm.algorithm_base import TrainingStats
from tianshou.data import Collector
from tianshou.utils.torch_utils import policy_within_training_step

from agents.build import make_actor, make_algorithm
from agents.common.algorithm import DenoisingAlgorithm
from agents.common.buffer import LatentReplayBuffer
from agents.common.checkpoint import (
    algorithm_state,
    load_algorithm_state,
    random_state,
    require_space,
    seed_everything,
    set_random_state,
    write_atomically,
)
from agents.common.lora import merged_adapters, save_lora
from agents.common.micro_batch import seconds_a_transition
from agents.common.policy import DenoisingPolicy
from agents.common.timer import PhaseTimer
from agents.common.venv import BatchedVenv, Episodes
from agents.config import TrainConfig
from agents.inputs import check_inputs
from agents.progress import PICTURES_SHOWN
from agents.run_directory import CHECKPOINT, HISTORY, PIPELINE, RunError
from agents.sft import RewardWeightedSFT
from diffusion_gym.device import parse_device
from diffusion_gym.envs.vector import TextToImageVectorEnv
from diffusion_gym.pipelines import load_pipeline
from diffusion_gym.rewards import make_reward

Record = dict[str, Any]


class Training:
    """A run: iterations of rollout and update, each ending in a state that can be saved.

    Args:
        config: settings.

    Raises:
        ValueError, FileNotFoundError: the model, reward or prompts are not to be had.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        seed_everything(config.seed)
        slots = config.num_slots()
        self.waves = config.pictures // slots
        # What is cheap comes first, so that a typo costs seconds; the UNet comes last.
        prompts = check_inputs(config)
        device = parse_device(config.device)
        self.pipeline = load_pipeline(config.model, device=device, dtype=config.dtype)  # configurations only
        self.pipeline.kernel(config.steps, eta=config.eta)
        self.timer = PhaseTimer(device, synchronise=config.profile)
        reward = make_reward(
            config.reward_spec(), device=device, dtype=config.reward_dtype, sources=config.source_spec()
        )
        self.env = TextToImageVectorEnv(
            num_envs=slots,
            model=config.model,
            reward=reward.changed(lambda term: self.timer.around("reward", term)),
            prompts=prompts,
            prompt_sampler="cyclic" if len(config.prompts) > 1 else None,
            num_inference_steps=config.steps,
            eta=config.eta,
            device=device,
            dtype=config.dtype,
            prompt_embedding=False,
            defer_rewards=config.async_rewards,
        )
        if config.vae_slicing:
            self.pipeline.decode_chunk = 1
        if config.dtype == "float32":
            # TF32 rounds by the batch's size, and then rollout and update disagree.
            torch.backends.cudnn.allow_tf32 = False
        self._try_reward()
        seed_everything(config.seed)
        actor = make_actor(config, self.pipeline, self.env.kernel)
        self.policy = DenoisingPolicy(
            actor=actor, action_space=self.env.single_action_space, reduction=config.reduction
        )
        self.algorithm = make_algorithm(config, self.policy, self.pipeline)
        if isinstance(self.algorithm, DenoisingAlgorithm):
            self.algorithm.timer = self.timer
            if config.measure_micro_batch:
                self.algorithm.micro_batch_size = self._fastest_micro_batch(self.algorithm)
        self.buffer = LatentReplayBuffer(
            num_envs=slots, num_steps=config.steps, waves=self.waves, rollouts=getattr(config, "rollouts", 1)
        )
        self.episodes: list[Episodes] = []
        """Of the last iteration, one entry a wave, with the first few pictures of all."""
        venv = BatchedVenv(self.env, on_episodes=self._receive, timer=self.timer)
        self.collector: Collector[Any] = Collector(self.policy, venv, self.buffer)
        self.iteration = 0
        self.resumed_at = 0
        self.between_updates = True
        """False while parameters change: what could be saved then is neither this iteration nor the one before."""
        self.history: list[Record] = []

    def iterate(self) -> Record:
        """One rollout and update.

        Raises:
            RewardError: the reward failed. All is then as after the iteration before: to be saved, or tried again. So
                it is after any other error or Ctrl-C while `between_updates`.
        """
        start = time.perf_counter()
        self.timer.take()
        self.episodes = []
        self.between_updates = True
        with policy_within_training_step(self.policy):
            if getattr(self.algorithm, "wants_pictures", True):
                self._collect()
                with self.timer.phase("update"):
                    stats = self.algorithm.update(self.buffer, self.config.minibatch(), self.config.passes)
                self.buffer.reset(keep_statistics=True)
            else:
                assert isinstance(self.algorithm, RewardWeightedSFT)
                self.between_updates = False
                with self.timer.phase("update"):
                    stats = self.algorithm.learn(self.config.minibatch(), self.config.passes)
        self.iteration += 1
        record = self._record(stats, time.perf_counter() - start)
        self.history.append(record)
        self.between_updates = True
        return record

    def state(self) -> dict[str, Any]:
        """All that is needed to go on."""
        keep = self.buffer.rollouts > 1
        bank = self.pipeline.prompts
        return {
            "iteration": self.iteration,
            "history": self.history,
            "algorithm": algorithm_state(self.algorithm, transitions=keep),
            "buffer": self.buffer.state_dict(transitions=keep),
            "prompts": [bank.text(i) for i in range(len(bank))] if keep else [],
            "random": random_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.iteration, self.history = state["iteration"], state["history"]
        self.resumed_at = self.iteration
        load_algorithm_state(self.algorithm, state["algorithm"])
        if "tensors" in state["buffer"]:
            # Prompt ids are those of the process that saved them.
            ids = self.pipeline.prompts.ids(state["prompts"])
            saved = state["buffer"]["tensors"]["prompt_id"]
            saved.copy_(torch.from_numpy(ids)[saved.clamp(0, len(ids) - 1)])
        self.buffer.load_state_dict(state["buffer"])
        set_random_state(state["random"])

    def save(self) -> None:
        """Write checkpoint, curves and adapters, each whole or not at all.

        Raises:
            OSError: they cannot be written; those of the iteration before are kept.
        """
        out = self.config.out
        if not self.config.full:
            save_lora(self.policy.actor.unet, out)
        write_atomically(out / CHECKPOINT, lambda path: torch.save(self.state(), path))
        self._write_history()

    def load(self) -> None:
        """Go on from the checkpoint in the run's directory.

        Raises:
            RunError: it cannot be read, or is of other settings.
        """
        path = self.config.out / CHECKPOINT
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.load_state(state)
        except (RuntimeError, ValueError, KeyError, EOFError, OSError) as error:
            raise RunError(f"cannot go on from {path}: {error}") from error
        self._write_history()  # a kill may have come between the two files

    def _write_history(self) -> None:
        lines = "".join(json.dumps(record) + "\n" for record in self.history)
        write_atomically(self.config.out / HISTORY, lambda path: path.write_text(lines))

    def export(self) -> Path:
        """Write what diffusers loads at the end: adapters, or with `full` a pipeline directory; returns where."""
        out = self.config.out
        if not self.config.full:
            return save_lora(self.policy.actor.unet, out)
        self.pipeline.save(out / PIPELINE, self.policy.actor.unet)
        scale = self.config.guidance_scale
        sampling = {
            "num_inference_steps": self.config.steps,
            "guidance_scale": self.pipeline.sampling.guidance_scale if scale is None else max(1.0, scale),
            "eta": self.config.eta or self.pipeline.sampling.eta,
        }
        (out / PIPELINE / "sampling.json").write_text(json.dumps(sampling, indent=2) + "\n")
        return out / PIPELINE

    def require_space(self) -> None:
        """Raise OSError unless the disk holds the run: two checkpoints (weights, two moments), adapters, curves."""
        trained = sum(p.numel() for p in self.algorithm.parameters() if p.requires_grad) * 4
        latents = self.buffer.maxsize * int(np.prod(self.pipeline.latent_shape)) * 4
        kept = 2 * latents if self.buffer.rollouts > 1 else 0
        require_space(self.config.out, 2 * (3 * trained + kept) + 2 * trained + 32 * 2**20)

    def close(self) -> None:
        """Drop rewards that are not being computed yet."""
        self.env.close()

    def _fastest_micro_batch(self, algorithm: DenoisingAlgorithm) -> int:
        bank = self.pipeline.prompts
        seconds = seconds_a_transition(
            algorithm,
            self.pipeline.latent_shape,
            bank.embeddings(bank.ids([self.env.prompts.texts[0]])),
            largest=self.config.micro_batch_size,
        )
        return min(seconds, key=lambda size: seconds[size])

    def _try_reward(self) -> None:
        """Ask the reward about one picture of noise, so that one that cannot work fails before any work is done."""
        noise = torch.rand(1, *self.pipeline.image_shape, device=self.pipeline.device)
        self.env.reward(noise, [self.env.prompts.texts[0]], [self.env.prompts.metadata[0]])

    def _collect(self) -> None:
        """Fill the buffer and `episodes` and end `between_updates`; go back to the beginning if that fails."""
        random, cursors = random_state(), self.buffer.cursors()
        merges = self.config.merges_adapters()
        try:
            with self.timer.phase("sample"), merged_adapters(self.policy.actor.unet) if merges else nullcontext():
                self._sample()
            self.between_updates = False  # the last thing that Ctrl-C can undo
        except BaseException:
            self.episodes = []
            self.buffer.rewind(cursors)
            set_random_state(random)
            raise

    def _sample(self) -> None:
        # Each iteration's episodes begin from seeds of their own, so nothing of the environment needs saving. They walk
        # through cyclic prompts where the last iteration stopped.
        first = int(np.random.SeedSequence([self.config.seed, self.iteration]).generate_state(1)[0])
        first += (self.iteration * self.config.pictures - first) % len(self.env.prompts.texts)
        slots = self.env.num_envs
        last_transitions = []
        for wave in range(self.waves):
            self.collector.reset(reset_buffer=False, gym_reset_kwargs={"seed": first + wave * slots})
            self.collector.collect(n_step=slots * self.config.steps)
            last_transitions.append(self.buffer.last_index.copy())
        if self.config.async_rewards:
            self.episodes = [episodes.scored() for episodes in self.episodes]
            for episodes, index in zip(self.episodes, last_transitions, strict=True):
                self.buffer.set_rewards(index[episodes.slots], episodes.rewards)

    def _receive(self, episodes: Episodes) -> None:
        """Keep what is reported of episodes that ended; of the pictures, which no update reads, only those shown."""
        missing = max(0, PICTURES_SHOWN - sum(len(kept.images) for kept in self.episodes))
        self.episodes.append(replace(episodes, images=episodes.images[:missing].copy()))

    def _record(self, stats: TrainingStats, seconds: float) -> Record:
        record: Record = {"iteration": self.iteration}
        if self.episodes:
            rewards = np.concatenate([e.rewards for e in self.episodes])
            record |= {"reward": float(rewards.mean()), "reward_std": float(rewards.std())}
            for name in self.episodes[0].terms:
                record[f"reward/{name}"] = float(np.concatenate([e.terms[name] for e in self.episodes]).mean())
        for name, value in stats.get_loss_stats_dict().items():
            record[name] = value
        record |= {
            "seconds": seconds,
            **{f"seconds/{phase}": value for phase, value in self.timer.take().items()},
            "pictures_per_second": self.config.pictures / seconds if self.episodes else 0.0,
        }
        return record
