"""A request to stop: SIGTERM, SIGINT or SIGUSR1."""

import signal

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: not done, run it again
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """
    Remember whether this process was asked to stop, from the moment it is made until the process ends.

    The handlers stay, and at the end `ignore` takes their place. Whoever sends a signal often sends another one while
    a checkpoint is written or the ranks part, and a rank that then died by it would take with it the exit code by which
    the run says that it can go on.
    """

    def __init__(self):
        self.asked = False
        for signum in SIGNALS:
            signal.signal(signum, self._ask)

    def _ask(self, signum: int, frame: object) -> None:
        self.asked = True

    def ignore(self) -> None:
        """Ignore the signals until the process has ended; a handler would go before Python does."""
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
