"""Results that get their name when all of them are there; what a killed process leaves is in nobody's way."""

import fcntl
import os
import shutil
import tempfile
import threading
from pathlib import Path
from types import TracebackType

from scfusion_fm.data.locations import check_new_path
from scfusion_fm.notices import warn


def check_destination(output: Path, name: str = "output") -> None:
    """
    Check that a file or directory can be made, before any work is done for it.

    Parameters
    ----------
    output
        Where.
    name
        What its setting is called.

    Raises
    ------
    ValueError
        If something is there already, or its directory cannot be made or written.
    """
    check_new_path(output, name)
    parent = next(p for p in output.absolute().parents if p.exists())
    try:
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise ValueError(
            f"`{name}` must lie in a directory that can be written, got {str(output)!r} "
            f"({error.strerror}: {str(parent)!r}). Choose another path."
        ) from error


def leave_scratch(output: str | Path) -> None:
    """
    Let the next call have the place of an output that one of this thread opened and did not bring to its end.

    What is there stays. The lock would else be held as long as the process lives, which in a notebook is long.
    """
    found = _OPEN.pop(_name_place(Path(output)), None)
    if found is not None:
        found.leave()


class Scratch:
    """
    Give a place beside an output until it is complete.

    The next process with the same output replaces what a killed one left, but for the `memory` of it: what is there
    stays until the result has its name. As a context it is closed at the end.

    Parameters
    ----------
    output
        File or directory to be.
    name
        What its setting is called.

    Attributes
    ----------
    path
        Where to make it, once `open` was called.
    memory
        A directory beside it, for what the next process can go on from; not made here.

    Raises
    ------
    ValueError
        If something is at `output`, or its directory cannot be written.
    """

    def __init__(self, output: str | Path, name: str = "output"):
        self.output, self._name = Path(output), name
        check_destination(self.output, name)
        self._directory = self.output.with_name(f".{self.output.name}.unfinished")
        self.path = self._directory / self.output.name
        self.memory = self._directory / f"{self.output.name}.memory"
        self._lock: int | None = None

    def open(self) -> None:
        """
        Make the place, and clear all of it but the memory.

        Raises
        ------
        ValueError
            If another process has it.
        """
        while self._lock is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._lock = self._try_lock()
        _OPEN[_name_place(self.output)] = self
        for left in self._directory.iterdir():
            is_directory = left.is_dir() and not left.is_symlink()
            if not (is_directory and left == self.memory):
                shutil.rmtree(left) if is_directory else left.unlink()

    def publish(self) -> None:
        """
        Give the result its name.

        Raises
        ------
        ValueError
            If something has come there meanwhile.
        """
        check_destination(self.output, self._name)
        self.path.rename(self.output)
        self.close()

    def close(self) -> None:
        """Remove the place with all that is in it."""
        if self._lock is not None:
            shutil.rmtree(self._directory)
            self.leave()

    def leave(self) -> None:
        """Let another one have the place, with what is in it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        _OPEN.pop(_name_place(self.output), None)

    def __enter__(self) -> "Scratch":
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()

    def _try_lock(self) -> int | None:
        """Lock the directory as long as this process lives; None if it was removed meanwhile."""
        lock = os.open(self._directory, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise ValueError(
                f"`{self._name}` must not be in use, got {str(self.output)!r}, which another process is about to "
                "write. Stop it, or choose another path."
            ) from error
        except OSError as error:
            warn(f"{self._directory} cannot be locked against a second run: {error}")
        if self._directory.exists() and os.path.samestat(os.fstat(lock), self._directory.stat()):
            return lock
        os.close(lock)
        return None


def _name_place(output: Path) -> tuple[Path, int]:
    return output.absolute(), threading.get_ident()


_OPEN: dict[tuple[Path, int], Scratch] = {}
