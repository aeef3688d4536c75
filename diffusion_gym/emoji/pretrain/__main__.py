"""`python -m diffusion_gym.emoji.pretrain PART`: trains one part of the world and writes it into the package.

The order that rebuilds everything: autoencoder, generator, reader, quality, preference.
"""

from __future__ import annotations

import argparse
import dataclasses
from importlib import import_module
from pathlib import Path
from typing import Any

from .. import WEIGHTS

PARTS = {
    "autoencoder": "AutoencoderConfig",
    "generator": "GeneratorConfig",
    "reader": "ReaderConfig",
    "quality": "QualityConfig",
    "preference": "PreferenceConfig",
}


def main(argv: list[str] | None = None) -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(prog="python -m diffusion_gym.emoji.pretrain", description=__doc__)
    parser.add_argument("part", choices=PARTS, help="what to train")
    parser.add_argument("--seed", type=int, default=None, help="of weights and data (default: the part's own)")
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps (default: the part's own)")
    parser.add_argument("--batch-size", type=int, default=None, help="pictures a step (default: the part's own)")
    parser.add_argument("--device", default="cpu", help="torch device, for example cuda")
    parser.add_argument("--threads", type=int, default=None, help="torch threads; 1 when the machine is busy")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder the weights are written to")
    parser.add_argument("--runs", type=Path, default=Path("runs/pretrain"), help="folder of the checkpoints")
    args = parser.parse_args(argv)

    import torch

    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {args.device} cannot be used here: {error}")
    if args.threads is not None:
        if args.threads < 1:
            parser.error(f"--threads {args.threads} must be at least 1")
        torch.set_num_threads(args.threads)
    module = import_module(f".{args.part}", __package__)
    config: Any = getattr(module, PARTS[args.part])()
    given = {name: getattr(args, name) for name in ("seed", "steps", "batch_size", "device", "runs")}
    try:
        loop = dataclasses.replace(config.loop, **{k: v for k, v in given.items() if v is not None})
    except ValueError as error:
        parser.error(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    module.run(dataclasses.replace(config, loop=loop), args.out)


if __name__ == "__main__":
    main()
