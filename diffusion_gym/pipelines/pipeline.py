"""A Stable-Diffusion-format model as separate parts, each loaded when it is first asked for."""

import os
import threading
import weakref
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diffusion_gym.device import parse_device, parse_dtype
from diffusion_gym.kernels import Kernel, make_kernel
from diffusion_gym.pipelines.denoiser import Denoiser
from diffusion_gym.pipelines.model_files import ModelFiles, read_model_files
from diffusion_gym.pipelines.prompt_bank import PromptBank
from diffusion_gym.pipelines.sampling import SamplingDefaults
from diffusion_gym.pipelines.text_encoders import sdxl_encoder, stable_diffusion_encoder, zeros_like
from diffusion_gym.pipelines.weights import load_part

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
        model: a directory in diffusers' format of Stable Diffusion 1.x, 2.x or XL; a single .safetensors file of one; a
            hub id, with "@revision" behind it for a branch, tag or commit; or "emoji", the embedded model.
        device: "auto" (CUDA where there is one), or a torch device.
        dtype: what the networks run in: "float32", "bfloat16" or "float16". Latents stay float32 in any case.

    Raises:
        TypeError, ValueError: an argument is not of these, or the model is of another format (SD3, inpainting ...);
            the message names the argument and says why.
        NotFoundHereError: the model is not on this machine and cannot be had from the hub.
    """
    device, dtype = parse_device(device), parse_dtype(dtype)
    with _LOCK:
        files = read_model_files(model)
        pipeline = _LOADED.get((files.model, str(device), dtype))
        if pipeline is None:
            pipeline = Pipeline(files, device=device, dtype=dtype)
            _LOADED[(files.model, str(device), dtype)] = pipeline
        return pipeline


MIN_CHUNK = 2
"""Pictures decoded in one call, at least."""


def decode_chunk(files: ModelFiles, device: torch.device) -> int:
    """Pictures decoded in one call, see `Pipeline.decode_chunk`."""
    _, height, width = files.image_shape
    pixels = 8 * (64 * 64 if device.type == "cpu" else 512 * 512)
    return max(MIN_CHUNK, pixels // (height * width))


def vae_dtype(files: ModelFiles, dtype: torch.dtype) -> torch.dtype:
    """What the autoencoder runs in: as the UNet, but for SDXL's, which overflows in float16."""
    overflows = files.family == "sdxl" and files.vae.get("force_upcast", True)
    return torch.float32 if overflows and dtype == torch.float16 else dtype


