"""Notice steps that would do harm: losses or gradients that are not finite, and sudden jumps of the loss."""

import math
import statistics
from collections import deque
from typing import Any

from scfusion_fm.config.pretrain import GuardConfig


class StepGuard:
    """
    Judge the loss of each global batch before its update.

    A loss is bad if it is not finite, or more than `loss_factor` times the median of the last `window` good ones;
    before there are `window` of them, only what is not finite is bad. The state travels in checkpoints, so a resumed
    run judges as the uninterrupted one.

    Parameters
    ----------
    settings
        What is bad, and when to give up.

    Attributes
    ----------
    skipped
        Steps without an update so far.
    """

    def __init__(self, settings: GuardConfig):
        self._settings = settings
        self.skipped = 0
        self._in_a_row = 0
        self._recent: deque[float] = deque(maxlen=settings.window)

    def accepts(self, loss: float) -> bool:
        """Tell whether a loss is finite and no jump."""
        if not math.isfinite(loss):
            return False
        if not self._settings.loss_factor or len(self._recent) < self._settings.window:
            return True
        return loss <= self._settings.loss_factor * statistics.median(self._recent)

    def note(self, loss: float, applied: bool) -> None:
        """Remember a step: its loss, and whether the update was made."""
        if applied:
            self._recent.append(loss)
            self._in_a_row = 0
        else:
            self.skipped += 1
            self._in_a_row += 1

    def check_goes_on(self, last_step: str) -> None:
        """
        Check that the run may go on after a step without an update.

        Parameters
        ----------
        last_step
            The step in words, with the file of its cells.

        Raises
        ------
        ValueError
            If there were too many in a row: more than none of `action` stop, or `max_skips`.
        """
        if self._in_a_row >= (1 if self._settings.action == "stop" else self._settings.max_skips):
            raise ValueError(
                f"the guard ended the run at {last_step}. Look at them; then go on from the newest checkpoint with "
                "guard.action=skip, or with another guard.loss_factor."
            )

    def state_dict(self) -> dict[str, Any]:
        """Give what the next judgement depends on."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row, "recent": list(self._recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the guard of a checkpoint."""
        self.skipped, self._in_a_row = state["skipped"], state["in_a_row"]
        self._recent = deque(state["recent"], maxlen=self._settings.window)
