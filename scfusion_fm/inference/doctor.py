"""`doctor`: what files or objects hold, and whether they can be used, with or without a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scfusion_fm.data.files.coverage import MIN_COVERAGE
from scfusion_fm.data.files.readers import Given
from scfusion_fm.data.inspect.doctor import Examination, examine_files
from scfusion_fm.data.schema import Modality
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary, build_vocabulary
from scfusion_fm.inference.model_files import find_model, read_vocabulary


def doctor(
    given: Given | Sequence[Given],
    *,
    model: Any = None,
    modality: Modality = "auto",
    batch_key: str | None = None,
    min_coverage: float | None = None,
) -> Examination:
    """
    Say what cells there are, how they will be read, and whether they can be used. Nothing is written or changed.

    Parameters
    ----------
    given
        AnnData or MuData, in memory, backed or lazy, or the path of a file; or several of these, which are also
        compared for the same cells.
    model
        Whose genes and proteins count: a model directory, a name of `list_models`, an id on the Hugging Face hub,
        or what `load` gives. All human genes when None.
    modality
        What a single AnnData holds where its names do not tell: `rna` or `adt`.
    batch_key
        Column of obs with batches that may have panels of their own: what has no count in a batch is not measured
        there.
    min_coverage
        Share of the genes of `model` (of its proteins where there are no genes) below which cells are refused, as
        `embed` and its like take it; 0.01 when None.

    Returns
    -------
    What was found. It prints as `scfusion doctor` does and shows as a table in a notebook; `files` has the parts, and
    `exit_code` is 0 where all is well, 1 where there are warnings, and 2 where something is refused.

    Raises
    ------
    ValueError
        If a setting or the model is refused; what is wrong with a file is in its report.
    """
    several = [given] if isinstance(given, str | Path) or not isinstance(given, Sequence) else list(given)
    vocabulary, least = _read_model(model, min_coverage)
    return examine_files(several, vocabulary, modality, batch_key, least)


def _read_model(model: Any, min_coverage: float | None) -> tuple[Vocabulary, float | None]:
    if model is not None:
        path = find_model(getattr(model, "path", model))  # of a loaded model
        return read_vocabulary(path), MIN_COVERAGE if min_coverage is None else min_coverage
    if min_coverage is not None:
        raise ValueError("`min_coverage` is about a model, got none; give `model` too.")
    return build_vocabulary(None, genes="protein_coding", proteins="all"), None
