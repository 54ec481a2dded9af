"""Notice steps that would do harm: losses or gradients that are not finite, and sudden jumps of the loss."""

import math
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Any

ACTIONS = ("skip", "stop")


@dataclass
class StepGuard:
    """
    Judge the loss of each global batch before its update.

    A loss is bad if it is not finite, or more than `loss_factor` times the median of the last `window` good ones;
    before there are `window` of them, only what is not finite is bad. Its state travels in checkpoints, so a resumed
    run judges as the uninterrupted one.

    Parameters
    ----------
    action
        `skip`: leave out the update, count it and go on; `stop`: end the run.
    loss_factor
        How many times the median a loss may be; 0 accepts every finite loss.
    window
        Losses that the median is taken over.
    max_skips
        Bad steps in a row after which a run that skips is stopped too.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    action: str = "skip"
    loss_factor: float = 0.0
    window: int = 50
    max_skips: int = 10
    skipped: int = 0
    _in_a_row: int = field(default=0, repr=False)
    _recent: deque = field(init=False, repr=False)

    def __post_init__(self):
        if self.action not in ACTIONS:
            raise ValueError(f"`guard.action` must be one of {ACTIONS}, got {self.action!r}.")
        if self.loss_factor != 0 and self.loss_factor <= 1:
            raise ValueError(f"`guard.loss_factor` must be 0 (off) or greater than 1, got {self.loss_factor}.")
        if min(self.window, self.max_skips) < 1:
            raise ValueError(
                f"`guard.window` and `guard.max_skips` must be at least 1, got {self.window} and {self.max_skips}."
            )
        self._recent = deque(maxlen=self.window)

    def accepts(self, loss: float) -> bool:
        """Tell whether a loss is finite and no spike."""
        if not math.isfinite(loss):
            return False
        if not self.loss_factor or len(self._recent) < self.window:
            return True
        return loss <= self.loss_factor * statistics.median(self._recent)

    def note(self, loss: float, applied: bool) -> None:
        """Remember a step: its loss, and whether the update was made."""
        if applied:
            self._recent.append(loss)
            self._in_a_row = 0
        else:
            self.skipped += 1
            self._in_a_row += 1

    @property
    def gives_up(self) -> bool:
        """Whether the run should end because of the last step."""
        return self._in_a_row >= (1 if self.action == "stop" else self.max_skips)

    def state_dict(self) -> dict[str, Any]:
        """Give what the next judgement depends on."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row, "recent": list(self._recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the guard of a checkpoint."""
        self.skipped, self._in_a_row = state["skipped"], state["in_a_row"]
        self._recent = deque(state["recent"], maxlen=self.window)
