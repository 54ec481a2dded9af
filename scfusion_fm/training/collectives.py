"""Do something on all ranks, or on one for all: results and errors reach every rank.

A process without others is a rank alone. Imported without DeepSpeed, whose import takes seconds.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, distributed

from scfusion_fm.config.loading import config_differences


def own_rank() -> int:
    """Give the number of this process among the ranks, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def count_ranks() -> int:
    """Give the number of ranks."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def gather(value: Any) -> list[Any]:
    """Give the values of all ranks to all of them."""
    if not distributed.is_initialized():
        return [value]
    values = [None] * count_ranks()
    distributed.all_gather_object(values, value)
    return values


def add_up(values: Tensor) -> Tensor:
    """Add a tensor up over the ranks, in place; give it."""
    if count_ranks() > 1:
        distributed.all_reduce(values)
    return values


def together(action: Callable[[], Any]) -> list[Any]:
    """
    Do something on every rank; give all results to all, or raise on all what went wrong on one.

    Raises
    ------
    OSError, ValueError, RuntimeError
        What was raised on the first rank that failed, by the nearest of these types, with the number of that rank.
    """
    try:
        mine = (action(), None)
    except Exception as error:  # whatever it is, the others wait to hear of it
        mine = (None, error)
    kind, text = _describe(mine[1])
    results = gather((mine[0], kind, text))
    if mine[1] is not None and not isinstance(mine[1], OSError):
        try:
            raise mine[1]
        finally:
            del mine  # an error that knows a frame that knows the error keeps all alive that they know
    for rank, (_, kind, text) in enumerate(results):
        if isinstance(kind, int):
            raise OSError(kind, f"{text} (rank {rank})")
        if kind is not None:
            raise (ValueError if kind == "ValueError" else RuntimeError)(f"{text} (rank {rank})")
    return [result for result, _, _ in results]


def from_rank_0(action: Callable[[], Any]) -> Any:
    """Do something on rank 0; give its result to all ranks, or raise on all of them what went wrong."""
    return together(action if own_rank() == 0 else lambda: None)[0]


def check_same(settings: dict[str, Any]) -> None:
    """
    Check that all ranks were started with the same settings.

    Raises
    ------
    ValueError
        On all ranks, if one has others than rank 0.
    """
    everyone = gather(settings)
    for rank, theirs in enumerate(everyone):
        changed = config_differences(everyone[0], theirs)
        if changed:
            raise ValueError(
                f"All ranks must be started with the same settings and atlas, got others on rank {rank} than on "
                f"rank 0: {'; '.join(changed)}. Give all hosts the same files."
            )


def _describe(error: Exception | None) -> tuple[int | str | None, str]:
    """Give the number or the type of an error, and its text, as other ranks can be told."""
    if isinstance(error, OSError):
        return error.errno or 0, error.strerror or str(error)
    return (None, "") if error is None else (type(error).__name__, str(error))
