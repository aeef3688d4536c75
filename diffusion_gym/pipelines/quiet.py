"""Loading without the libraries' own output."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Load without progress bars and warnings: parts are small, and what is wrong is said by the caller."""
    import diffusers
    import transformers

    shown = transformers.logging.is_progress_bar_enabled()
    levels = transformers.logging.get_verbosity(), diffusers.utils.logging.get_verbosity()
    transformers.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    diffusers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(levels[0])
        diffusers.utils.logging.set_verbosity(levels[1])
        diffusers.utils.logging.enable_progress_bar()
        if shown:
            transformers.logging.enable_progress_bar()
