"""Errors that commands tell in one line."""


class CommandError(RuntimeError):
    """
    Something outside of the code and of the settings ended a command; there is no traceback to read.

    Parameters
    ----------
    message
        What happened and what to do.
    shown
        Whether somebody has told it already, or another process tells it.
    """

    def __init__(self, message: str, shown: bool = False):
        super().__init__(message)
        self.shown = shown
