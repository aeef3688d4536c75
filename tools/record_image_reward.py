"""Record what the authors' ImageReward says of the pictures in tests/rewards/reduced_image_reward.py.

Their package `image-reward` 1.5 works with versions that this project does not, so it needs an environment of its own:

    python -m venv genuine
    genuine/bin/pip install torch==2.13.0
    genuine/bin/pip install transformers==4.49.0 huggingface_hub==0.36.2 safetensors pillow
    genuine/bin/pip install --no-deps image-reward==1.5 timm==0.6.13 fairscale==0.4.13 torchvision==0.28.0
    genuine/bin/python tools/record_image_reward.py

writes tests/rewards/golden/image_reward.json. Their vision transformer, text network, head, tokenizer set-up,
preprocessing and `score` run unchanged, in a small configuration.
"""

import importlib
import json
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests/rewards/golden/image_reward.json"
PACKAGES = ("fairscale", "image-reward", "numpy", "pillow", "timm", "torch", "torchvision", "transformers")
sys.path.insert(0, str(ROOT / "tests/rewards"))

import reduced_image_reward as reduced  # noqa: E402


def import_authors_code() -> tuple[Any, Any, Any]:
    """Their modules for the reward, for BLIP and for the text network.

    The package's __init__ files also import its trainer and other metrics, and what those need; they are passed over.
    torchvision's compiled half does not load beside a torch without CUDA; its transforms only want two names of it.
    """
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    spec = find_spec("ImageReward")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    directory = Path(spec.submodule_search_locations[0])
    for name in ("ImageReward", "ImageReward.models", "ImageReward.models.BLIP"):
        package = ModuleType(name)
        package.__path__ = [str(directory.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    modules = ("ImageReward.ImageReward", "ImageReward.models.BLIP.blip", "ImageReward.models.BLIP.med")
    reward, blip, med = (importlib.import_module(name) for name in modules)
    return reward, blip, med


def make_reduced(reward: Any, blip: Any, med: Any) -> torch.nn.Module:
    """Their ImageReward module with small networks instead of those its constructor makes."""
    config = med.BertConfig(
        vocab_size=reduced.VOCABULARY,
        hidden_size=reduced.TEXT_WIDTH,
        intermediate_size=4 * reduced.TEXT_WIDTH,
        num_hidden_layers=reduced.TEXT_DEPTH,
        num_attention_heads=reduced.TEXT_WIDTH // 64,
        max_position_embeddings=reduced.POSITIONS,
        layer_norm_eps=1e-12,
        add_cross_attention=True,
        pad_token_id=0,
    )
    config.encoder_width = reduced.VISION_WIDTH
    model = reward.ImageReward.__new__(reward.ImageReward)
    torch.nn.Module.__init__(model)
    model.device = "cpu"
    model.blip = torch.nn.Module()
    model.blip.visual_encoder = blip.VisionTransformer(
        img_size=reduced.IMAGE_SIZE,
        patch_size=reduced.PATCH_SIZE,
        embed_dim=reduced.VISION_WIDTH,
        depth=reduced.VISION_DEPTH,
        num_heads=reduced.VISION_WIDTH // 64,
    )
    model.blip.text_encoder = med.BertModel(config=config, add_pooling_layer=False)
    model.blip.vision_proj = torch.nn.Linear(reduced.VISION_WIDTH, 8)
    model.blip.text_proj = torch.nn.Linear(reduced.TEXT_WIDTH, 8)
    with tempfile.TemporaryDirectory() as directory:
        vocabulary = Path(directory, "vocab.txt")
        vocabulary.write_text("\n".join(reduced.WORDS))
        tokenizer = blip.BertTokenizer(str(vocabulary))
        with mock.patch.object(blip.BertTokenizer, "from_pretrained", return_value=tokenizer):
            model.blip.tokenizer = blip.init_tokenizer()
    model.preprocess = reward._transform(reduced.IMAGE_SIZE)
    model.mlp = reward.MLP(reduced.TEXT_WIDTH)
    model.mean, model.std = 0.16717362830052426, 1.0333394966054072
    return model.eval()


def main() -> None:
    """Score the pictures and write the golden file."""
    torch.set_num_threads(1)
    model: Any = make_reduced(*import_authors_code())
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items() if "position_ids" not in name}
    missing, left = model.load_state_dict(reduced.weights(shapes), strict=False)
    assert all("position_ids" in name for name in missing)
    assert not left
    features: list[torch.Tensor] = []
    model.mlp.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0][0]))
    with torch.no_grad():
        rewards = [
            model.score(prompt, Image.fromarray(picture))
            for prompt, picture in zip(reduced.PROMPTS, reduced.pictures(), strict=True)
        ]
    GOLDEN.parent.mkdir(exist_ok=True)
    golden = {
        "versions": {name: version(name) for name in PACKAGES},
        "rewards": rewards,
        "features": [feature.tolist() for feature in features],
        "shapes": shapes,
    }
    lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items())
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{GOLDEN}: {rewards}")


if __name__ == "__main__":
    main()
