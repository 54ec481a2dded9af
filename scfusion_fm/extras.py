"""The packages that only some of the commands need, and which extra of this package installs each."""

from collections.abc import Iterator
from contextlib import contextmanager

EXTRAS = {
    "accelerate": "pretrain",
    "datasets": "pretrain",
    "deepspeed": "pretrain",
    "tensorboard": "pretrain",
    "matplotlib": "eval",
    "scanpy": "eval",
    "umap": "explore",
}
"""By the name that is imported."""


class MissingPackageError(ImportError, ValueError):
    """A package of an extra is not installed; commands print it in a line."""


@contextmanager
def explain_missing() -> Iterator[None]:
    """
    Say which extra brings a package that is imported inside, where it is not installed.

    Raises
    ------
    MissingPackageError
        If it is not.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in EXTRAS:
            raise
        told = f"`{package}` must be installed for this, got no such package"
        told += f"; pip install 'scfusion-fm[{EXTRAS[package]}]'."
        raise MissingPackageError(told, name=package) from error
