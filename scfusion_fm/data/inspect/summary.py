"""Sum up an atlas: cells, data sets, panels and what they share, without reading the RNA counts.

Letters: E data sets.
"""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from scfusion_fm.data.atlas.tables import AtlasTables
from scfusion_fm.data.locations import Location
from scfusion_fm.data.split import SPLITS

SUMMED_ROWS = 65_536  # cells whose counts are summed together


@dataclass
class DatasetSummary:
    """
    One data set of an atlas.

    Attributes
    ----------
    name, licence
        As the manifest has them.
    cells, cells_with_rna, cells_with_adt
        Cells, and those with counts of each modality.
    genes, proteins
        Of the vocabulary, measured by the data set.
    median_rna_counts, median_adt_counts
        Per cell with counts; RNA over all genes of the source, ADT over the proteins of the vocabulary. 0 without.
    splits
        Cells by train, val and test.
    """

    name: str
    licence: str
    cells: int
    cells_with_rna: int
    cells_with_adt: int
    genes: int
    proteins: int
    median_rna_counts: float
    median_adt_counts: float
    splits: dict[str, int]


@dataclass
class AtlasSummary:
    """
    An atlas.

    Attributes
    ----------
    path, fingerprint, size_bytes
        Where it is, its content, and its size on disk.
    cells, genes, proteins
        Rows, and the vocabulary.
    splits
        Cells by train, val and test.
    nonzeros_per_cell
        Mean number of genes with a count, over cells with RNA.
    leaked_test_cells
        Test cells with the RNA or ADT counts of a training or validation cell; None without fingerprints.
    datasets
        In the order of the atlas.
    shared_genes, shared_proteins
        (E, E), measured by both data sets.
    """

    path: str
    fingerprint: str
    size_bytes: int
    cells: int
    genes: int
    proteins: int
    splits: dict[str, int]
    nonzeros_per_cell: float
    leaked_test_cells: int | None
    datasets: list[DatasetSummary]
    shared_genes: list[list[int]]
    shared_proteins: list[list[int]]

    def to_dict(self) -> dict:
        """Give all of it for a JSON file."""
        return asdict(self)


def summarise_atlas(path: Location) -> AtlasSummary:
    """
    Sum up an atlas.

    Raises
    ------
    ValueError
        If there is no atlas of this version.
    """
    tables = AtlasTables(path)
    manifest = tables.manifest
    dataset, split = tables.categories("dataset"), np.asarray(tables.categories("split"))
    panels = {"genes": tables.panel("rna"), "proteins": tables.panel("adt")}
    present = {kind: tables.column(f"{kind}_present") for kind in ("rna", "adt")}
    totals = {"rna": tables.column("rna_total_counts"), "adt": _sum_proteins(tables)}
    licences = {source["name"]: source["licence"] for source in manifest["sources"]}
    datasets = []
    for code, name in enumerate(map(str, dataset.categories)):
        rows = dataset.codes == code
        medians = [_median(totals[kind][rows & present[kind]]) for kind in ("rna", "adt")]
        datasets.append(
            DatasetSummary(
                name,
                licences[name],
                int(rows.sum()),
                *(int((rows & present[kind]).sum()) for kind in ("rna", "adt")),
                *(int(panel[:, code].sum()) for panel in panels.values()),
                *medians,
                _count_splits(split[rows]),
            )
        )
    shared = [panel.astype(np.int64).T @ panel.astype(np.int64) for panel in panels.values()]
    return AtlasSummary(
        str(path),
        manifest["fingerprint"],
        sum(file["bytes"] for file in manifest["files"].values()),
        len(split),
        *(len(panel) for panel in panels.values()),
        _count_splits(split),
        float(manifest["num_values"] / max(present["rna"].sum(), 1)),
        _count_leaks(tables, split),
        datasets,
        *(matrix.tolist() for matrix in shared),
    )


def _sum_proteins(tables: AtlasTables) -> NDArray[np.int64]:
    """Sum the protein counts of each cell, some cells at a time."""
    number = tables.num_cells
    array, parts = tables.array("obsm/adt", (number, tables.manifest["num_proteins"])), [np.empty(0, np.int64)]
    for start in range(0, number, SUMMED_ROWS):
        stop = min(start + SUMMED_ROWS, number)
        rows, (first,) = array.read(np.array([start]), np.array([stop]))
        parts.append(rows[first : first + stop - start].sum(axis=1, dtype=np.int64))
    return np.concatenate(parts)


def _median(values: NDArray) -> float:
    return float(np.median(values)) if len(values) else 0.0


def _count_splits(split: NDArray[np.str_]) -> dict[str, int]:
    return {name: int((split == name).sum()) for name in SPLITS}


def _count_leaks(tables: AtlasTables, split: NDArray[np.str_]) -> int | None:
    if not tables.has_column("rna_fingerprint"):
        return None
    is_test = split == "test"
    leaked = np.zeros(int(is_test.sum()), dtype=bool)
    for column in ("rna_fingerprint", "adt_fingerprint"):
        values = tables.column(column)
        leaked |= (values[is_test] != 0) & np.isin(values[is_test], values[~is_test])
    return int(leaked.sum())
