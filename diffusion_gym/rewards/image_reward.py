"""ImageReward (Xu et al. 2023, "ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation").

The published checkpoint ImageReward-v1.0 is loaded into transformers' BLIP modules: a vision transformer, a BERT that
attends to its patches, and a linear head on the first token. Sizes are read off the checkpoint.
"""

import threading
from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_gym.rewards.linear_stack import load_linear_stack
from diffusion_gym.rewards.preprocess import by_chunks, chunk_size, clip_pixels
from diffusion_gym.rewards.sources import Wanted, find_files
from diffusion_gym.rewards.weights import Checkpoint, load_checkpoint, load_tokenizer

REPO = "THUDM/ImageReward"
TOKENIZER_REPO = "bert-base-uncased"
PROMPT_LENGTH = 35
HEAD_WIDTH = 64
MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the raw scores on the authors' data; the reward is the score in these units."""

_VISION_NAMES = {
    r"^cls_token$": "embeddings.class_embedding",
    r"^pos_embed$": "embeddings.position_embedding",
    r"^patch_embed\.proj\.": "embeddings.patch_embedding.",
    r"^blocks\.": "encoder.layers.",
    r"\.norm(\d)\.": r".layer_norm\1.",
    r"\.attn\.qkv\.": ".self_attn.qkv.",
    r"\.attn\.proj\.": ".self_attn.projection.",
    r"^norm\.": "post_layernorm.",
}


def image_reward(
    device: torch.device,
    *,
    source: str = REPO,
    tokenizer: str = TOKENIZER_REPO,
    dtype: torch.dtype = torch.float32,
) -> "ImageReward":
    """How much people would like a picture for its prompt; about -2 to 2.

    Args:
        device: where the networks lie.
        source: file, directory or hub id of ImageReward.pt.
        tokenizer: directory or hub id of BERT's uncased tokenizer.
        dtype: what the networks run in; the head runs in float32.

    Raises:
        FileNotFoundError: there is no such checkpoint or tokenizer, or the hub is out of reach.
        ValueError: one of them is damaged or of another kind.
    """
    wanted = Wanted(
        reward="image_reward",
        what="the ImageReward-v1.0 checkpoint",
        repo=REPO,
        layouts=(("ImageReward.pt",), ("ImageReward.safetensors",)),
    )
    wanted_tokenizer = Wanted(
        reward="image_reward",
        option="tokenizer",
        what="BERT's uncased tokenizer",
        repo=TOKENIZER_REPO,
        layouts=(("tokenizer.json",), ("vocab.txt",)),
        extras=("tokenizer_config.json",),
    )
    (file,) = find_files(source, wanted)
    directory = find_files(tokenizer, wanted_tokenizer)[0].parent
    checkpoint = load_checkpoint(file, wanted)
    # The checkpoint also has projections for pretraining, under blip., which the reward has no use for.
    foreign = [name for name in checkpoint.tensors if not name.startswith(("blip.", "mlp."))]
    if foreign:
        raise checkpoint.wrong(f"with {foreign[0]} as well")
    vision = _load_vision(checkpoint.part("blip.visual_encoder."))
    text = _load_text(checkpoint.part("blip.text_encoder."), vision.config.hidden_size)
    head = load_linear_stack(checkpoint.part("mlp."), device, width=text.config.hidden_size)
    words = load_tokenizer("BertTokenizerFast", directory, wanted_tokenizer, vocabulary=text.config.vocab_size)
    return ImageReward(vision=vision, text=text, head=head, tokenizer=words, device=device, dtype=dtype)


class ImageReward:
    """ImageReward on a device: a reward, which can also be asked for the features that it is a linear map of."""

    def __init__(
        self, *, vision: Any, text: Any, head: nn.Module, tokenizer: Any, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._vision = vision.to(device, dtype)
        self._text = text.to(device, dtype)
        self._head = head
        self._tokenizer = tokenizer
        self._device = device
        self._dtype = dtype
        self._lock = threading.Lock()

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """The rewards, (B,) float32."""
        return (by_chunks(self._head, self.features(images, prompts), self._device) - MEAN) / STD

    @torch.no_grad()
    def features(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """The text network's state at the first token, (B, 768) float32; prompts are cut off after 35 tokens."""
        size = chunk_size(self._device)
        found = []
        for i in range(0, len(prompts), size):
            pixels = clip_pixels(images_B3HW[i : i + size], self._vision.config.image_size, odd_margin="even")
            patches = self._vision(pixel_values=pixels.to(self._device, self._dtype)).last_hidden_state
            with self._lock:  # a tokenizer sets its padding anew in each call
                tokens = self._tokenizer(
                    list(prompts[i : i + size]),
                    padding="max_length",
                    truncation=True,
                    max_length=PROMPT_LENGTH,
                    return_tensors="pt",
                ).to(self._device)
            states = self._text(
                input_ids=tokens.input_ids,
                attention_mask=tokens.attention_mask,
                encoder_hidden_states=patches,
                is_decoder=False,
            ).last_hidden_state
            found.append(states[:, 0].float())
        return torch.cat(found)


def _load_vision(checkpoint: Checkpoint) -> Any:
    """The vision transformer as a BlipVisionModel."""
    width, _, _, patch = checkpoint.shape("patch_embed.proj.weight", 4)
    sizes = {
        "hidden_size": width,
        "intermediate_size": checkpoint.shape("blocks.0.mlp.fc1.weight", 2)[0],
        "num_hidden_layers": checkpoint.depth("blocks."),
        "num_attention_heads": _heads(width, checkpoint),
        "image_size": isqrt(checkpoint.shape("pos_embed", 3)[1] - 1) * patch,
        "patch_size": patch,
    }
    from transformers import BlipVisionConfig, BlipVisionModel

    config = BlipVisionConfig(**sizes, layer_norm_eps=1e-6)
    return checkpoint.renamed(_VISION_NAMES).build(lambda: BlipVisionModel(config))


def _load_text(checkpoint: Checkpoint, vision_width: int) -> Any:
    """The text network as a BlipTextModel, which has the checkpoint's names."""
    vocabulary, width = checkpoint.shape("embeddings.word_embeddings.weight", 2)
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "encoder_hidden_size": vision_width,
        "intermediate_size": checkpoint.shape("encoder.layer.0.intermediate.dense.weight", 2)[0],
        "num_hidden_layers": checkpoint.depth("encoder.layer."),
        "num_attention_heads": _heads(width, checkpoint),
        "max_position_embeddings": checkpoint.shape("embeddings.position_embeddings.weight", 2)[0],
    }
    from transformers import BlipTextConfig, BlipTextModel

    # A "decoder" has the attention to the picture; run as an encoder, every word sees every other.
    config = BlipTextConfig(**sizes, layer_norm_eps=1e-12, is_decoder=True)
    return checkpoint.build(lambda: BlipTextModel(config, add_pooling_layer=False))


def _heads(width: int, checkpoint: Checkpoint) -> int:
    """Attention heads of a network of this width."""
    if width % HEAD_WIDTH:
        raise checkpoint.wrong(f"of width {width}, no multiple of {HEAD_WIDTH}")
    return width // HEAD_WIDTH
