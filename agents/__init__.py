"""Agents that fine-tune a text-to-image model in `TextToImage-v0`, as Tianshou policies and algorithms.

    agents.common   the parts every algorithm shares: policy, critic, buffer, vector-environment adapter, checkpoint
    agents.ddpo     DDPO (Black et al. 2023)
    agents.dpok     DPOK (Fan et al. 2023)
    agents.sft      reward-weighted supervised fine-tuning (Lee et al. 2023; DPOK's baseline; DDPO's RWR)
    agents.cli      the command `diffusion-gym`: train, sample, evaluate, report, quickstart

In Tianshou's own words, where `tianshou.algorithm.Reinforce`, `A2C` or `PPO` may stand in the place of `DPOK`:

    import gymnasium, diffusion_gym
    from tianshou.data import Collector
    from tianshou.trainer import OnPolicyTrainerParams
    from agents.common import BatchedVenv, DenoisingActor, DenoisingPolicy, LatentReplayBuffer
    from agents.common import adamw, add_lora, save_lora
    from agents.dpok import DPOK

    env = gymnasium.make_vec("TextToImage-v0", num_envs=32, num_inference_steps=10, prompts=["a green rabbit"])
    unet = env.pipeline.load_unet()
    add_lora(unet, rank=16, targets="all")
    actor = DenoisingActor.from_pipeline(env.pipeline, env.kernel, unet=unet)
    policy = DenoisingPolicy(actor=actor, action_space=env.single_action_space)
    algorithm = DPOK(policy=policy, optim=adamw(lr=1e-3), clip_range=2e-3)
    collector = Collector(policy, BatchedVenv(env), LatentReplayBuffer(num_envs=32, num_steps=10))
    algorithm.run_training(
        OnPolicyTrainerParams(
            training_collector=collector, max_epochs=25, epoch_num_steps=32 * 10, collection_step_num_env_steps=32 * 10,
            batch_size=160, update_step_num_repetitions=2,
        )
    )
    save_lora(unet, "runs/rabbit")  # pipe.load_lora_weights("runs/rabbit")

Importing this package imports nothing heavy.
"""
