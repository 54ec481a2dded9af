"""How far embeddings move when a file measures a part of the genes that a model knows.

    python benchmarks/gene_coverage.py MODEL FILE [--cells 300] [--labels-key cell_type] [--json OUT.json]

Cells are embedded by their RNA: with all genes of the file, and with a part of them, taken at random, or those with
the most or the fewest counts. "Moved" is the mean distance between the two embeddings of a cell, as a share of the mean
distance between two cells. "Right" is the share of cells whose type is the most frequent one among the ten cells
nearest to them, which are embedded with all genes, the cell itself left out.
"""

import argparse
import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from scfusion_fm import ScFusionTTTModel, align_cells, load_pretrained, read_cells
from scfusion_fm.data.schema import Cells, ModalityCounts, as_text
from scfusion_fm.inference.batches import CellCollator, predict_fields
from scfusion_fm.inference.inputs import vocabulary_of

SHARES = (0.5, 0.3, 0.1, 0.02, 0.01)
NEIGHBOURS = 10


def choose_genes(totals: NDArray[np.float64], seed: int) -> Iterator[tuple[str, float, NDArray[np.int64]]]:
    """Name parts of the genes, given their counts: how they are taken, which share, and which."""
    orders = {
        "at random": np.random.default_rng(seed).permutation(len(totals)),
        "highest": np.argsort(-totals, kind="stable"),
        "lowest": np.argsort(totals, kind="stable"),
    }
    yield "all", 1.0, np.arange(len(totals))
    for share in SHARES:
        for name, order in orders.items():
            yield name, share, np.sort(order[: max(int(share * len(totals)), 1)])


def take(rna: ModalityCounts, obs: pd.DataFrame, path: str, rows: NDArray, genes: NDArray) -> Cells:
    """Give some cells with some genes."""
    counts = rna.counts[rows][:, genes]
    present = np.diff(counts.indptr) > 0
    part = replace(rna, counts=counts, var=rna.var.iloc[genes], present=present)
    return Cells(path, obs.iloc[rows], part, None)


def compare(found: NDArray, whole: NDArray, labels: NDArray[np.str_]) -> dict[str, float]:
    """Say how far cells have moved and how often neighbours tell their type; without those that have no counts."""
    known = np.flatnonzero(np.isfinite(found[:, 0]))
    distances = cdist(found[known], whole)
    spread = cdist(whole, whole)[np.triu_indices(len(whole), 1)].mean()
    moved = distances[np.arange(len(known)), known].mean() / spread
    distances[np.arange(len(known)), known] = np.inf
    nearest = np.argsort(distances, axis=1)[:, :NEIGHBOURS]
    right = [pd.Series(labels[row]).mode()[0] == labels[cell] for cell, row in zip(known, nearest, strict=True)]
    return {"moved": float(moved), "right": float(np.mean(right)), "cells": len(known)}


def measure(model_path: Path, path: Path, cells: int, labels_key: str, seed: int) -> list[dict]:
    """Embed cells with parts of their genes, and compare."""
    model, extractor = load_pretrained(model_path, ScFusionTTTModel)
    file = read_cells(path, "rna")
    rows = np.sort(np.random.default_rng(seed).choice(len(file.obs), min(cells, len(file.obs)), replace=False))
    labels = as_text(file.obs[labels_key]).to_numpy()[rows]
    totals = np.asarray(file.rna.counts.sum(axis=0)).ravel()
    results, whole = [], None
    for name, share, genes in choose_genes(totals, seed):
        aligned = align_cells(take(file.rna, file.obs, str(path), rows, genes), vocabulary_of(extractor))
        readable = np.flatnonzero(aligned.rna_present)
        (embedding,) = predict_fields(model, CellCollator(aligned, extractor), readable, ("pooler_output",), ("rna",))
        found = np.full((len(rows), embedding.shape[1]), np.nan)
        found[readable] = embedding
        whole = found if whole is None else whole
        facts = {"genes": name, "share": share, "counts": float(totals[genes].sum() / totals.sum())}
        results.append(facts | compare(found, whole, labels))
    return results


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model directory")
    parser.add_argument("file", type=Path, help="file with RNA and labels")
    parser.add_argument("--cells", type=int, default=300)
    parser.add_argument("--labels-key", default="cell_type")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="new file for the figures")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # that most genes are missing is the point
    rows = measure(arguments.model, arguments.file, arguments.cells, arguments.labels_key, arguments.seed)
    print(pd.DataFrame(rows).round(2).to_string(index=False))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
