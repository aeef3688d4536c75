"""The example in the package's docstring runs."""

import textwrap
from pathlib import Path
from typing import Any

import agents


def test_the_example_trains_and_saves(tiny_model: Path, tmp_path: Path, tiny_pipeline: Any) -> None:
    assert agents.__doc__ is not None
    begin, end = "    import gymnasium", "Importing this package"
    code = textwrap.dedent(agents.__doc__[agents.__doc__.index(begin) : agents.__doc__.index(end)])
    smaller = {
        "num_envs=32": "num_envs=2",
        "num_inference_steps=10": f"num_inference_steps=2, model={str(tiny_model)!r}, reward='jpeg_compressibility'",
        "num_steps=10": "num_steps=2",
        "max_epochs=25": "max_epochs=1, show_progress=False",
        "32 * 10": "4",
        "batch_size=160": "batch_size=2",
        "runs/rabbit": str(tmp_path),
    }
    for old, new in smaller.items():
        assert old in code
        code = code.replace(old, new)
    exec(code, {})
    assert (tmp_path / "pytorch_lora_weights.safetensors").is_file()
