"""What a UNet's calls cost in memory and arithmetic, found without weights or a device.

The UNet of a model's configuration is built on torch's meta device, where tensors have shapes and no contents, and is
run as training runs it. Every tensor that appears is counted until it is freed.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from agents.common.lora import add_lora
from agents.config import SFTConfig, TrainConfig
from diffusion_gym.pipelines import Denoiser, ModelFiles, PromptEmbedding
from diffusion_gym.pipelines.pipeline import vae_dtype
from diffusion_gym.pipelines.quiet import quiet


@dataclass(frozen=True)
class Cost:
    """Of one call.

    Attributes:
        memory: bytes at the peak beyond what was there before.
        flops: floating-point operations, a multiplication and an addition counting as two.
    """

    memory: int
    flops: int


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that live at the same time within it; `peak` is the most so far."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made."""
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, out)
        return out

    def known(self, tensor: Tensor) -> None:
        """Leave out a tensor that was there before."""
        self._known.add(tensor.untyped_storage())

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor that was there before, and stays."""
        self.known(tensor)
        self.live += tensor.untyped_storage().nbytes()
        self.peak = max(self.peak, self.live)

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, storage.nbytes())
        return tensor

    def _free(self, size: int) -> None:
        self.live -= size


class _FlashAttention(torch.autograd.Function):
    """Keeps what fused attention kernels keep: inputs, output, and one number a row; no attention matrix."""

    flops = 0

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Shapes (B, heads, L, D), (B, heads, S, D), (B, heads, S, D) -> (B, heads, L, D)."""
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
        rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, rows)
        _FlashAttention.flops += 4 * query.numel() * key.shape[-2]
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Two and a half times the work: the attention matrix is computed again."""
        query, key, value, _, _ = ctx.saved_tensors
        _FlashAttention.flops += 10 * query.numel() * key.shape[-2]
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention as the fused kernels of real devices do it, which the meta device has not."""
    real = nn.functional.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
        out: Tensor = _FlashAttention.apply(query, key, value)
        return out

    nn.functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = real


class SimulatedUNet:
    """The denoiser of a configuration on the meta device.

    Args:
        config: settings of the training.
        files: the model's configurations.
        dtype: what the UNet runs in.

    Attributes:
        parameters: of the UNet, without adapters.
        trained: parameters that are trained.
        adapted: parameters of the weights that have adapters.
    """

    def __init__(self, config: TrainConfig, files: ModelFiles, dtype: torch.dtype) -> None:
        from diffusers import UNet2DConditionModel
        from peft.tuners.lora import LoraLayer

        with torch.device("meta"), quiet():
            unet: Any = UNet2DConditionModel.from_config(dict(files.unet)).to(dtype).requires_grad_(config.full)
            self.parameters = sum(p.numel() for p in unet.parameters())
            if not config.full:
                add_lora(unet, rank=config.lora_rank, targets=config.lora_targets)
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if config.attention_slicing:
            unet.set_attention_slice("auto")
        self.trained = sum(p.numel() for p in unet.parameters() if p.requires_grad)
        layers = [module for module in unet.modules() if isinstance(module, LoraLayer)]
        self.adapted = sum(layer.get_base_layer().weight.numel() for layer in layers)
        self.latent_shape = files.latent_shape
        width = files.unet["cross_attention_dim"]
        length = int(files.text_encoder["max_position_embeddings"])
        self._tokens = (length, width if isinstance(width, int) else width[0])
        self._pooled: int | None = None
        if files.family == "sdxl":
            sizes = 6 * files.unet["addition_time_embed_dim"]
            self._pooled = files.unet["projection_class_embeddings_input_dim"] - sizes
        scale = config.training_guidance_scale()
        self.denoiser = Denoiser(
            unet,
            self._embedding(1),
            guidance_scale=files.sampling.guidance_scale if scale is None else scale,
            unconditional_gradient=config.unconditional_gradient,
            time_ids=torch.zeros(6, device="meta") if self._pooled else None,
        )
        self._learner = self.denoiser.conditional if isinstance(config, SFTConfig) else self.denoiser

    def rollout(self, pictures: int) -> Cost:
        """One denoising step of `pictures` pictures, without gradient."""
        with torch.no_grad():
            return self._run(self.denoiser, pictures)

    def reference(self, transitions: int) -> Cost:
        """The pretrained model's call on so many transitions of an update."""
        with torch.no_grad():
            return self._run(self._learner, transitions)

    def update(self, transitions: int, *, accumulating: bool = False) -> Cost:
        """One micro-batch of the update, forward and backward; gradients of the parameters included.

        Args:
            transitions: of the micro-batch.
            accumulating: whether one came before it in the optimizer step, whose gradients are there all the time.
        """
        return self._run(self._learner, transitions, accumulating=accumulating)

    def _run(self, denoise: Callable[..., Tensor], batch: int, *, accumulating: bool = False) -> Cost:
        """Cost of a call; where gradients are enabled, of the backward pass too."""
        latent = torch.empty((batch, *self.latent_shape), device="meta")
        timestep = torch.zeros(batch, dtype=torch.int64, device="meta")
        embedding = self._embedding(batch)

        def call() -> None:
            out = denoise(latent, timestep, embedding)
            if out.requires_grad:
                out.square().mean().backward()

        memory, flops = PeakMemory(), FlopCounterMode(display=False)
        for tensor in (*self.denoiser.parameters(), *self.denoiser.buffers(), latent, timestep):
            memory.known(tensor)
        if accumulating:
            for parameter in self.denoiser.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.empty_like(parameter)
                    memory.hold(parameter.grad)
        with _fused_attention():
            with memory:
                call()
            self.denoiser.zero_grad(set_to_none=True)
            _FlashAttention.flops = 0
            with flops:  # apart: it holds on to tensors
                call()
        self.denoiser.zero_grad(set_to_none=True)
        return Cost(memory.peak, flops.get_total_flops() + _FlashAttention.flops)

    def _embedding(self, batch: int) -> PromptEmbedding:
        tokens = torch.empty((batch, *self._tokens), device="meta")
        return PromptEmbedding(tokens, torch.empty((batch, self._pooled), device="meta") if self._pooled else None)


def decoder_cost(files: ModelFiles, dtype: torch.dtype, pictures: int) -> tuple[int, Cost]:
    """Bytes of the autoencoder's weights, and what decoding so many pictures in one call costs."""
    from diffusers import AutoencoderKL

    dtype = vae_dtype(files, dtype)
    with torch.device("meta"), quiet():
        vae: Any = AutoencoderKL.from_config(dict(files.vae)).to(dtype).requires_grad_(False)
        latent = torch.empty((pictures, *files.latent_shape), dtype=dtype)
    memory, flops = PeakMemory(), FlopCounterMode(display=False)
    for tensor in (*vae.parameters(), latent):
        memory.known(tensor)
    with torch.no_grad(), _fused_attention():
        with memory:
            vae.decode(latent)
        _FlashAttention.flops = 0
        with flops:
            vae.decode(latent)
    count = sum(p.numel() for p in vae.parameters())
    return count * dtype.itemsize, Cost(memory.peak, flops.get_total_flops() + _FlashAttention.flops)


def text_encoder_parameters(files: ModelFiles) -> int:
    """Parameters of all text encoders."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    total = 0
    for part, cls in zip(files.text_encoders, (CLIPTextModel, CLIPTextModelWithProjection), strict=False):
        with torch.device("meta"):
            encoder: Any = cls(CLIPTextConfig.from_pretrained(files.source.directory / part))
        total += sum(p.numel() for p in encoder.parameters())
    return total
