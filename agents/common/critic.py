"""DPOK's value function (Fan et al. 2023, section 4.3 and released code)."""

import torch
from torch import Tensor, nn

from agents.common.actor import DenoisingActor


class StepConditionedLinear(nn.Module):
    """gamma_k * (W x + b): a linear layer whose outputs each step scales by numbers of its own.

    Args:
        in_features: width of x.
        out_features: width of the result.
        num_steps: T.
    """

    def __init__(self, in_features: int, out_features: int, num_steps: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.scale = nn.Embedding(num_steps, out_features)
        nn.init.xavier_normal_(self.linear.weight)
        nn.init.uniform_(self.scale.weight)

    def forward(self, x_BF: Tensor, step_B: Tensor) -> Tensor:
        """(B, in), int64 (B,) -> (B, out)."""
        return self.scale(step_B) * self.linear(x_BF)


class LatentCritic(nn.Module):
    """(latent, prompt, step) -> expected final reward: DPOK's three step-conditioned layers of 256.

    Usable as `critic` of stock A2C and PPO, where observations of finished episodes (step T) are read as step T - 1:
    their value is masked.

    Args:
        actor: whose observations it reads; it shares no weights with it.
        hidden: width of the layers. 256 in DPOK; more for large prompt sets.
    """

    def __init__(self, actor: DenoisingActor, *, latent_shape: tuple[int, ...], hidden: int = 256) -> None:
        super().__init__()
        self._actor = [actor]  # in a list: the actor's parameters are not the critic's
        width = 0 if actor.prompts is None else actor.prompts.unconditional.num_features
        self.num_steps = actor.kernel.num_steps
        inputs = int(torch.Size(latent_shape).numel()) + width
        self.layers = nn.ModuleList(StepConditionedLinear(a, hidden, self.num_steps) for a in (inputs, hidden, hidden))
        self.value = nn.Linear(hidden, 1)
        self.to(actor.kernel.device)

    def forward(self, obs: object) -> Tensor:
        """Values (B, 1) float32 of observations as the actor takes them.

        The prompt enters as the mean of its embedding over the tokens, with SDXL's pooled one beside it.
        """
        actor = self._actor[0]
        latent_BCHW, step_B = actor.latent_and_step(obs)
        embedding = actor.embedding(obs)
        parts = [latent_BCHW.flatten(1)] + ([] if embedding is None else [embedding.features()])
        return self.from_features(torch.cat(parts, 1), step_B)

    def from_features(self, x_BF: Tensor, step_B: Tensor) -> Tensor:
        """Values (B, 1) of flattened latents with the prompt's features."""
        step_B = step_B.clamp(max=self.num_steps - 1)
        for layer in self.layers:
            x_BF = torch.relu(layer(x_BF, step_B))
        return self.value(x_BF)
