"""Rewards: what a finished picture is worth.

A reward is any callable `(images (B, 3, H, W) float in [0, 1], prompts, metadata) -> (B,) numbers`, always batched.

    reward = make_reward("jpeg_compressibility")
    reward = make_reward({"emoji_preference": 1.0, "emoji_quality": 0.2})       # weighted sum, each term reported
    reward = make_reward([("emoji_preference", 1.0), (my_function, 0.5)])
    reward = make_reward("my_package.rewards:redness")                          # any function that can be imported
    reward = make_reward("http://127.0.0.1:8000")                               # a server; see `serve` and `remote`
    scores = reward(images, prompts, metadata)     # scores.total (B,) float32, scores.terms {name: (B,) float32}

Give a reward a name with `register_reward`, or in another package by an entry point of the group
`diffusion_gym.rewards`; both point at a factory `(device) -> reward`.

`RewardPool` computes rewards in the background.
"""

from diffusion_gym.rewards.base import Reward, RewardError, Scores
from diffusion_gym.rewards.pool import PendingScores, RewardPool
from diffusion_gym.rewards.registry import register_reward, reward_names
from diffusion_gym.rewards.remote import RemoteReward
from diffusion_gym.rewards.weighted import RewardSpec, WeightedReward, check_reward, make_reward

__all__ = [
    "PendingScores",
    "RemoteReward",
    "Reward",
    "RewardError",
    "RewardPool",
    "RewardSpec",
    "Scores",
    "WeightedReward",
    "check_reward",
    "make_reward",
    "register_reward",
    "reward_names",
]
