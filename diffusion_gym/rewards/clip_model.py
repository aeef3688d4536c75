"""CLIP (Radford et al. 2021) as rewards use it: pictures and prompts to unit vectors, on transformers' CLIPModel."""

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_gym.hub import in_short
from diffusion_gym.rewards.preprocess import by_chunks, chunk_size, clip_pixels
from diffusion_gym.rewards.sources import Wanted, find_files
from diffusion_gym.rewards.weights import load_checkpoint, load_tokenizer

MODEL_FILES = (("config.json", "model.safetensors"), ("config.json", "pytorch_model.bin"))
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
TOKENIZER_EXTRAS = ("tokenizer_config.json", "special_tokens_map.json")
MODEL_AND_TOKENIZER_FILES = tuple(model + tokenizer for model in MODEL_FILES for tokenizer in TOKENIZER_FILES)

_REMEMBERED = 10_000


class Clip:
    """A CLIP model on a device. A prompt is embedded once and remembered.

    Attributes:
        width: D, width of an embedding.
        logit_scale: exp of the trained temperature, a factor on the cosine.
    """

    def __init__(
        self,
        network: Any,
        *,
        tokenizer: Any = None,
        device: torch.device,
        dtype: torch.dtype,
        preprocess: Callable[[Tensor, int], Tensor] = clip_pixels,
    ) -> None:
        """Take over a network.

        Args:
            network: a transformers CLIPModel.
            tokenizer: its tokenizer; None if only pictures will be embedded.
            device: where the network goes.
            dtype: what it runs in; embeddings are float32 all the same.
            preprocess: (images (B, 3, H, W) in [0, 1], size) -> normalised (B, 3, size, size).
        """
        self.width = int(network.config.projection_dim)
        self.logit_scale = float(network.logit_scale.float().exp())
        self._network = network.to(device, dtype)
        self._tokenizer = tokenizer
        self._device = device
        self._dtype = dtype
        self._preprocess = preprocess
        self._prompts: dict[str, Tensor] = {}
        self._lock = threading.Lock()

    @torch.no_grad()
    def embed_images(self, images_B3HW: Tensor) -> Tensor:
        """Unit vectors (B, D) float32 of pictures in [0, 1]."""
        return by_chunks(self._embed, images_B3HW, self._device)

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors (B, D) float32 of prompts; what exceeds the context length is cut off."""
        with self._lock:
            self._remember([prompt for prompt in dict.fromkeys(prompts) if prompt not in self._prompts])
            embeddings = torch.stack([self._prompts[prompt] for prompt in prompts])
            for prompt in list(self._prompts)[:-_REMEMBERED]:
                del self._prompts[prompt]
        return embeddings

    def cosine(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine of each picture with its own prompt, (B,) float32."""
        return (self.embed_images(images_B3HW) * self.embed_prompts(prompts)).sum(-1)

    def _embed(self, images_B3HW: Tensor) -> Tensor:
        pixels = self._preprocess(images_B3HW, self._network.config.vision_config.image_size)
        pooled = self._network.vision_model(pixel_values=pixels.to(self._device, self._dtype)).pooler_output
        return _unit(self._network.visual_projection(pooled))

    def _remember(self, prompts: Sequence[str]) -> None:
        """Embed prompts."""
        size = chunk_size(self._device)
        for chunk in (prompts[i : i + size] for i in range(0, len(prompts), size)):
            tokens = self._tokenizer(
                chunk,
                padding=True,
                truncation=True,
                max_length=self._network.config.text_config.max_position_embeddings,
                return_tensors="pt",
            ).to(self._device)
            pooled = self._network.text_model(tokens.input_ids, tokens.attention_mask).pooler_output
            self._prompts.update(zip(chunk, _unit(self._network.text_projection(pooled)), strict=True))


def load_network(files: Sequence[Path], wanted: Wanted) -> Any:
    """A transformers CLIPModel from its configuration and its weights, the first two of `files`.

    Raises:
        ValueError: they are damaged, or those of another kind of model.
    """
    config_file, weights_file = files[:2]
    try:
        kind = json.loads(config_file.read_text())["model_type"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise wanted.wrong(config_file, f"it is damaged ({in_short(error)})") from error
    if kind != "clip":
        raise wanted.wrong(config_file, f"its model_type is {kind!r}, not 'clip'")
    checkpoint = load_checkpoint(weights_file, wanted)
    from transformers import CLIPConfig, CLIPModel

    try:
        config = CLIPConfig.from_pretrained(config_file.parent)
    except Exception as error:  # a configuration's own checks raise errors of many kinds
        raise wanted.wrong(config_file, f"it is damaged ({in_short(error)})") from error
    return checkpoint.build(lambda: CLIPModel(config))


def tokenizer_wanted(reward: str, option: str, repo: str) -> Wanted:
    """What an option that says where a tokenizer lies must lead to."""
    return Wanted(
        reward=reward,
        option=option,
        what="a CLIP tokenizer",
        repo=repo,
        layouts=TOKENIZER_FILES,
        extras=TOKENIZER_EXTRAS,
    )


def find_tokenizer(chosen: str | None, beside: Path, wanted: Wanted) -> Path:
    """Directory of the tokenizer chosen; if none is, of the one that lies in `beside`, or else of the hub's."""
    if chosen is None:
        own = any(all((beside / name).is_file() for name in layout) for layout in wanted.layouts)
        chosen = str(beside) if own else wanted.repo
    return find_files(chosen, wanted)[0].parent


def load_clip_tokenizer(directory: Path, wanted: Wanted, network: Any) -> Any:
    """The tokenizer of a CLIPModel.

    Raises:
        ValueError: its files are damaged, or its tokens are not the network's.
    """
    text = network.config.text_config
    tokenizer = load_tokenizer("CLIPTokenizerFast", directory, wanted, vocabulary=text.vocab_size)
    # Old configurations say 2 and mean the last token; transformers then takes the largest number in a prompt.
    end = text.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id
    if tokenizer.eos_token_id != end:
        raise wanted.wrong(directory, f"its token {tokenizer.eos_token_id} ends a prompt, the network expects {end}")
    return tokenizer


def _unit(vectors_BD: Tensor) -> Tensor:
    return nn.functional.normalize(vectors_BD.float(), dim=-1)
