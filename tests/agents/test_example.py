"""The README's example of an agent in Tianshou's own words runs."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_the_example_trains_and_saves(tiny_model: Path, tmp_path: Path) -> None:
    found = re.findall(r"<!-- trains as a test -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(found) == 1
    code = found[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    smaller = {
        "num_envs=48": "num_envs=2",
        "num_inference_steps=10": f"num_inference_steps=2, model={str(tiny_model)!r}, reward='jpeg_compressibility'",
        "num_steps=10": "num_steps=2",
        "max_epochs=25": "max_epochs=1, show_progress=False",
        "480": "4",
        "batch_size=80": "batch_size=2",
        "runs/rabbit": str(tmp_path),
    }
    for old, new in smaller.items():
        assert old in code
        code = code.replace(old, new)
    exec(code, {})
    assert (tmp_path / "pytorch_lora_weights.safetensors").is_file()
