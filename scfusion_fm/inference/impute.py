"""`impute`: proteins that a panel lacks, and genes that were not measured, from all that was.

Letters: B cells of a block, N RNA tokens, G genes, P proteins.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from scfusion_fm.data.files.coverage import MIN_COVERAGE
from scfusion_fm.data.files.readers import Container, Given
from scfusion_fm.data.schema import AlignedCells, Modality
from scfusion_fm.evaluation.calibration.interval_file import PROTEIN_INTERVALS, read_intervals
from scfusion_fm.evaluation.calibration.intervals import ProteinIntervals
from scfusion_fm.inference.batches import CellCollator, predict_fields
from scfusion_fm.inference.job import Job, Use
from scfusion_fm.inference.loaded import LoadedModel, load
from scfusion_fm.inference.model_files import ModelFiles
from scfusion_fm.inference.names import list_genes, list_proteins
from scfusion_fm.inference.panel_regression import PANEL_REGRESSION, PanelRegression
from scfusion_fm.model import ScFusionTTTFeatureExtractor, ScFusionTTTForPreTraining

TARGETS = {"adt": "protein_scfusion_ttt_imputed", "rna": "rna_scfusion_ttt_imputed"}
TURNS = 2  # passes in which the tokens of the RNA are hidden, each in one of them


def impute(
    adata: Given,
    model: Any,
    *,
    target: Literal["adt", "rna"] = "adt",
    proteins: Sequence[str] | None = None,
    genes: Sequence[str] | None = None,
    output: str | Path | None = None,
    copy: bool = False,
    key_added: str | None = None,
    level: float | None = None,
    modality: Modality = "auto",
    batch_key: str | None = None,
    batch_size: int | Literal["auto"] = "auto",
    device: str | None = None,
    min_coverage: float = MIN_COVERAGE,
) -> Container | None:
    """
    Fill in the proteins or genes that were not measured: `obsm["protein_scfusion_ttt_imputed"]`, or `rna_...`.

    A table with a column per protein or gene. What was measured stands in it as it is, in the same units: for proteins
    the centred log ratio over those that were measured, for genes log1p of counts per 10,000. `..._mask` beside it is
    1 where a value was imputed and 0 where it was measured. A model with calibrated intervals adds their ends,
    `..._lower` and `..._upper`, for what was imputed.

    Parameters
    ----------
    adata, model, output, copy, modality, batch_key, batch_size, device, min_coverage
        As in `embed`; the model is a pretrained one, or one that was fine-tuned by `finetune/protein_imputation.py`.
    target
        What is filled in, `adt` (proteins) or `rna` (genes).
    proteins, genes
        Which ones, by their names in the input or in the model. When None, the measured ones and all that a fine-tuned
        model has learned to impute, or all that a pretrained model knows: of genes, 20,000 columns.
    key_added
        Name in `obsm`, instead of that above.
    level
        Share of measured values that intervals shall hold, one that the model was calibrated for; 0.9 when None.

    Returns
    -------
    As `embed`.

    Raises
    ------
    ValueError
        If the model, the cells or a setting is refused; if a protein or gene is unknown, or intervals are asked of a
        model without.
    """
    if target not in TARGETS:
        raise ValueError(f"`target` must be one of {list(TARGETS)}, got {target!r}.")
    if (genes if target == "adt" else proteins) is not None:
        other = "genes" if target == "adt" else "proteins"
        raise ValueError(f"`{other}` must be left out where `target` is {target!r}; set `target` to the other one.")
    loaded = load(model)
    ends = _load_ends(loaded, target, level)
    key = TARGETS[target] if key_added is None else key_added
    keys = [key, f"{key}_mask", *([] if ends is None else [f"{key}_lower", f"{key}_upper"])]
    use = Use(output, copy, key, modality, batch_size, device, batch_key, min_coverage)
    with Job.start(adata, loaded, use, ScFusionTTTForPreTraining, [("obsm", name) for name in keys]) as job:
        if target == "adt":
            panel, fill = list_proteins(job.source, job.model.config.predicted_features, proteins), _impute_proteins
        else:
            panel, fill = list_genes(job.source, genes), _impute_genes
        places = np.array(list(panel.values()))
        tables = {name: job.add_table(name, len(panel), list(panel)) for name in keys}
        imputed = np.zeros(len(panel), dtype=bool)
        for part, filled in fill(job):
            found = filled.select(places)
            imputed |= found.imputed.any(0)
            result = {key: found.values, f"{key}_mask": np.where(np.isfinite(found.values), found.imputed, np.nan)}
            if ends is not None:
                width = np.where(found.imputed, ends[places], np.nan)
                result |= {f"{key}_lower": found.values - width, f"{key}_upper": found.values + width}
            for name, values in result.items():
                tables[name].write(part, values.astype(np.float32))
        facts = _describe(job, target, panel, imputed)
        facts |= {"obsm": key} | ({} if ends is None else {"level": 0.9 if level is None else level})
        return job.finish("impute", facts)


@dataclass(frozen=True)
class Filled:
    """Values (B, F) of the cells of a block, NaN where there are none, and where they were measured."""

    values: NDArray[np.floating]
    measured: NDArray[np.bool_]

    @property
    def imputed(self) -> NDArray[np.bool_]:
        """(B, F), where a value was imputed."""
        return ~self.measured & np.isfinite(self.values)

    def select(self, places: NDArray[np.int64]) -> "Filled":
        """Give some of the columns."""
        return Filled(self.values[:, places], self.measured[:, places])


def _impute_proteins(job: Job) -> Iterator[tuple[slice, Filled]]:
    """Impute all proteins block by block: which of them are asked for changes none."""
    extractor, learned = job.extractor, job.model.config.predicted_features
    gaps = np.ones(extractor.num_proteins, dtype=bool)
    if learned is not None:
        gaps = np.isin(np.arange(extractor.num_proteins), extractor.index_proteins(learned))
    regression = load_regression(job.loaded.path, extractor)
    for part, cells, rows in job.read(job.source, job.has_counts):
        measured = cells.adt_observed_in(np.arange(len(cells.obs)))
        values = np.where(measured, extractor.normalise_adt(cells.adt, measured), np.nan)
        if len(rows):
            guess = _predict_proteins(job, cells, rows, gaps, regression)
            _check_finite(job, guess)
            values[rows] = np.where(measured[rows] | ~gaps, values[rows], guess)
        yield part, Filled(values, measured)


def _predict_proteins(
    job: Job,
    cells: AlignedCells,
    rows: NDArray[np.int64],
    gaps: NDArray[np.bool_],
    regression: PanelRegression | None,
) -> NDArray[np.floating]:
    """Predict all proteins of some cells, (len(rows), P), by the network, the regression or a mixture."""
    guess = np.zeros(cells.adt[rows].shape, np.float32)
    if regression is None or regression.share < 1:
        collator = GapCollator(cells, job.extractor, adt_gaps=gaps)
        (guess,) = predict_fields(job.model, collator, rows, ("adt_reconstruction",), batch_size=job.batch_size)
    return guess if regression is None else regression.blend(guess, cells, rows, job.extractor)


def _impute_genes(job: Job) -> Iterator[tuple[slice, Filled]]:
    """Impute all genes block by block; each token that lacks a gene is hidden in one pass, and filled in by it."""
    extractor, tokens = job.extractor, job.extractor.patch_genes()  # (N, S), G where there is no gene
    for part, cells, rows in job.read(job.source, job.has_counts):
        measured = cells.rna_observed_in(np.arange(len(cells.obs)))
        normal = extractor.normalise_rna(cells.rna.toarray(), cells.rna_total_counts)
        values = np.where(measured, normal, np.nan)
        lacks = np.pad(~measured, ((0, 0), (0, 1)))[:, tokens].any(2)  # (B, N)
        # Of a cell without RNA all tokens are hidden at once: there is nothing else to see.
        whole = ~measured.any(1, keepdims=True)
        for turn in range(TURNS if len(rows) else 0):
            hidden = lacks & (whole | (np.arange(len(tokens)) % TURNS == turn))
            collator = GapCollator(cells, extractor, rna_hidden=hidden)
            (guess,) = predict_fields(job.model, collator, rows, ("rna_reconstruction",), batch_size=job.batch_size)
            _check_finite(job, guess)
            filled = extractor.merge_patches(np.where(hidden[rows][:, :, None], guess, np.nan))
            values[rows] = np.where(np.isnan(values[rows]), filled, values[rows])
        yield part, Filled(values, measured)


class GapCollator(CellCollator):
    """
    Prepare cells whose gaps are to be filled in.

    Parameters
    ----------
    aligned, extractor
        As for `CellCollator`.
    adt_gaps
        (P,) proteins that are reconstructed where a cell lacks them; none when None.
    rna_hidden
        (n, N) tokens of the RNA that are hidden and reconstructed; none when None.
    """

    def __init__(
        self,
        aligned: AlignedCells,
        extractor: ScFusionTTTFeatureExtractor,
        adt_gaps: NDArray[np.bool_] | None = None,
        rna_hidden: NDArray[np.bool_] | None = None,
    ):
        super().__init__(aligned, extractor)
        self.adt_gaps, self.rna_hidden = adt_gaps, rna_hidden

    def __call__(self, rows: ArrayLike) -> dict[str, torch.Tensor]:
        """Give all arguments of the model."""
        rows, extractor = np.asarray(rows), self.extractor
        batch = complete_batch(super().__call__(rows), len(rows), extractor)
        if self.adt_gaps is not None:
            batch["adt_bool_masked_pos"] = torch.from_numpy(self.adt_gaps) & ~batch["adt_observed"]
        if self.rna_hidden is not None:
            batch["rna_bool_masked_pos"] = torch.from_numpy(self.rna_hidden[rows])
        return batch


def complete_batch(
    batch: dict[str, torch.Tensor], number: int, extractor: ScFusionTTTFeatureExtractor
) -> dict[str, torch.Tensor]:
    """Add what a file without one of the modalities lacks, and masks that hide nothing."""
    shape, proteins = (number, extractor.num_rna_tokens, extractor.patch_size), (number, extractor.num_proteins)
    empty = {
        "rna_values": torch.zeros(shape),
        "rna_observed": torch.zeros(shape, dtype=torch.bool),
        "adt_values": torch.zeros(proteins),
        "adt_observed": torch.zeros(proteins, dtype=torch.bool),
        "rna_bool_masked_pos": torch.zeros(shape[:2], dtype=torch.bool),
        "adt_bool_masked_pos": torch.zeros(proteins, dtype=torch.bool),
    }
    return empty | batch


def _describe(job: Job, target: str, panel: dict[str, int], imputed: NDArray[np.bool_]) -> dict[str, Any]:
    """Tell what stands in the table, for the provenance."""
    names = job.extractor.protein_names if target == "adt" else job.extractor.gene_ids
    unit = "centred log ratio over the measured proteins" if target == "adt" else "log1p of counts per 10,000"
    return {
        "target": target,
        "unit": unit,
        "features": list(panel),
        "model_features": [names[place] for place in panel.values()],
        "imputed": [name for name, filled in zip(panel, imputed, strict=True) if filled],
    }


def _load_ends(loaded: LoadedModel, target: str, level: float | None) -> NDArray[np.float64] | None:
    """
    Read the half widths of the intervals of all proteins, (P,), NaN without; None for a model without any.

    Raises
    ------
    ValueError
        If a level is asked for that the model was not calibrated for.
    """
    files = ModelFiles.open(loaded.path)
    if target != "adt" or not files.holds(PROTEIN_INTERVALS):
        if level is not None:
            raise ValueError(
                f"`level` must be left out for a model without intervals of what it imputes, got {level}; fine-tune "
                "one with finetune/protein_imputation.py."
            )
        return None
    intervals: ProteinIntervals = read_intervals(files.check_calibration(PROTEIN_INTERVALS))
    level = 0.9 if level is None else level
    if level not in intervals.rule.levels:
        raise ValueError(f"`level` must be one of the calibrated {list(intervals.rule.levels)}, got {level}.")
    widths = np.full(loaded.extractor.num_proteins, np.nan)
    places = loaded.extractor.index_proteins(intervals.names)
    widths[places[places >= 0]] = intervals.widths(level, 1, None)[0][places >= 0]
    return widths


def load_regression(model: Path, extractor: ScFusionTTTFeatureExtractor) -> PanelRegression | None:
    """
    Load the regression of a model directory; None where it has none.

    Raises
    ------
    ValueError
        If it is damaged, or is none for this model.
    """
    files = ModelFiles.open(model)
    if not files.holds(PANEL_REGRESSION):
        return None
    regression = PanelRegression.load(files.check_calibration(PANEL_REGRESSION))
    regression.check_size(len(extractor.gene_ids), extractor.num_proteins)
    return regression


def _check_finite(job: Job, values: NDArray[np.floating]) -> None:
    if not np.isfinite(values).all():
        raise ValueError(
            f"`model` must give finite numbers, got others: its weights or settings in {str(job.loaded.path)!r} are "
            "none that were trained. Export it again."
        )
