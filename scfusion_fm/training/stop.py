"""A request to stop: SIGTERM, SIGINT or SIGUSR1."""

import signal
import threading
from types import TracebackType

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: not done, run it again
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopped(KeyboardInterrupt):
    """Work was left where the same call goes on, as somebody had asked for; the text says so."""

    code = STOPPED


class StopRequest:
    """
    Remember whether this process was asked to stop, from the moment it is made until the process ends.

    The handlers stay, and at the end `ignore` takes their place. Whoever sends a signal often sends another one while
    a checkpoint is written or the ranks part, and a rank that then died by it would take with it the exit code by which
    the run says that it can go on. As a context, it gives the signals back to whoever had them before.

    Parameters
    ----------
    listens
        Whether to catch the signals; in a thread, where Python catches none, nobody asks.
    """

    def __init__(self, listens: bool = True):
        self.asked = False
        self._before = {}
        if listens and threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._ask) for signum in SIGNALS}

    def __enter__(self) -> "StopRequest":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _ask(self, signum: int, frame: object) -> None:
        self.asked = True

    def ignore(self) -> None:
        """Ignore the signals until the process has ended; a handler would go before Python does."""
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
