"""Whether an error says that memory ran out."""

import torch

_SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")
"""In what the CPU's allocator, MPS and CUDA's libraries say, which have no exception of their own."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, here or in what the error comes from (a reward's)."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS):
            return True
        error = error.__cause__
    return False
