"""What is wrong with a file: one kind of error, and words for what the libraries raise."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ADVICE_LOCKED = "Close it there, or set HDF5_USE_FILE_LOCKING=FALSE if nothing writes any more"


class BrokenFileError(ValueError):
    """Say in one line what is wrong with a file, or with an element of it; the message is complete."""


def name_of(location: str, element: Any) -> str:
    """Name an element of a file as errors do."""
    return f"{location}, {element.name.strip('/') or '/'}"


def refuse_element(name: str, rule: str, got: str, advice: str = "Write the file again") -> BrokenFileError:
    """Build the error for one element."""
    return BrokenFileError(f"`{name}` must {rule}, got {got}. {advice}.")


def explain_element(name: str, error: Exception) -> BrokenFileError:
    """Say what the libraries raise on an element that cannot be read."""
    if isinstance(error, BrokenFileError):
        return error
    if isinstance(error, MemoryError):
        return refuse_element(name, "fit into memory", f"MemoryError ({_one_line(error)})", "Use a larger machine")
    if _is_filter(error):
        return BrokenFileError(_explain_filter(name, error))
    got = f"{type(error).__name__}: {_one_line(error)}"
    return refuse_element(name, "be readable", got, "The file may be damaged: write it again, or copy it again")


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Turn whatever the libraries raise while they read an element into an error that names it."""
    try:
        yield
    except BrokenFileError:
        raise
    except Exception as error:  # h5py, zarr and their codecs raise OSError, KeyError, RuntimeError, ValueError and more
        raise explain_element(name, error) from error


def explain_file(path: str, kind: str, error: Exception) -> BrokenFileError:
    """Say what the libraries raise on a file that cannot be opened or read."""
    if isinstance(error, BrokenFileError):
        return error
    text = _one_line(error)
    if isinstance(error, BlockingIOError) or "unable to lock file" in text:
        return BrokenFileError(
            f"`path` must be free, got {path!r}, which is open for writing in another program. {ADVICE_LOCKED}."
        )
    if isinstance(error, PermissionError):
        return BrokenFileError(f"`path` must be readable, got {path!r}, which you may not read. Change its rights.")
    if isinstance(error, MemoryError):
        return BrokenFileError(f"`path` must fit into memory, got {path!r}. Use a larger machine.")
    if _is_filter(error):
        return BrokenFileError(_explain_filter(path, error))
    if "truncated file" in text:
        return BrokenFileError(
            f"`path` must be a complete {kind} file, got {path!r}, which is cut off ({text}). Copy it again."
        )
    return BrokenFileError(
        f"`path` must be a complete {kind} file, got {path!r}, which cannot be read "
        f"({type(error).__name__}: {text}). Write it again with the program that made it."
    )


def _is_filter(error: Exception) -> bool:
    text = str(error)
    return "required filter" in text or "filter not available" in text or "no appropriate function for conv" in text


def _explain_filter(name: str, error: Exception) -> str:
    return (
        f"`{name}` must be compressed in a way that is installed, got {_one_line(error)}. Run `pip install "
        "hdf5plugin`, which is then used, or write the file again with compression='gzip'."
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
