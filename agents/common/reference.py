"""The reference policy: the pretrained model that training must not leave too far behind."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from agents.common.actor import DenoisingActor
from agents.common.lora import has_lora
from diffusion_gym.pipelines import PromptEmbedding


class Reference:
    """The actor as it was pretrained: its UNet with the adapters off, or a frozen copy where there are none.

    Make it before training: the copy is of the weights as they are now.

    Args:
        actor: the policy's actor.
    """

    def __init__(self, actor: DenoisingActor) -> None:
        self._actor = actor
        self._copy: nn.Module | None = None
        unet = getattr(actor.denoiser, "unet", None)
        if unet is None or not has_lora(unet):
            self._copy = copy.deepcopy(actor.denoiser).requires_grad_(False)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within it the actor is the reference; compute no gradients there."""
        actor = self._actor
        if self._copy is None:
            actor.unet.disable_adapters()
            try:
                yield
            finally:
                actor.unet.enable_adapters()
            return
        trained = actor.denoiser
        actor.denoiser = self._copy
        try:
            yield
        finally:
            actor.denoiser = trained

    @torch.no_grad()
    def output(self, latent_BCHW: Tensor, step_B: Tensor, embedding: PromptEmbedding | None) -> Tensor:
        """Guided model output of the reference, (B, C, H, W) float32."""
        with self.active():
            return self._actor.denoiser(latent_BCHW, self._actor.kernel.timestep(step_B), embedding)


class ReferenceOutputs:
    """Reference outputs of stored transitions, each computed once however often the transition is visited.

    Args:
        reference: the reference policy.
    """

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self.computed = 0
        """Transitions sent through the reference so far."""
        self._serial_I: npt.NDArray[np.int64] | None = None
        self._output_ICHW: Tensor | None = None

    def missing(self, index: npt.NDArray[np.int64], serial_I: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The transitions of `index` not computed yet; `serial_I` numbers every place of the buffer."""
        if self._serial_I is None or len(self._serial_I) != len(serial_I):
            self._serial_I = np.full(len(serial_I), -1, dtype=np.int64)
            self._output_ICHW = None
        return index[self._serial_I[index] != serial_I[index]]

    def compute(
        self,
        index: npt.NDArray[np.int64],
        serial_I: npt.NDArray[np.int64],
        latent_BCHW: Tensor,
        step_B: Tensor,
        embedding: PromptEmbedding | None,
    ) -> None:
        """Compute and keep the outputs of the transitions at `index`."""
        output = self.reference.output(latent_BCHW, step_B, embedding)
        if self._output_ICHW is None:
            self._output_ICHW = torch.empty((len(serial_I), *output.shape[1:]), dtype=torch.float32)
        self._output_ICHW[torch.from_numpy(index)] = output.cpu()
        assert self._serial_I is not None
        self._serial_I[index] = serial_I[index]
        self.computed += len(index)

    def get(self, index: npt.NDArray[np.int64], device: torch.device) -> Tensor:
        """The outputs of the transitions at `index`, (B, C, H, W) float32 on `device`."""
        assert self._output_ICHW is not None
        return self._output_ICHW[torch.from_numpy(index)].to(device)

    def state_dict(self) -> dict[str, Any]:
        """What is kept."""
        serial = None if self._serial_I is None else torch.from_numpy(self._serial_I)
        return {"serial": serial, "output": self._output_ICHW}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self._serial_I = None if state["serial"] is None else state["serial"].numpy()
        self._output_ICHW = state["output"]
