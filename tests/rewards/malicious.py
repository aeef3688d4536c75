"""A pickle to be refused."""

from pathlib import Path


class Malicious:
    """Pickled so that reading the pickle makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))
