"""
Pictures: `sf.pl.umap(adata)` and its like, and the report of a run as a page.

They take an AnnData or a MuData with the results of the verbs, or the directory of a finished run. Each picture is
drawn into `ax`, or into a new figure where that is None, and the axes are given back.

Letters: n cells, P proteins.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from scfusion_fm.data.files.align import align_cells
from scfusion_fm.data.files.readers import Container, read_cells
from scfusion_fm.data.inspect.summary import summarise_atlas
from scfusion_fm.data.locations import Location, check_suffix
from scfusion_fm.data.schema import read_categories
from scfusion_fm.evaluation.metrics.proteins import protein_scores
from scfusion_fm.evaluation.report import plots
from scfusion_fm.evaluation.report.overlap_plot import draw_overlap
from scfusion_fm.evaluation.report.run_files import read_arrays, read_json, read_metrics, read_table
from scfusion_fm.evaluation.report.run_report import compare_proteins, write_report
from scfusion_fm.evaluation.report.text import PROTEIN_METRICS

__all__ = ["confusion", "losses", "overlap", "protein", "proteins", "report", "umap"]


def report(
    output: Location,
    *,
    pretraining: Location | None = None,
    annotation: Location | None = None,
    cross_modal: Location | None = None,
) -> Path:
    """
    Write one HTML page about finished runs, and its pictures beside it, as `scfusion report` does.

    Parameters
    ----------
    output
        The page, which ends in `.html`; one that is there is replaced when the new one is complete.
    pretraining, annotation, cross_modal
        Directories of the runs; at least one.

    Returns
    -------
    Path of the page.

    Raises
    ------
    ValueError
        If no run is given, or a file of a run is missing or incomplete. Nothing is written then.
    """
    page = Path(output).expanduser()
    check_suffix(page, "output", ".html")
    runs = [None if run is None else Path(run).expanduser() for run in (pretraining, annotation, cross_modal)]
    return write_report(page, *runs)


def losses(run: Location, *, loss: Literal["loss", "rna_loss", "adt_loss"] = "loss", ax: Axes | None = None) -> Axes:
    """
    Draw the training and validation loss of a pretraining run over its steps.

    Parameters
    ----------
    run
        Directory of the run, which may go on.
    loss
        Which loss: in total, of genes or of proteins.
    ax
        Where to draw.

    Raises
    ------
    ValueError
        If the run has no readable records, or none of this loss.
    """
    if loss not in plots.LOSSES:
        raise ValueError(f"`loss` must be one of {', '.join(plots.LOSSES)}, got {loss!r}.")
    metrics = read_metrics(Path(run).expanduser() / "metrics.jsonl")
    if metrics[loss].isna().all():
        raise ValueError(f"`loss` must be one that was logged, got {loss!r}, of which {str(run)!r} has no values.")
    ax = _axes(ax, 5.2, 3.6)
    plots.draw_losses(ax, metrics, loss)
    ax.set_ylabel("loss")
    ax.legend(frameon=False)
    return ax


def umap(
    given: Container | Location,
    *,
    color: str = "cell_type_pred",
    basis: str = "X_scfusion_ttt",
    ax: Axes | None = None,
) -> Axes:
    """
    Draw the UMAP of an embedding, with a colour and marker per cell type, or with colours for numbers.

    Parameters
    ----------
    given
        Object with an embedding; or directory of a fine-tuning for cell types, whose test cells are coloured.
    color
        Column of obs: cell types or other classes, or numbers such as a probability. Cells without a value are grey.
    basis
        Name of the embedding in obsm. The layout is computed of it, anew each time; two columns are taken as a layout.
    ax
        Where to draw.

    Raises
    ------
    ValueError
        If the embedding, the column or a file of the run is missing, or there are fewer than 4 cells.

    Notes
    -----
    Above 20,000 cells a random sample is shown. The same embedding gives the same picture on the same machine.
    """
    if isinstance(given, str | Path):
        found = read_arrays(Path(given).expanduser() / "embedding.npz", ("embedding", "labels", "split"))
        embedding, labels, coloured = found["embedding"], found["labels"], found["split"] == "test"
        coloured = coloured if coloured.any() else None
    else:
        if basis not in given.obsm:
            raise ValueError(f"`basis` must be in obsm, got {basis!r}; it has {[*given.obsm]}. Call `sf.embed` first.")
        embedding, column = np.asarray(given.obsm[basis], dtype=np.float32), _column(given, color, "color")
        known = np.isfinite(embedding).all(1)  # others have no counts
        embedding, column = embedding[known], column[known]
        if column.dtype.kind == "f":
            ax = _axes(ax, 7.0, 5.6)
            plots.draw_values(ax, embedding, column.to_numpy(), color)
            return ax
        labels = read_categories(column)
        coloured = np.array([label is not None for label in labels], dtype=bool)
    ax = _axes(ax, 9.0, 5.6)
    plots.draw_umap(ax, embedding, labels, coloured)
    return ax


def confusion(
    given: Container | Location,
    *,
    labels_key: str = "cell_type",
    predicted_key: str = "cell_type_pred",
    ax: Axes | None = None,
) -> Axes:
    """
    Draw which cell types are taken for which: numbers of cells, coloured by their share of the true type.

    Parameters
    ----------
    given
        Object with true and predicted cell types; or directory of a fine-tuning for cell types, with its test cells.
    labels_key, predicted_key
        Columns of obs. Cells without one of both are left out.
    ax
        Where to draw.

    Raises
    ------
    ValueError
        If a column or a file of the run is missing, or no cell has both.
    """
    if isinstance(given, str | Path):
        cells = read_table(Path(given).expanduser() / "test_predictions.csv", ("label", "predicted"))
        labels, predicted = cells["label"].to_numpy(), cells["predicted"].to_numpy()
    else:
        labels = read_categories(_column(given, labels_key, "labels_key"))
        predicted = read_categories(_column(given, predicted_key, "predicted_key"))
        known = np.array([None not in pair for pair in zip(labels, predicted, strict=True)], dtype=bool)
        labels, predicted = labels[known], predicted[known]
    table = plots.tabulate_confusions(labels, predicted)
    ax = _axes(ax, *plots.size_of_confusions(table))
    plots.draw_confusion(ax, table)
    return ax


def protein(
    given: Container | Location,
    name: str,
    *,
    key: str = "protein_scfusion_ttt",
    model: Any = None,
    ax: Axes | None = None,
) -> Axes:
    """
    Draw predicted against measured abundance of a protein, a dot per cell; on the dashed line they agree.

    Parameters
    ----------
    given
        Object with measured and predicted proteins; or directory of a fine-tuning for proteins, with its test cells.
    name
        The protein, as in the predictions.
    key
        Name of the predictions in obsm.
    model
        Model that made them, in whose unit (CLR) the measured counts are brought; the one that `uns` tells when None.
    ax
        Where to draw.

    Raises
    ------
    ValueError
        If the protein was not measured or not predicted, or a file of the run is missing.
    """
    measured, predicted, names = _read_proteins(given, key, model)
    if name not in names:
        raise ValueError(f"`name` must be one of the predicted proteins, got {name!r}; there are {', '.join(names)}.")
    place = names.index(name)
    scores, _ = _score(measured[:, [place]], predicted[:, [place]])
    if not scores["n"].iloc[0]:
        raise ValueError(f"`name` must be a protein that was measured, got {name!r}, which no cell has.")
    ax = _axes(ax, 4.6, 4.4)
    plots.draw_protein(ax, measured[:, place], predicted[:, place])
    ax.set(
        xlabel="measured",
        ylabel="predicted",
        title=f"{plots.shorten(name)}   (r = {scores['pearson'].iloc[0]:.2f})",
    )
    return ax


def proteins(
    given: Container | Location, *, key: str = "protein_scfusion_ttt", model: Any = None, ax: Axes | None = None
) -> Axes:
    """
    Draw the correlation of predicted and measured abundance of every protein, the best first.

    Parameters
    ----------
    given, key, model
        As in `protein`; a run shows the best baseline beside it.
    ax
        Where to draw.

    Raises
    ------
    ValueError
        If nothing was measured and predicted, or a file of the run is missing.
    """
    measured, predicted, names = _read_proteins(given, key, model)
    baseline = None
    if isinstance(given, str | Path):
        run = Path(given).expanduser()
        rows = read_json(run / "results.json", (), ("method", *PROTEIN_METRICS))["table"]
        table = read_table(run / "per_protein.csv", ("protein", "method", "pearson"))
        scores, baseline = compare_proteins(run, rows, table, names)
    else:
        scores, _ = _score(measured, predicted)
    ranking = scores["pearson"].dropna().sort_values(ascending=False, kind="stable")
    if ranking.empty:
        raise ValueError("`given` must hold proteins that were measured and predicted and vary, got none.")
    ax = _axes(ax, 11.0, 3.8)
    plots.draw_correlations(ax, ranking, names, baseline)
    ax.set_ylabel("Pearson r over cells")
    return ax


def overlap(atlas: Location, *, features: Literal["genes", "proteins"] = "genes", ax: Axes | None = None) -> Axes:
    """
    Draw which share of its panel each data set of an atlas has in common with the others.

    Parameters
    ----------
    atlas
        Directory or URL of the atlas.
    features
        Of which panels.
    ax
        Where to draw.

    Raises
    ------
    ValueError
        If there is no atlas.
    """
    if features not in ("genes", "proteins"):
        raise ValueError(f"`features` must be 'genes' or 'proteins', got {features!r}.")
    found = summarise_atlas(atlas)
    names = [dataset.name for dataset in found.datasets]
    side = float(np.clip(0.5 * len(names) + 2, 3.4, 9))
    ax = _axes(ax, side + 1.6, side)
    image = draw_overlap(ax, names, np.asarray(getattr(found, f"shared_{features}")))
    ax.set_title(features.capitalize())
    ax.figure.colorbar(image, ax=ax, label="share of the row's panel", shrink=0.8, pad=0.02)
    return ax


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    """Give the axes to draw into; new ones are of a figure that a notebook shows."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt  # it chooses a backend, which the report must not

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def _column(given: Container, key: str, argument: str) -> pd.Series:
    if key not in given.obs:
        raise ValueError(f"`{argument}` must be a column of obs, got {key!r}; it has {list(given.obs.columns)}.")
    return given.obs[key]


