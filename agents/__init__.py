"""Agents that fine-tune a text-to-image model in `TextToImage-v0`, as Tianshou policies and algorithms.

    agents.common   the parts every algorithm shares: policy, critic, buffer, vector-environment adapter, checkpoint
    agents.ddpo     DDPO (Black et al. 2023)
    agents.dpok     DPOK (Fan et al. 2023)
    agents.sft      reward-weighted supervised fine-tuning (Lee et al. 2023; DPOK's baseline; DDPO's RWR)
    agents.cli      the command `diffusion-gym`: train, sample, evaluate, report, quickstart

The README has an example of training in Tianshou's own words, where `tianshou.algorithm.Reinforce`, `A2C` or `PPO` may
stand in the place of `DPOK`.

Importing this package imports nothing heavy.
"""