class Pipeline:
    """Prompt encoder, decoder, schedule and UNet of one model, on one device in one dtype.

    Making it reads configurations only. `prompts` loads the text encoder, `decode` the autoencoder,
    `load_unet` a UNet; a user who never asks for a part never loads it. Get one from `load_pipeline`.

    Attributes:
        files: the model's configurations.
        device: where everything lies.
        dtype: what the networks run in.
        decode_chunk: pictures decoded in one call: as many as have the pixels of 8 pictures of 512 x 512, on the CPU of
            64 x 64, but at least 2. Set it to 1 where memory is short (VAE slicing).
    """

    def __init__(self, files: ModelFiles, *, device: torch.device, dtype: torch.dtype) -> None:
        self.files = files
        self.device = device
        self.dtype = dtype
        self.decode_chunk = decode_chunk(files, device)

    @property
    def model(self) -> str:
        """The absolute path, or the hub id."""
        return self.files.model

    @property
    def sampling(self) -> SamplingDefaults:
        """The sampling the model recommends: guidance_scale, num_inference_steps, eta."""
        return self.files.sampling

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a latent."""
        return self.files.latent_shape

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, H, W) of a picture."""
        return self.files.image_shape

    @property
    def embedding_shape(self) -> tuple[int, int]:
        """(L, D) of a prompt embedding."""
        _, length, width = self.prompts.unconditional.tokens_BLD.shape
        return length, width

    @property
    def pooled_shape(self) -> tuple[int] | None:
        """(P,) of the pooled prompt embedding that SDXL takes as well; None elsewhere."""
        pooled = self.prompts.unconditional.pooled_BP
        return None if pooled is None else (pooled.shape[1],)

    @cached_property
    def prompts(self) -> PromptBank:
        """The prompt bank; loads the text encoders."""
        from transformers import CLIPTokenizer

        with _LOCK:
            tokenizers = [
                CLIPTokenizer.from_pretrained(self.files.source.part(part.replace("text_encoder", "tokenizer")))
                for part in self.files.text_encoders
            ]
            encoders = [self._load(cls, part) for part, cls in self._text_encoder_classes()]
            if self.files.family == "stable_diffusion":
                return PromptBank(stable_diffusion_encoder(tokenizers[0], encoders[0]))
            encode = sdxl_encoder(tokenizers, encoders)
            zeros = self.files.index.get("force_zeros_for_empty_prompt", True)
            return PromptBank(encode, zeros_like(encode("")) if zeros else None)

    @cached_property
    def vae(self) -> torch.nn.Module:
        """The autoencoder, frozen; shared, so leave it as it is."""
        from diffusers import AutoencoderKL

        with _LOCK:
            vae = self._load(AutoencoderKL, "vae", vae_dtype(self.files, self.dtype))
            # A third faster on the CPU; GPUs choose their own layout.
            return vae.to(memory_format=torch.channels_last) if self.device.type == "cpu" else vae

    @torch.no_grad()
    def decode(self, latent_BCHW: Tensor) -> Tensor:
        """Decode latents to pictures, `decode_chunk` at a time.

        One that is left over is decoded twice: kernels for one picture differ from those for several in the last bit,
        and a picture should not depend on how many others there are.

        Returns:
            (B, 3, H, W) float32 in [0, 1], on the device.
        """
        vae: Any = self.vae
        latent = latent_BCHW.to(self.device, torch.float32) / vae.config.scaling_factor
        mean, std = self.files.vae.get("latents_mean"), self.files.vae.get("latents_std")
        if mean is not None and std is not None:
            columns = [torch.tensor(v, device=self.device).view(1, -1, 1, 1) for v in (mean, std)]
            latent = latent * columns[1] + columns[0]
        chunks = latent.to(vae.dtype).split(self.decode_chunk)
        few = min(MIN_CHUNK, self.decode_chunk)
        images = [
            vae.decode(chunk.expand(max(few, len(chunk)), -1, -1, -1), return_dict=False)[0][: len(chunk)].float()
            for chunk in chunks
        ]
        return torch.cat(images).mul_(0.5).add_(0.5).clamp_(0.0, 1.0)

    def load_unet(self) -> torch.nn.Module:
        """A newly loaded diffusers UNet2DConditionModel, frozen and in eval mode, the caller's own.

        Each call loads another, so that the adapters of one agent are never met by the next.
        """
        from diffusers import UNet2DConditionModel

        return self._load(UNet2DConditionModel, "unet")

    def save(self, directory: str | os.PathLike[str], unet: torch.nn.Module) -> None:
        """Write the model with another UNet as a pipeline directory of its class in diffusers."""
        from diffusers import AutoencoderKL, DiffusionPipeline

        source, kept = self.files.source, (*self.files.parts, "scheduler")
        # Parts that are not used, such as the safety checker, may not be there.
        others = [name for name in self.files.index if name not in kept and not name.startswith("_")]
        more: dict[str, Any] = {name: None for name in others if isinstance(self.files.index[name], list)}
        more |= {"vae": load_part(AutoencoderKL, source, "vae", torch.float32)}
        more |= {part: load_part(cls, source, part, torch.float32) for part, cls in self._text_encoder_classes()}
        pipe = DiffusionPipeline.from_pretrained(source.directory, unet=unet, **more)
        pipe.save_pretrained(directory)

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
            self.prompts.unconditional,
            guidance_scale=scale,
            unconditional_gradient=unconditional_gradient,
            time_ids=self._time_ids(),
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

    def _time_ids(self) -> torch.Tensor | None:
        """SDXL's size conditioning: a picture of the model's own size, not cropped; None elsewhere."""
        if self.files.family != "sdxl":
            return None
        _, height, width = self.image_shape
        return torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)

    def _text_encoder_classes(self) -> list[tuple[str, Any]]:
        """The text encoders' names and classes."""
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        return list(zip(self.files.text_encoders, (CLIPTextModel, CLIPTextModelWithProjection), strict=False))

    def _load(self, cls: Any, part: str, dtype: torch.dtype | None = None) -> Any:
        """A frozen part in eval mode."""
        module = load_part(cls, self.files.source, part, self.dtype if dtype is None else dtype)
        return module.to(self.device).eval().requires_grad_(False)
