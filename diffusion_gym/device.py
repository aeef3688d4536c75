"""Reading the `device` and `dtype` arguments that users write."""

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse_device(device: str | torch.device) -> torch.device:
    """A torch device from its name; "auto" is CUDA where there is one, else the CPU.

    Raises:
        TypeError: `device` is neither a string nor a torch.device.
        ValueError: no such device on this machine.
    """
    if not isinstance(device, str | torch.device):
        raise TypeError(f"device must be a string or a torch.device, got {device!r}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f'device must be "auto", "cpu", "cuda", "cuda:1" or "mps", got {device!r}') from error
    if parsed.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f'device={device!r} needs CUDA, which torch does not find; use device="cpu"')
        if (parsed.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device={device!r}: torch finds {torch.cuda.device_count()} CUDA device(s)")
    elif parsed.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f'device={device!r} needs Apple MPS, which torch does not find; use device="cpu"')
    elif parsed.type not in ("cpu", "mps"):
        raise ValueError(f'device must be "auto", "cpu", "cuda" or "mps", got {device!r}')
    return parsed


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The dtype the networks run in: "float32", "bfloat16" or "float16", or the torch dtype itself.

    Raises:
        TypeError: `dtype` is neither a string nor a torch.dtype.
        ValueError: it is another dtype.
    """
    if not isinstance(dtype, str | torch.dtype):
        raise TypeError(f"dtype must be a string or a torch.dtype, got {dtype!r}")
    parsed = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if parsed not in DTYPES.values():
        raise ValueError(f"dtype must be one of {sorted(DTYPES)}, got {dtype!r}")
    assert parsed is not None
    return parsed
