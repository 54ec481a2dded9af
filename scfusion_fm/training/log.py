"""What a run reports: a file of records, TensorBoard, Weights & Biases, and lines for people."""

import json
import math
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """
    Write the records of a run; does nothing on ranks other than 0.

    Parameters
    ----------
    directory
        Directory of the run.
    enabled
        Whether this rank writes.
    first_step
        Step that a resumed run starts from; later records of the interrupted run are dropped.
    tensorboard
        Whether to write TensorBoard events.
    wandb_project
        Weights & Biases project, or None.
    """

    def __init__(
        self,
        directory: Path,
        enabled: bool,
        first_step: int = 0,
        tensorboard: bool = True,
        wandb_project: str | None = None,
    ):
        self.enabled = enabled
        self._file, self._board, self._wandb = None, None, None
        if not enabled:
            return
        if wandb_project is not None:
            self._wandb = _start_wandb(wandb_project, directory)
        self._file = self._open_metrics(directory / METRICS_FILE, first_step)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(directory / "tensorboard", purge_step=first_step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; it needs `step` and `split`."""
        if not self.enabled:
            return
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        numbers = {f"{record['split']}/{k}": v for k, v in record.items() if isinstance(v, float)}
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, record["step"])
        if self._wandb is not None:
            self._wandb.log(numbers, step=record["step"])

    def say(self, message: str) -> None:
        """Print a line for people."""
        if self.enabled:
            print(message, flush=True)

    def close(self) -> None:
        """Flush and close everything."""
        for sink in (self._file, self._board):
            if sink is not None:
                sink.close()
        if self._wandb is not None:
            self._wandb.finish()

    @staticmethod
    def _open_metrics(path: Path, first_step: int):
        kept = []
        if path.exists():
            lines = path.read_text().splitlines()
            # The last line may be cut off if the run was killed while writing it.
            complete = [line for line in lines if line.endswith("}")]
            kept = [line for line in complete if json.loads(line)["step"] <= first_step]
        scratch = path.with_suffix(".tmp")
        scratch.write_text("".join(f"{line}\n" for line in kept))
        scratch.replace(path)
        return path.open("a")


def _start_wandb(project: str, directory: Path):
    """
    Start a Weights & Biases run.

    Raises
    ------
    ValueError
        If the package is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            f"`run.wandb_project` is {project!r}, but wandb is not installed; pip install 'scfusion-fm[wandb]', "
            "or set it to null."
        ) from error
    return wandb.init(project=project, dir=str(directory), resume="allow", id=directory.resolve().name)


def format_seconds(seconds: float) -> str:
    """Write a duration as h:mm:ss."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
