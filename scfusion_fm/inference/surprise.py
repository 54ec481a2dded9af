"""How strange cells are to a model: the inner losses of its TTT layers, beside those of reference cells."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.utils import ModelOutput

from scfusion_fm.data.files.align import AlignedFile
from scfusion_fm.data.files.coverage import MIN_COVERAGE
from scfusion_fm.data.files.readers import Container, Given, open_cells
from scfusion_fm.data.schema import Modality
from scfusion_fm.evaluation.calibration.percentiles import draw_masks, surprise_percentiles
from scfusion_fm.inference.batches import CellCollator, run_batches
from scfusion_fm.inference.inputs import open_for
from scfusion_fm.inference.job import Job, Use
from scfusion_fm.inference.names import name_genes, name_proteins
from scfusion_fm.model import ScFusionTTTForPreTraining, ScFusionTTTModel
from scfusion_fm.notices import warn

MASK_RATIO = 0.3
MOST_DRAWS = 1000


@dataclass
class Strangeness:
    """
    Scores of cells.

    Attributes
    ----------
    modalities
        (n, 2) mean inner loss over the tokens of RNA and of protein; NaN where none was read.
    reconstruction
        (n,) mean error of hidden values over the draws; NaN without draws or without tokens.
    token_mean
        (N_rna + P,) mean inner loss of each token over the cells where it was read; NaN without any.
    token_cells
        (N_rna + P,) how many cells these are.
    """

    modalities: NDArray[np.float64]
    reconstruction: NDArray[np.float64]
    token_mean: NDArray[np.float64]
    token_cells: NDArray[np.int64]

    @property
    def surprise(self) -> NDArray[np.float64]:
        """(n,) mean over the modalities that were read."""
        read = np.isfinite(self.modalities)
        total = np.where(read, self.modalities, 0.0).sum(1)
        return np.divide(total, read.sum(1), out=np.full(len(read), np.nan), where=read.any(1))

    @property
    def kind(self) -> NDArray[np.int64]:
        """(n,) which modalities were read: 1 for RNA plus 2 for protein."""
        return np.isfinite(self.modalities) @ np.array([1, 2])


def surprise(
    adata: Given,
    model: Any,
    *,
    output: str | Path | None = None,
    copy: bool = False,
    key_added: str = "scfusion_ttt_surprise",
    reference: Given | None = None,
    draws: int = 0,
    modality: Modality = "auto",
    batch_key: str | None = None,
    batch_size: int | Literal["auto"] = "auto",
    device: str | None = None,
    min_coverage: float = MIN_COVERAGE,
) -> Container | None:
    """
    Say how strange each cell is to a model, in `obs["scfusion_ttt_surprise"]`, and each token, in `uns`.

    Adds `scfusion_ttt_surprise` (mean inner loss; that of the modalities in `_rna` and `_adt`), with a reference its
    place among the reference cells in `_percentile`, with draws the error of hidden values in `_reconstruction`, and
    with both `_reconstruction_percentile`. `uns["scfusion_ttt"]["surprise"]["tokens"]` is a table of the tokens.

    Parameters
    ----------
    adata, model, output, copy, modality, batch_key, batch_size, device, min_coverage
        As in `embed`.
    key_added
        Name in `obs`, with which the others begin.
    reference
        Cells of the kind that the model knows, which it was not trained on: a file or an object; no percentiles when
        None.
    draws
        Fixed masks under which cells are reconstructed as well; needs a pretrained model. 0 for none.

    Returns
    -------
    As `embed`.

    Raises
    ------
    ValueError
        If the model, the cells or a setting is refused.

    Notes
    -----
    Layers learn while they read, so that inner losses of different panels cannot be compared. With a reference, both
    files are read over the genes and proteins that they share, and a cell is compared with reference cells that have
    the same modalities.
    """
    if not 0 <= draws <= MOST_DRAWS:
        raise ValueError(f"`draws` must lie in [0, {MOST_DRAWS}], got {draws}.")
    endings = ["", "_rna", "_adt"]
    endings += [] if reference is None else ["_percentile"]
    endings += ["_reconstruction"] if draws else []
    endings += ["_reconstruction_percentile"] if draws and reference is not None else []
    model_class = ScFusionTTTForPreTraining if draws else ScFusionTTTModel
    use = Use(output, copy, key_added, modality, batch_size, device, batch_key, min_coverage)
    with Job.start(adata, model, use, model_class, [("obs", key_added + ending) for ending in endings]) as job:
        source, known = job.source, None
        if reference is not None:
            others = open_for(open_cells(reference, modality), job.extractor, min_coverage=min_coverage)
            source, others = share_panel(source, others)
            known = measure_strangeness(job, others, draws)
        found = measure_strangeness(job, source, draws)
        columns = {"": found.surprise, "_rna": found.modalities[:, 0], "_adt": found.modalities[:, 1]}
        columns["_reconstruction"] = found.reconstruction
        if known is not None:
            kinds = (found.kind, known.kind)
            columns["_percentile"] = surprise_percentiles(found.surprise, known.surprise, *kinds)
            again = surprise_percentiles(found.reconstruction, known.reconstruction, *kinds)
            columns["_reconstruction_percentile"] = again
            _warn_without_percentile(found, columns["_percentile"])
        for ending in endings:
            job.add_column(key_added + ending, columns[ending])
        facts = {
            "obs": key_added,
            "draws": draws,
            "reference": "" if reference is None else others.cells.path,
            "tokens": describe_tokens(job, found, known),
        }
        return job.finish("surprise", facts)


def share_panel(first: AlignedFile, second: AlignedFile) -> tuple[AlignedFile, AlignedFile]:
    """
    Leave of both files only the genes and proteins that both measure, in all their batches.

    Raises
    ------
    ValueError
        If they share none.
    """
    panels = first.panels, second.panels
    rna = np.logical_and.reduce(np.vstack([panel.rna for panel in panels]))
    adt = np.logical_and.reduce(np.vstack([panel.adt for panel in panels]))
    if not rna.any() and not adt.any():
        raise ValueError(
            "`reference` must measure genes or proteins of the input, got one that shares none (--reference)."
        )
    return first.keep_panel(rna, adt), second.keep_panel(rna, adt)


def measure_strangeness(job: Job, source: AlignedFile, draws: int = 0) -> Strangeness:
    """
    Run the model over the cells of a file that it can read; NaN for the others.

    Raises
    ------
    ValueError
        If it can read none.
    """
    readable = (source.rna_present & source.panels.rna.any()) | (source.adt_present & source.panels.adt.any())
    config = job.model.config
    sizes = [config.num_rna_tokens, config.num_proteins]
    masks = [draw_masks(n, MASK_RATIO, draws, seed) for seed, n in enumerate(sizes) if draws]
    result = Strangeness(
        np.full((len(readable), 2), np.nan),
        np.full(len(readable), np.nan),
        np.zeros(sum(sizes)),
        np.zeros(sum(sizes), dtype=np.int64),
    )

    def forward(**inputs: Tensor) -> tuple[ModelOutput, Tensor | None]:
        output = getattr(job.model, "model", job.model)(**inputs, output_inner_loss=True)
        return output, reconstruction_error(job.model, inputs, masks) if draws else None

    for part, cells, rows in job.read(source, readable):
        collator = CellCollator(cells, job.extractor)
        collate = collator if draws else collator.sparse  # values that were hidden are compared with dense ones
        for batch, (output, error) in run_batches(forward, collate, rows, job.model.device, job.batch_size):
            places = batch + part.start
            read = torch.stack([x.any(1) for x in output.attention_mask.split(sizes, 1)], 1)
            result.modalities[places] = output.modality_inner_loss.masked_fill(~read, torch.nan).double().cpu().numpy()
            result.token_mean += output.inner_loss.double().sum(0).cpu().numpy()
            result.token_cells += output.attention_mask.sum(0).cpu().numpy()
            if error is not None:
                result.reconstruction[places] = error.masked_fill(~read.any(1), torch.nan).double().cpu().numpy()
    result.token_mean[result.token_cells == 0] = np.nan
    result.token_mean /= np.maximum(result.token_cells, 1)
    return result


def reconstruction_error(
    model: ScFusionTTTForPreTraining, inputs: dict[str, Tensor], masks: list[NDArray[np.bool_]]
) -> Tensor:
    """Average the weighted error of hidden values of each cell over fixed masks, (K, N_rna) and (K, P); (B,)."""
    config, given = model.config, next(iter(inputs.values()))
    shapes = {"rna": (config.num_rna_tokens, config.rna_patch_size), "adt": (config.num_proteins,)}
    full = dict(inputs)
    for name, shape in shapes.items():
        if f"{name}_values" not in full:
            full[f"{name}_values"] = torch.zeros(len(given), *shape, device=given.device)
            full[f"{name}_observed"] = torch.zeros(len(given), *shape, device=given.device, dtype=torch.bool)
    seen = {"rna": full["rna_observed"].any(-1), "adt": full["adt_observed"]}
    total = torch.zeros(len(given), device=given.device)
    for pair in zip(*masks, strict=True):
        hidden = {
            f"{name}_bool_masked_pos": seen[name] & torch.from_numpy(mask).to(given.device)
            for name, mask in zip(("rna", "adt"), pair, strict=True)
        }
        output = model(**full, **hidden)
        total += config.rna_loss_weight * output.rna_loss + config.adt_loss_weight * output.adt_loss
    return total / len(masks[0])


def describe_tokens(job: Job, found: Strangeness, known: Strangeness | None) -> pd.DataFrame:
    """
    Give a table of all tokens: modality, genes or protein, mean inner loss, cells, and that of the reference.

    Genes and proteins have the names of the file where it measures them; those of the model stand beside them.
    """
    extractor = job.extractor
    symbols, own = extractor.gene_symbols, name_genes(job.source)
    patches = [[g for g in patch if g < len(symbols)] for patch in extractor.patch_genes()]
    proteins = list(extractor.protein_names)
    table = pd.DataFrame(
        {
            "modality": ["rna"] * len(patches) + ["adt"] * len(proteins),
            "features": [",".join(own[g] for g in patch) for patch in patches] + [*name_proteins(proteins, job.source)],
            "model_features": [",".join(symbols[g] for g in patch) for patch in patches] + proteins,
            "mean": found.token_mean,
            "cells": found.token_cells,
        },
        index=[f"token{i}" for i in range(len(patches) + len(proteins))],
    )
    return table if known is None else table.assign(reference_mean=known.token_mean)


def _warn_without_percentile(found: Strangeness, percentiles: NDArray[np.float64]) -> None:
    number = int((np.isfinite(found.surprise) & np.isnan(percentiles)).sum())
    if number:
        warn(
            f"{number} cells have no percentile: the reference has fewer than 20 cells with the same modalities.",
        )
