"""A Stable-Diffusion-format model as separate parts, each loaded when it is first asked for."""

import logging
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diffusion_gym.device import parse_device, parse_dtype
from diffusion_gym.kernels import Kernel, make_kernel
from diffusion_gym.pipelines.denoiser import Denoiser
from diffusion_gym.pipelines.model_files import ModelFiles, SamplingDefaults, model_name, read_model_files
from diffusion_gym.pipelines.prompt_bank import PromptBank

_LOADED: "weakref.WeakValueDictionary[tuple[str, str, torch.dtype], Pipeline]" = weakref.WeakValueDictionary()
_LOCK = threading.RLock()


def load_pipeline(
    model: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
) -> "Pipeline":
    """The pipeline of a model; callers of one process that ask for the same get the same object.

    Args:
        model: a directory in diffusers' Stable Diffusion format, a hub id of one, or "emoji", the embedded model.
        device: "auto" (CUDA where there is one), or a torch device.
        dtype: what the networks run in: "float32", "bfloat16" or "float16". Latents stay float32 in any case.

    Raises:
        TypeError, ValueError: an argument is not of these, there is no such model, or it is of another format
            (SDXL, SD3, inpainting ...); the message names the argument and says why.
    """
    name = model_name(model)
    device, dtype = parse_device(device), parse_dtype(dtype)
    with _LOCK:
        pipeline = _LOADED.get((name, str(device), dtype))
        if pipeline is None:
            pipeline = Pipeline(read_model_files(name), device=device, dtype=dtype)
            _LOADED[(name, str(device), dtype)] = pipeline
        return pipeline


class Pipeline:
    """Prompt encoder, decoder, schedule and UNet of one model, on one device in one dtype.

    Making it reads configurations only. `prompts` loads the text encoder, `decode` the autoencoder,
    `load_unet` a UNet; a user who never asks for a part never loads it. Get one from `load_pipeline`.

    Attributes:
        files: the model's configurations.
        device: where everything lies.
        dtype: what the networks run in.
        decode_chunk: pictures decoded in one call. 1 on the CPU, where larger calls win nothing and a picture
            would depend on its neighbours in the last bit; 8 elsewhere.
    """

    def __init__(self, files: ModelFiles, *, device: torch.device, dtype: torch.dtype) -> None:
        self.files = files
        self.device = device
        self.dtype = dtype
        self.decode_chunk = 1 if device.type == "cpu" else 8

    @property
    def model(self) -> str:
        """The directory or hub id."""
        return self.files.model

    @property
    def sampling(self) -> SamplingDefaults:
        """The sampling the model recommends: guidance_scale, num_inference_steps, eta."""
        return self.files.sampling

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a latent."""
        size = self.files.unet["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return int(self.files.unet["in_channels"]), int(height), int(width)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, H, W) of a picture."""
        scale = 2 ** (len(self.files.vae["block_out_channels"]) - 1)
        _, height, width = self.latent_shape
        return int(self.files.vae.get("out_channels", 3)), height * scale, width * scale

    @property
    def embedding_shape(self) -> tuple[int, int]:
        """(L, D) of a prompt embedding."""
        length, width = self.prompts.unconditional_LD.shape
        return length, width

    @cached_property
    def prompts(self) -> PromptBank:
        """The prompt bank; loads the text encoder."""
        from transformers import CLIPTextModel, CLIPTokenizer

        with _LOCK:
            tokenizer = CLIPTokenizer.from_pretrained(self.model, subfolder="tokenizer")
            return PromptBank(tokenizer, self._load(CLIPTextModel, "text_encoder"), self.device)

    @cached_property
    def vae(self) -> torch.nn.Module:
        """The autoencoder, frozen; shared, so leave it as it is."""
        from diffusers import AutoencoderKL

        with _LOCK:
            return self._load(AutoencoderKL, "vae")

    @torch.no_grad()
    def decode(self, latent_BCHW: Tensor) -> Tensor:
        """Decode latents to pictures, `decode_chunk` at a time.

        Returns:
            (B, 3, H, W) float32 in [0, 1], on the device.
        """
        vae: Any = self.vae
        scale = vae.config.scaling_factor
        chunks = latent_BCHW.to(self.device, torch.float32).split(self.decode_chunk)
        images = [vae.decode((chunk / scale).to(self.dtype), return_dict=False)[0].float() for chunk in chunks]
        return torch.cat(images).mul_(0.5).add_(0.5).clamp_(0.0, 1.0)

    def load_unet(self) -> torch.nn.Module:
        """A newly loaded diffusers UNet2DConditionModel, frozen and in eval mode, the caller's own.

        Each call loads another, so that the adapters of one agent are never met by the next.
        """
        from diffusers import UNet2DConditionModel

        return self._load(UNet2DConditionModel, "unet")

    def denoiser(
        self,
        unet: torch.nn.Module | None = None,
        *,
        guidance_scale: float | None = None,
        unconditional_gradient: bool = True,
    ) -> Denoiser:
        """A denoiser around `unet` (a newly loaded one if None), at the model's guidance if none is given."""
        scale = self.sampling.guidance_scale if guidance_scale is None else guidance_scale
        return Denoiser(
            self.load_unet() if unet is None else unet,
            self.prompts.unconditional_LD,
            guidance_scale=scale,
            unconditional_gradient=unconditional_gradient,
        )

    def kernel(
        self,
        num_inference_steps: int | None = None,
        *,
        sampler: str | Mapping[str, Any] = "ddim",
        eta: float | None = None,
    ) -> Kernel:
        """The transition kernel for this model's schedule, on the device; None takes the model's default.

        Raises:
            TypeError, ValueError: see `diffusion_gym.kernels.make_kernel`.
        """
        steps = self.sampling.num_inference_steps if num_inference_steps is None else num_inference_steps
        if eta is None and sampler == "ddim":
            eta = self.sampling.eta
        return make_kernel(sampler, self.files.scheduler, steps, eta).to(self.device)

    def _load(self, cls: Any, part: str) -> Any:
        """A frozen part in eval mode."""
        try:
            with _no_progress_bar():
                module = cls.from_pretrained(self.model, subfolder=part, torch_dtype=self.dtype)
        except OSError as error:
            raise ValueError(f"model {self.model!r}: cannot load its {part} ({error})") from error
        logging.getLogger(__name__).debug("loaded the %s of %s", part, self.model)
        return module.to(self.device).eval().requires_grad_(False)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Load without a progress bar: parts are small, and are loaded in the middle of other output."""
    import transformers

    shown = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.logging.enable_progress_bar()
