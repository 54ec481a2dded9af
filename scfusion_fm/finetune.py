"""
Fine-tune a model on cells in memory or in files, from Python: `sf.finetune.annotation(adata, ...)` and its like.

The scripts in `finetune/` run the same functions. What they call a flag is an argument here: `epochs=5`,
`test_fraction=0`, `report=False`; or by section, `optim={"epochs": 5}`. `scfusion_fm/config/finetune.py` explains each.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from scfusion_fm.config.finetune import AnnotationConfig, CrossModalConfig, FinetuneConfig, UnimodalTransferConfig
from scfusion_fm.config.flags import read_settings
from scfusion_fm.config.imputation import ImputationConfig
from scfusion_fm.config.integration import IntegrationConfig
from scfusion_fm.data.files.readers import Given
from scfusion_fm.extras import explain_missing
from scfusion_fm.tasks.annotation.run import run_annotation
from scfusion_fm.tasks.annotation.transfer import run_transfer
from scfusion_fm.tasks.cross_modal.run import run_cross_modal
from scfusion_fm.tasks.imputation.run import run_imputation
from scfusion_fm.tasks.integration.run import run_integration
from scfusion_fm.tasks.results import FineTuned

__all__ = ["FineTuned", "annotation", "batch_integration", "protein_imputation", "protein_prediction", "transfer"]

Config = TypeVar("Config", bound=FinetuneConfig)


def annotation(
    data: Given | Sequence[Given],
    *,
    labels_key: str,
    model: str | Path,
    output_dir: str | Path,
    batch_key: str | None = None,
    **settings: Any,
) -> FineTuned:
    """
    Fine-tune a model to name cell types.

    Parameters
    ----------
    data
        AnnData, MuData, the path of a file or an atlas, or several of these; each keeps the panel that it measured.
    labels_key
        Column of obs with the labels.
    model
        Directory of a pretrained model, name of one that comes with the package, or id on the hub.
    output_dir
        Directory for model, scores and report; must not exist.
    batch_key
        Column of obs with the batch or donor: whole ones are held out, where there are enough.
    settings
        Other settings of `AnnotationConfig`.

    Returns
    -------
    Scores beside baselines on held-out cells, and where the model is.

    Raises
    ------
    ValueError
        If data or settings are refused.
    """
    given = settings | {"labels_key": labels_key, "batch_key": batch_key}
    return _run(AnnotationConfig, run_annotation, data, model, output_dir, given)


def protein_prediction(
    data: Given | Sequence[Given],
    *,
    model: str | Path,
    output_dir: str | Path,
    batch_key: str | None = None,
    **settings: Any,
) -> FineTuned:
    """
    Fine-tune a model to predict surface proteins from RNA, with intervals.

    Parameters
    ----------
    data, model, output_dir, batch_key
        As for `annotation`; cells with RNA and protein are used.
    settings
        Other settings of `CrossModalConfig`.

    Returns
    -------
    Scores beside baselines on held-out cells, and where the model is.

    Raises
    ------
    ValueError
        If data or settings are refused.
    """
    return _run(CrossModalConfig, run_cross_modal, data, model, output_dir, settings | {"batch_key": batch_key})


def transfer(
    data: Given | Sequence[Given],
    *,
    labels_key: str,
    model: str | Path,
    output_dir: str | Path,
    batch_key: str | None = None,
    **settings: Any,
) -> FineTuned:
    """
    Teach a model to name cell types from RNA alone, through proteins that it projects.

    Parameters
    ----------
    data, labels_key, model, output_dir, batch_key
        As for `annotation`.
    settings
        Other settings of `UnimodalTransferConfig`.

    Returns
    -------
    Scores beside baselines on held-out cells, and where the model is.

    Raises
    ------
    ValueError
        If data or settings are refused.
    """
    given = settings | {"labels_key": labels_key, "batch_key": batch_key}
    return _run(UnimodalTransferConfig, run_transfer, data, model, output_dir, given)


def protein_imputation(
    data: Given | Sequence[Given],
    *,
    model: str | Path,
    output_dir: str | Path,
    batch_key: str | None = None,
    **settings: Any,
) -> FineTuned:
    """
    Fine-tune a model to fill in proteins that panels lack, for `sf.impute`.

    Parameters
    ----------
    data, model, output_dir, batch_key
        As for `annotation`; several files, each with a panel of its own.
    settings
        Other settings of `ImputationConfig`, such as `test_groups`.

    Returns
    -------
    Scores beside baselines on held-out cells, and where the model is.

    Raises
    ------
    ValueError
        If data or settings are refused.
    """
    return _run(ImputationConfig, run_imputation, data, model, output_dir, settings | {"batch_key": batch_key})


def batch_integration(
    data: Given | Sequence[Given],
    *,
    model: str | Path,
    output_dir: str | Path,
    batch_key: str | None = None,
    labels_key: str | None = None,
    **settings: Any,
) -> FineTuned:
    """
    Fine-tune the embedding of a model so that batches mix and cell types stay apart, for `sf.embed`.

    Parameters
    ----------
    data, model, output_dir
        As for `annotation`.
    batch_key
        Column of obs with the batches; of several files, the files are where it is None.
    labels_key
        Column of obs with cell types to learn from; `types_key` names one that is scored by alone.
    settings
        Other settings of `IntegrationConfig`.

    Returns
    -------
    Scores beside other methods on held-out cells, and where the model is.

    Raises
    ------
    ValueError
        If data or settings are refused.
    """
    given = settings | {"labels_key": labels_key, "batch_key": batch_key}
    return _run(IntegrationConfig, run_integration, data, model, output_dir, given)


def _run(
    schema: type[Config],
    run: Callable[[Config, Sequence[Given]], FineTuned],
    data: Given | Sequence[Given],
    model: str | Path,
    output_dir: str | Path,
    settings: dict[str, Any],
) -> FineTuned:
    """Name what is in memory, and run the task."""
    objects = list(data) if isinstance(data, list | tuple) else [data]
    names = [
        str(given) if isinstance(given, str | Path) else f"{type(given).__name__}{i or ''}"
        for i, given in enumerate(objects)
    ]
    given = {"model": str(model), "data": names, "output_dir": str(output_dir)}
    with explain_missing():
        return run(read_settings(schema, settings | given), objects)
