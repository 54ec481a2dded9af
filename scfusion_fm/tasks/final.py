"""A model that is kept learns from all cells, with what a run on parts of them chose; that run has the figures."""

from typing import Any

from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.notices import tell


def join_all(whole: Partition, epochs: float) -> Partition:
    """Put the cells of all parts together to train on, and say so; `epochs` are those that the tested model took."""
    everything = Partition(train=whole.rows)
    tell(f"now the model that is kept: {_describe_length(epochs)}, with all {len(everything.train):,} cells")
    return everything


def describe_final(learned: Partition, everything: Partition, epochs: float, calibrated: str) -> dict[str, Any]:
    """
    Give what the results tell of a model that is kept and cannot be tested.

    Parameters
    ----------
    learned
        Which cells the tested model learned from.
    everything
        Those of the model that is kept.
    epochs
        Passes over them.
    calibrated
        What was set on cells that the tested model did not learn from, and comes with the model that is kept.
    """
    number = len(everything.train)
    return {
        "cells": number,
        "epochs": epochs,
        "told": (
            f"All figures are of the tested model, which learned from {len(learned.train):,} cells; the model that is "
            f"kept learned anew from all {number:,} cells of the split ({_describe_length(epochs)}), has the "
            f"{calibrated} of the tested one, and was not tested itself."
        ),
    }


def _describe_length(epochs: float) -> str:
    if not epochs:
        return "its head alone, for no epoch was better than the start"
    return f"{epochs:g} epoch{'' if epochs == 1 else 's'}, as many as were best for the tested one"
