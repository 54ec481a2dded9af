"""How every command ends: errors of the user as one line and exit code 2."""

import os
import sys
import warnings
from collections.abc import Callable

from scfusion_fm.config.errors import CommandError
from scfusion_fm.extras import explain_missing
from scfusion_fm.notices import ScFusionWarning
from scfusion_fm.untrusted.text import show_text


def run_command(main: Callable[[], None]) -> None:
    """Run a command; what is the user's to mend is told without a traceback, on one rank only."""
    warnings.showwarning = _show_warning
    try:
        with explain_missing():
            main()
    except BrokenPipeError:
        sys.exit(1)
    except KeyboardInterrupt as interruption:
        if _speaks():
            print(str(interruption) or "interrupted", file=sys.stderr)
        sys.exit(getattr(interruption, "code", 130))
    except CommandError as error:
        if not error.shown:
            print("error: " + show_text(error, keep="\n"), file=sys.stderr)
        sys.exit(1)
    except MemoryError as error:
        if os.environ.get("SCFUSION_TRACEBACK"):
            raise
        print(f"error: the memory does not suffice ({error}). Use a larger machine, or smaller files.", file=sys.stderr)
        sys.exit(2)
    except (ValueError, OSError) as error:
        if os.environ.get("SCFUSION_TRACEBACK") or not _is_users(error):
            raise
        if _speaks():
            print(f"error: {show_text(error)}", file=sys.stderr)
        sys.exit(2)


def _speaks() -> bool:
    """Tell whether this is the one of the ranks of its machine that tells what all of them know."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _is_users(error: ValueError | OSError) -> bool:
    """Tell whether a user can mend what went wrong: input, a setting, or what the operating system refused."""
    return isinstance(error, ValueError) or error.errno is not None


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Print warnings meant for users as one line; others as Python does."""
    is_ours = issubclass(category, ScFusionWarning)
    if is_ours or (category is UserWarning and "scfusion_fm" in filename):  # of code that ships with models
        print(f"warning: {show_text(message)}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, filename, lineno, line), end="", file=sys.stderr)