def _read_proteins(given: Container | Location, key: str, model: Any) -> tuple[NDArray, NDArray, list[str]]:
    """Give measured and predicted abundance, (n, P) each and NaN where there is none, and names."""
    if isinstance(given, str | Path):
        found = read_arrays(Path(given).expanduser() / "test_predictions.npz", ("measured", "predicted", "names"))
        return found["measured"], found["predicted"], [str(name) for name in found["names"]]
    if key not in given.obsm or not isinstance(given.obsm[key], pd.DataFrame):
        raise ValueError(f"`key` must be a table in obsm, got {key!r}. Call `sf.predict_protein` first.")
    predicted = given.obsm[key]
    return _measure(given, key, list(predicted), model), predicted.to_numpy(), [str(name) for name in predicted]


def _measure(given: Container, key: str, names: list[str], model: Any) -> NDArray[np.float32]:
    """Bring the measured proteins into the unit of predictions, (n, P); NaN where there are none."""
    from scfusion_fm.inference.inputs import vocabulary_of  # both load torch
    from scfusion_fm.inference.model_directory import load_extractor

    told = given.uns.get("scfusion_ttt", {}).get("predict-protein", {})
    if model is None and told.get("obsm") != key:
        raise ValueError(f"`model` must be given, got none: uns does not tell which model made obsm[{key!r}].")
    if told.get("obsm") == key and not str(told.get("unit", "CLR")).startswith("CLR"):
        raise ValueError(
            f"`key` must hold proteins in CLR to be drawn beside measured ones, got {told['unit']!r} in obsm[{key!r}]. "
            "Predict them with `unit='clr'`."
        )
    extractor = getattr(model, "extractor", None) or load_extractor(Path(told["model"] if model is None else model))
    known = dict(zip(told.get("proteins", ()), told.get("model_proteins", ()), strict=False))  # older results lack them
    places = extractor.index_proteins([known.get(name, name) for name in names])
    aligned = align_cells(read_cells(given, modality="adt"), vocabulary_of(extractor))
    observed = aligned.adt_observed_in(np.arange(len(aligned.obs)))
    values = np.where(observed, extractor.normalise_adt(aligned.adt, observed), np.nan)
    rows = aligned.obs.index.get_indexer(given.obs_names)
    found = np.where((places >= 0)[None], values[:, places], np.nan)
    return np.where((rows >= 0)[:, None], found[rows], np.nan)


def _score(measured: NDArray, predicted: NDArray) -> tuple[pd.DataFrame, dict[str, float]]:
    return protein_scores(measured, predicted, np.isfinite(measured) & np.isfinite(predicted))
